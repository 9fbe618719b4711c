"""The law alone under heavy tails: where the search starts, and which rows count for less."""

from __future__ import annotations

import math

import numpy as np

from analysis.forecast.mean_law import MeanLaw
from analysis.laws.power_sum import Array

_ROBUST_FREEDOM, _ROUNDS = 6.0, 10
_STEPS, _TRIES = 4, 5


def robust_start(mean: MeanLaw, x: Array, y: Array) -> tuple[Array, Array]:
    """The law alone under Student's t: its parameters (p,), and 1 / omega (n,) of each row.

    From three starts ten reweighted least-squares steps with the prior; the best is kept.
    """
    centre, scale = mean.prior()
    best: tuple[float, Array, Array] | None = None
    for shift in (0.0, -2.0, 2.0):
        theta = centre.copy()
        theta[0] += shift * scale[0]
        omega = np.ones(len(y))
        spread = 0.02
        for _ in range(_ROUNDS):
            theta = _step(mean, x, y, theta, omega / spread**2)
            residual = y - mean.log_loss(theta[None], x)[0]
            spread = max(1.4826 * float(np.median(np.abs(residual))), 1e-5)
            omega = np.minimum(
                1.0, (_ROBUST_FREEDOM + 1) / (_ROBUST_FREEDOM + (residual / spread) ** 2)
            )
        residual = y - mean.log_loss(theta[None], x)[0]
        tails = (_ROBUST_FREEDOM + 1) / 2 * np.log1p((residual / spread) ** 2 / _ROBUST_FREEDOM)
        away = (theta - centre) / scale
        cost = float(tails.sum()) + len(y) * math.log(spread) + 0.5 * float(away @ away)
        if best is None or cost < best[0]:
            best = cost, theta, omega
    assert best is not None
    return best[1], 1.0 / best[2]


def _step(mean: MeanLaw, x: Array, y: Array, theta: Array, weight: Array) -> Array:
    """A few damped Gauss-Newton steps of weighted least squares with the prior."""
    centre, scale = mean.prior()
    damping = 1e-2

    def cost_of(at: Array) -> float:
        residual = y - mean.log_loss(at[None], x)[0]
        return float(weight @ residual**2) + float((((at - centre) / scale) ** 2).sum())

    cost = cost_of(theta)
    for _ in range(_STEPS):
        value, jacobian = mean.evaluate(theta, x)
        slope = jacobian @ (weight * (y - value)) - (theta - centre) / scale**2
        curvature = (jacobian * weight) @ jacobian.T + np.diag(scale**-2)
        for _ in range(_TRIES):
            step = np.linalg.solve(curvature + damping * np.diag(np.diag(curvature)), slope)
            other = cost_of(theta + step)
            if other <= cost:
                theta, cost, damping = theta + step, other, damping / 10
                break
            damping *= 10
        else:
            return theta
    return theta

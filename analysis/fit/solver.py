"""Minimises sum_i w_i rho(log L_hat_i - log L_i) for many weightings or data vectors at once.

Damped Newton with exact Hessians, in numpy, over a batch of problems that share the points x:
    1. scale the Hessian by the majoriser's diagonal, replace eigenvalues by their absolute value
       (floored), solve: a descent direction whatever the curvature
    2. cap the step and project it onto the bounds (where that would climb, stop it at the first
       bound); a parameter at its bound is frozen while the gradient or the step point outwards
    3. backtrack until the objective falls enough; where Newton cannot (kinks of the Huber loss),
       one step of iteratively reweighted least squares, which always descends
    4. drop finished problems; stop when the predicted decrease is far below the objective

A bootstrap of thousands of refits is one call. Batches are cut so that the arrays stay in cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.fit.robust import Robust
from analysis.laws.power_sum import Law
from analysis.units import Array

_CHUNK_ELEMENTS = 30_000
_MAX_ITERATIONS = 200
_ATTEMPTS = 12
"""Steps shortened, down to 1e-7 of the first."""
_STEP_CAP = 1.0
_RESCALE = 4
"""Iterations that share one scaling of the Hessian."""
_EIGENVALUE_FLOOR = 1e-10
_DECREASE = 1e-13
_TOUCH = 1e-12
EXACT = 1e-8
"""Log residuals below this are rounding: a fit that leaves no more is exact, and is finished."""
GRADIENT_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Solution:
    """Where a batch of b problems ended."""

    theta: Array
    """(b, p) internal parameters."""
    value: Array
    """(b,) objective: the weighted sum of losses of log residuals."""
    gradient: Array
    """(b,) largest |gradient_j| over the free parameters, relative to sum_i |term_ij|: 0..1."""
    iterations: NDArray[np.int64]
    """(b,) Newton iterations."""
    converged: NDArray[np.bool_]
    """(b,) whether a stationary point was reached."""


def minimise(
    law: Law,
    start: Array,
    x: Array,
    y: Array,
    weight: Array,
    robust: Robust,
    lower: Array,
    upper: Array,
) -> Solution:
    """Runs b problems from `start` (b, p).

    x (k, n) features; y (n,) or (b, n) log losses; weight (n,) or (b, n); bounds (p,) or (b, p).
    """
    batch, points = len(start), x.shape[1]
    size = max(1, _CHUNK_ELEMENTS // points)
    parts: list[Solution] = []
    lower, upper = np.broadcast_to(lower, start.shape), np.broadcast_to(upper, start.shape)
    for begin in range(0, batch, size):
        rows = slice(begin, begin + size)
        part: Solution | None = None
        for loss in robust.path():
            part = _newton(
                law,
                start[rows] if part is None else part.theta,
                x,
                y if y.ndim == 1 else y[rows],
                weight if weight.ndim == 1 else weight[rows],
                loss,
                lower[rows],
                upper[rows],
            )
        assert part is not None
        parts.append(part)
    value = np.concatenate([p.value for p in parts])
    theta = np.concatenate([p.theta for p in parts])
    if robust.name == "lad":  # the last Huber of the path stands for it; report its own units
        value = (weight * robust.rho(law.log_loss(theta, x) - y)).sum(axis=1)
    return Solution(
        theta=theta,
        value=value,
        gradient=np.concatenate([p.gradient for p in parts]),
        iterations=np.concatenate([p.iterations for p in parts]),
        converged=np.concatenate([p.converged for p in parts]),
    )


def _newton(
    law: Law, start: Array, x: Array, y: Array, weight: Array, robust: Robust, lower: Array,
    upper: Array,
) -> Solution:  # fmt: skip
    batch = len(start)
    theta = np.clip(start, lower, upper)
    value, gradient = np.full(batch, np.inf), np.full(batch, np.inf)
    iterations = np.zeros(batch, dtype=np.int64)
    decreased = np.zeros(batch, dtype=bool)
    rows = np.arange(batch)  # problems still running
    majorise = np.zeros(batch, dtype=bool)
    scales = np.ones_like(theta)

    def pick(array: Array, index: NDArray[np.intp]) -> Array:
        return array if array.ndim == 1 else array[index]

    def objective(point: Array, index: NDArray[np.intp]) -> Array:
        residual = law.log_loss(point, x) - pick(y, index)
        total = (pick(weight, index) * robust.rho(residual)).sum(axis=-1)
        return np.where(np.isfinite(total), total, np.inf)

    for iteration in range(_MAX_ITERATIONS):
        point, w = theta[rows], pick(weight, rows)
        predicted, jacobian, state = law.evaluate(point, x)
        residual = predicted - pick(y, rows)
        value[rows] = now = (w * robust.rho(residual)).sum(axis=1)
        slope = w * robust.psi(residual)
        force = (jacobian @ slope[:, :, None])[:, :, 0]
        low, high = point <= lower[rows] + _TOUCH, point >= upper[rows] - _TOUCH
        frozen = (low & (force > 0)) | (high & (force < 0))
        frozen |= lower[rows] == upper[rows]
        force = np.where(frozen, 0.0, force)

        steep = majorise[rows]
        slow = w * robust.scale_weight(residual)
        if iteration % _RESCALE == 0:
            scale = np.sqrt((jacobian**2 @ slow[:, :, None])[:, :, 0])
            scales[rows] = np.maximum(scale, 1e-8 * scale.max(axis=1, keepdims=True) + 1e-150)
        hessian = law.hessian(state, w * robust.curvature(residual), slope)
        if steep.any():
            some = jacobian[steep]
            hessian[steep] = (some * slow[steep][:, None]) @ some.transpose(0, 2, 1)
        diagonal = scales[rows]
        free = force
        step = _direction(hessian, force, diagonal, frozen)
        blocked = (low & (step < 0)) | (high & (step > 0))
        if blocked.any():
            force = np.where(blocked, 0.0, force)
            step = _direction(hessian, force, diagonal, frozen | blocked)
        exact = 0.5 * EXACT**2 * w.sum(axis=-1)  # objective of a fit to the last digits
        small = -(force * step).sum(axis=1) <= _DECREASE * np.maximum(now, exact)
        step *= np.minimum(
            1.0, _STEP_CAP / np.maximum(np.abs(step).max(axis=1, keepdims=True), 1e-300)
        )
        clipped = np.clip(point + step, lower[rows], upper[rows]) - point
        descent = (force * clipped).sum(axis=1)
        uphill = descent >= 0
        clipped[uphill] = (step * _room(point, step, lower[rows], upper[rows]))[uphill]
        step, descent = clipped, (force * clipped).sum(axis=1)
        decreased[rows] |= small | (now <= exact)

        # Backtracking: full steps first, then only the problems that refused.
        scale = np.ones(len(rows))
        done = small | (free == 0.0).all(axis=1)
        pending = np.flatnonzero(~done)
        failed = np.zeros(len(rows), dtype=bool)
        for attempt in range(_ATTEMPTS):
            if not len(pending):
                break
            trial = point[pending] + scale[pending, None] * step[pending]
            trial = np.clip(trial, lower[rows[pending]], upper[rows[pending]])
            reached = objective(trial, rows[pending])
            good = reached <= now[pending] + 1e-4 * scale[pending] * descent[pending]
            theta[rows[pending[good]]] = trial[good]
            value[rows[pending[good]]] = reached[good]
            pending = pending[~good]
            scale[pending] *= 0.5 if attempt < 4 else 0.2
        failed[pending] = True
        iterations[rows[~done]] += 1
        done |= failed & steep  # neither Newton nor the majoriser finds a lower point
        majorise[rows] = failed & ~steep
        ended = done if iteration < _MAX_ITERATIONS - 1 else np.ones_like(done)
        if ended.any():  # the gradient where they stand, relative to the terms that it sums
            terms = np.abs(slope[ended])[:, None] @ np.abs(jacobian[ended]).transpose(0, 2, 1)
            relative = np.abs(free[ended]) / np.maximum(terms[:, 0], 1e-300)
            gradient[rows[ended]] = relative.max(axis=1)
        rows = rows[~done]
        if not len(rows):
            break
    return Solution(theta, value, gradient, iterations, decreased | (gradient < GRADIENT_TOLERANCE))


def _room(point: Array, step: Array, lower: Array, upper: Array) -> Array:
    """Largest fraction (b, 1) of each step, at most 1, that stays within the bounds."""
    with np.errstate(divide="ignore", invalid="ignore"):
        fraction = np.where(step < 0, lower - point, upper - point) / step
    fraction = np.where(step == 0, np.inf, fraction)
    return np.clip(fraction.min(axis=1, keepdims=True), 0.0, 1.0)


def _direction(hessian: Array, force: Array, diagonal: Array, frozen: NDArray[np.bool_]) -> Array:
    """-|H|^-1 g in coordinates scaled by `diagonal`, frozen parameters left out."""
    scaled = hessian / (diagonal[:, :, None] * diagonal[:, None, :])
    keep = ~frozen
    scaled *= keep[:, :, None] & keep[:, None, :]
    index = np.arange(force.shape[1])
    scaled[:, index, index] += frozen
    values, vectors = np.linalg.eigh(scaled)
    values = np.maximum(np.abs(values), _EIGENVALUE_FLOOR)
    rotated = (vectors.transpose(0, 2, 1) @ (force / diagonal)[:, :, None])[:, :, 0] / values
    return -(vectors @ rotated[:, :, None])[:, :, 0] / diagonal

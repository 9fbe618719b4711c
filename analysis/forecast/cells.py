"""One cell of the posterior: sizes of the misfit and of the group effect, and the mode of the rest.

    settle(mean, x, y, start, smooth, covariance, rho, r, log_share) -> log weight, Cell

The mode of theta given the noise is a few damped Gauss-Newton steps on whitened residuals and the
prior; the mode of the log of the noise given theta is Newton's. The weight is Laplace's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr

from analysis.forecast.gaussian_process import Covariance, Smooth
from analysis.forecast.mean_law import MeanLaw
from analysis.laws.power_sum import Array

MISFITS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""rho: standard deviation of the misfit in units of the noise."""
NOISE_PRIOR = (math.log(0.006), 1.0)
"""Of the log of sigma, the noise of one point in log loss."""
MISFIT_PRIOR = {2: (math.log(0.05), 0.7), 1: (math.log(0.05), 0.7)}
"""Of the log of rho sigma, by the number of variables."""
_ALTERNATIONS, _TRIES = 6, 5


@dataclass(frozen=True)
class Cell:
    """One setting of the misfit, and the mode of the rest within it."""

    smooth: Smooth
    rho: float
    r: float
    theta: Array
    """Mode (p,) of the free coordinates of the law."""
    sigma: float
    """Noise of one point, in log loss."""
    weight: float
    """Share of the posterior."""
    covariance: Covariance
    spread: Array
    """(p, p) factor F of the posterior covariance of theta: F F^T."""


def settle(
    mean: MeanLaw, x: Array, y: Array, start: Array, smooth: Smooth, covariance: Covariance,
    rho: float, r: float, log_share: float,
) -> tuple[float, Cell]:  # fmt: skip
    """The mode within one cell, and the log of the cell's weight."""
    centre, scale = mean.prior()
    precision = np.diag(scale**-2)
    n, theta, log_sigma = len(y), start, NOISE_PRIOR[0]
    damping = 1e-3
    value, jacobian = mean.evaluate(theta, x)
    residual = y - value
    solved = covariance.solve(np.column_stack([residual, jacobian.T]))
    for _ in range(_ALTERNATIONS):
        quadratic = float(residual @ solved[:, 0])
        log_sigma = _noise(quadratic, n, log_sigma, rho, len(x))
        variance = math.exp(2 * log_sigma)
        away = (theta - centre) / scale
        objective = quadratic / variance + float(away @ away)
        slope = jacobian @ solved[:, 0] / variance - away / scale
        curvature = jacobian @ solved[:, 1:] / variance + precision
        moved = 0.0
        for _ in range(_TRIES):
            step = np.linalg.solve(curvature + damping * np.diag(np.diag(curvature)), slope)
            trial = theta + step
            value, other = mean.evaluate(trial, x)
            remaining = y - value
            answer = covariance.solve(np.column_stack([remaining, other.T]))
            away = (trial - centre) / scale
            total = float(remaining @ answer[:, 0]) / variance + float(away @ away)
            if total <= objective:
                theta, residual, jacobian, solved = trial, remaining, other, answer
                moved, damping = float(np.abs(step / scale).max()), damping / 10
                break
            damping *= 10
        if moved < 1e-4:
            break
    quadratic = float(residual @ solved[:, 0])
    log_sigma = _noise(quadratic, n, log_sigma, rho, len(x))
    variance = math.exp(2 * log_sigma)
    curvature = jacobian @ solved[:, 1:] / variance + precision
    away = (theta - centre) / scale
    lower = np.linalg.cholesky(curvature)
    log_weight = -0.5 * (
        quadratic / variance + 2 * n * log_sigma + covariance.logdet + float(away @ away)
        + 2 * float(np.log(scale).sum()) + 2 * float(np.log(np.diag(lower)).sum())
        + math.log(2.0 * n)
    )  # fmt: skip
    log_weight += -0.5 * ((log_sigma - NOISE_PRIOR[0]) / NOISE_PRIOR[1]) ** 2
    log_weight += _log_prior_of_misfit(log_sigma, rho, len(x)) + log_share
    spread = np.asarray(np.linalg.inv(lower).T, dtype=np.float64)
    return log_weight, Cell(smooth, rho, r, theta, math.exp(log_sigma), 0.0, covariance, spread)


def _noise(quadratic: float, n: int, log_sigma: float, rho: float, variables: int) -> float:
    """Mode of ln sigma given r' C^-1 r: Newton, on a function that is concave."""
    middle, width = MISFIT_PRIOR[variables]
    for _ in range(20):
        pull = quadratic * math.exp(-2 * log_sigma)
        slope = pull - n - (log_sigma - NOISE_PRIOR[0]) / NOISE_PRIOR[1] ** 2
        bend = 2 * pull + NOISE_PRIOR[1] ** -2
        if rho > 0:
            slope -= (math.log(rho) + log_sigma - middle) / width**2
            bend += width**-2
        step = max(-1.0, min(1.0, slope / bend))
        log_sigma += step
        if abs(step) < 1e-8:
            break
    return log_sigma


def _log_prior_of_misfit(log_sigma: float, rho: float, variables: int) -> float:
    """Log prior mass of a value of the grid of rho: a step of the grid in the density of
    ln(rho sigma); for rho = 0, all that lies below the smallest."""
    middle, width = MISFIT_PRIOR[variables]
    ratio = MISFITS[2] / MISFITS[1]
    if rho == 0:
        edge = math.log(MISFITS[1]) - 0.5 * math.log(ratio) + log_sigma
        return float(log_ndtr((edge - middle) / width))
    away = (math.log(rho) + log_sigma - middle) / width
    return -0.5 * away**2 - math.log(width * math.sqrt(2 * math.pi)) + math.log(math.log(ratio))

"""Least compute for each loss along the compute-optimal frontier of a law, and the range of data.

    compute_for_loss(fit, losses)    inverse of `LawFit.frontier`, for the estimate or every refit
    unbeaten(points)                 the frontier of measured points themselves
    reach(fit)                       smallest and largest compute among the points

At the optimum of a law in N and D, alpha A N^-alpha = e(N) beta B D^-beta, with e the elasticity of
FLOPs per token. So both terms together are A N^-alpha (1 + alpha / (e beta)): a loss gives N by
Newton, N gives D in closed form, and both give C.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.errors import AnalysisError
from analysis.fit.law_fit import LawFit
from analysis.io.frames import numbers
from analysis.units import Array

_PATH_POINTS = 1600
_ITERATIONS, _DONE, _STRIDE = 60, 1e-12, 3.0


def compute_for_loss(
    fit: LawFit, losses: Array, *, draws: bool = False, at: Array | None = None
) -> Array:
    """FLOPs that the frontier needs for each loss: (losses,), or (draws, losses).

    Infinite where a loss lies at or below the irreducible loss. `at`: other natural parameters
    (b, p) instead of the estimate or the draws; the result is (b, losses).
    """
    values = fit.values[None] if at is None else at
    if draws:
        if fit.draws is None:
            raise AnalysisError("comparing with intervals needs bootstrapped fits: pass "
                                "bootstrap=4000 to fit_law")  # fmt: skip
        values = fit.draws.values
    losses = np.asarray(losses, dtype=float)
    if fit.law.columns == ("c",):
        found = _by_path(fit, values, losses)
    else:
        found = _by_size(fit, values[:, None, :], losses)
    return found[0] if at is None and not draws else found


def _by_path(fit: LawFit, values: Array, losses: Array) -> Array:
    """Inverse of a law in C alone: closed for a power law, else by interpolation; values (b, p)."""
    law = fit.law
    if law.name in ("power_c", "power_c_e"):
        a, alpha = (law.column(values, name)[:, None] for name in ("A", "alpha"))
        left = losses - (law.column(values, "E")[:, None] if law.has_floor else 0.0)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            compute = np.exp((np.log(a) - np.log(np.maximum(left, 0))) / alpha)
        return np.where(left > 0, compute, np.inf)
    centre = np.log(np.nanmedian(fit.observations.compute))
    log_c = np.linspace(centre - 25, centre + 35, _PATH_POINTS)
    compute = {"c": np.exp(log_c)}
    # Loss falls along the path; interpolation wants rising abscissae
    return np.stack([
        np.exp(np.interp(-np.log(losses), -np.log(law.predict(each, compute)), log_c,
                         left=-np.inf, right=np.inf))
        for each in values
    ])  # fmt: skip


def _by_size(fit: LawFit, values: Array, losses: Array) -> Array:
    """Inverse of a law in N and D under its C = f(N) D; values (b, 1, p)."""
    law, inner, model = fit.law, fit.law.inner(values, fit.held), fit.compute_model
    if not {"n", "d"} <= set(law.columns):
        raise AnalysisError(f"{fit.form} has no N and D to trade, and no frontier in compute")
    if inner is None:
        raise AnalysisError(f"{fit.form} does not come apart into a term in N and one in D: its "
                            "compute at a loss is not told")  # fmt: skip
    left = losses - law.floor(values, fit.held)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        wanted = np.log(np.maximum(left, 0)) / law.outer(values)
        log_a, log_b = np.log(inner.A), np.log(inner.B)
        log_n = (log_a + np.log1p(inner.alpha / inner.beta) - wanted) / inner.alpha
        log_n = np.where(left > 0, log_n, 0.0)
        if model.power is None:
            log_n = _newton(log_n, log_a - wanted, inner.alpha, inner.beta, fit)
        log_f, slope, _ = model.log_cost(log_n)
        log_d = (
            np.log(slope * inner.beta) + log_b - np.log(inner.alpha) - log_a + inner.alpha * log_n
        ) / inner.beta
        compute = np.exp(log_f + log_d)
    return np.where(left > 0, compute, np.inf)


def _newton(log_n: Array, height: Array, alpha: Array, beta: Array, fit: LawFit) -> Array:
    """log N where log A - alpha log N + log(1 + alpha / (e(N) beta)) is the wanted loss."""
    for _ in range(_ITERATIONS):
        _, slope, bend = fit.compute_model.log_cost(log_n)
        share = alpha / (slope * beta)
        excess = height - alpha * log_n + np.log1p(share)
        fall = alpha + share / (1 + share) * bend / slope
        step = np.where(np.isfinite(excess), excess / np.maximum(fall, 0.5 * alpha), 0.0)
        log_n = log_n + np.clip(step, -_STRIDE, _STRIDE)
        if np.abs(step).max() < _DONE:
            break
    return log_n


def unbeaten(points: pd.DataFrame) -> NDArray[np.bool_]:
    """Which measured points no other one beats with less or equal compute: the frontier of runs.

    Args:
        points: columns flops and loss.
    """
    order = np.lexsort((numbers(points, "loss"), numbers(points, "flops")))
    losses = numbers(points, "loss")[order]
    lowest = np.minimum.accumulate(losses)
    mask = np.zeros(len(points), dtype=bool)
    mask[order[np.append(True, losses[1:] < lowest[:-1])[: len(points)]]] = True
    return mask


def reach(fit: LawFit) -> tuple[float, float]:
    """Smallest and largest compute among the points of a fit."""
    compute = fit.observations.compute
    if not np.isfinite(compute).any():
        raise AnalysisError(f"{fit.form} was fitted without compute: give C, or N and D")
    return float(np.nanmin(compute)), float(np.nanmax(compute))

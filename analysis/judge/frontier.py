"""The compute-optimal frontier of a law: lowest loss at each C, and least C for each loss.

    frontier_power_law(law, values)     E + K C^-s of an N-D form under C = 6 N D, in closed form
    frontier_draws(fit, compute)        loss of every bootstrap refit
    compute_for_loss(fit, losses)       its inverse

With an architecture's own FLOPs per token the inverse follows the optimal path, parametrised by N.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from analysis.errors import AnalysisError
from analysis.fit.law_fit import LawFit
from analysis.laws.power_sum import Law
from analysis.laws.registry import PerToken
from analysis.units import Array

_PATH_POINTS = 1600

Frontier = Callable[[Array], tuple[Array, Array]]
"""Natural parameters (p,) -> log C and log loss along the frontier."""


def frontier_power_law(law: Law, values: Array) -> tuple[Array, Array, Array] | None:
    """E, log K and s of the compute-optimal frontier E + K C^-s under C = 6 N D; None if it is not.

    For A N^-alpha + B D^-beta at its optimum both terms fall as C^-s with s = alpha beta / (alpha +
    beta), in the ratio beta : alpha.
    """
    floor = law.column(values, "E") if law.has_floor else np.zeros(values.shape[:-1])
    if law.columns == ("c",):
        if law.name == "broken_c":
            return None
        return floor, np.log(law.column(values, "A")), law.column(values, "alpha")
    inner = law.inner(values)
    if inner is None:
        return None
    total = inner.alpha + inner.beta
    log_g = (np.log(inner.alpha * inner.A) - np.log(inner.beta * inner.B)) / total
    slope = inner.alpha * inner.beta / total
    # A N*^-alpha at C: A G^-alpha (C/6)^-s; the other term is alpha/beta times as large
    log_k = np.log(inner.A) - inner.alpha * log_g + np.log1p(inner.alpha / inner.beta)
    log_k = log_k + slope * np.log(6.0)
    power = law.outer(values)
    return floor, power * log_k, power * slope


def compute_for_loss(
    fit: LawFit, losses: Array, *, draws: bool = False, flops_per_token: PerToken | None = None
) -> Array:
    """FLOPs that the frontier needs for each loss: (losses,), or (draws, losses).

    Infinite where a loss lies at or below the irreducible loss.
    """
    values = fit.values
    if draws:
        if fit.draws is None:
            raise AnalysisError("comparing with intervals needs bootstrapped fits: pass "
                                "bootstrap=4000 to fit_law")  # fmt: skip
        values = fit.draws.values[:, None, :]
    losses = np.asarray(losses, dtype=float)
    power = frontier_power_law(fit.law, values) if flops_per_token is None else None
    if power is not None:
        floor, log_k, slope = power
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            reach = losses - floor
            compute = np.exp((log_k - np.log(np.maximum(reach, 0))) / slope)
        return np.where(reach > 0, compute, np.inf)
    frontier = _by_compute(fit) if fit.law.columns == ("c",) else _by_size(fit, flops_per_token)
    rows = values.reshape(-1, values.shape[-1])
    # Loss falls along the path; interpolation wants rising abscissae
    wanted = -np.log(losses)
    found = np.stack([
        np.exp(np.interp(wanted, -log_loss, log_c, left=-np.inf, right=np.inf))
        for log_c, log_loss in map(frontier, rows)
    ])  # fmt: skip
    return found if draws else found[0]


def _by_compute(fit: LawFit) -> Frontier:
    """The frontier of a law in C alone: the law itself."""
    centre = np.log(np.nanmedian(fit.observations.compute))
    log_c = np.linspace(centre - 25, centre + 35, _PATH_POINTS)
    compute = {"c": np.exp(log_c)}
    return lambda values: (log_c, np.log(fit.law.predict(values, compute)))


def _by_size(fit: LawFit, per_token: PerToken | None) -> Frontier:
    """The frontier of a law in N and D, parametrised by N.

    At the optimum alpha A N^-alpha = e(N) beta B D^-beta with e = d log f / d log N the elasticity
    of FLOPs per token f, so each N has its D in closed form.
    """
    middle = float(np.log(np.median(fit.observations.columns["n"])))
    log_n = np.linspace(middle - 14, middle + 18, _PATH_POINTS)
    n, step = np.exp(log_n), 1e-4
    if per_token is None:
        log_f, elasticity = np.log(6 * n), np.ones_like(n)
    else:
        up, down = per_token(n * np.exp(step)), per_token(n * np.exp(-step))
        log_f, elasticity = np.log(per_token(n)), np.log(up / down) / (2 * step)

    def frontier(values: Array) -> tuple[Array, Array]:
        inner = fit.law.inner(values)
        if inner is None:
            raise AnalysisError(
                f"{fit.form} has no N and D: FLOPs per token cannot be applied to it"
            )
        log_d = (
            np.log(elasticity * inner.beta * inner.B) - np.log(inner.alpha * inner.A)
            + inner.alpha * log_n
        ) / inner.beta  # fmt: skip
        d = np.exp(log_d)
        return log_f + log_d, np.log(fit.law.predict(values, {"n": n, "d": d, "u": d}))

    return frontier


def reach(fit: LawFit) -> tuple[float, float]:
    """Smallest and largest compute among the points of a fit."""
    compute = fit.observations.compute
    if not np.isfinite(compute).any():
        raise AnalysisError(f"{fit.form} was fitted without compute: give C, or N and D")
    return float(np.nanmin(compute)), float(np.nanmax(compute))


def frontier_draws(fit: LawFit, compute: Array, per_token: PerToken | None) -> Array:
    """Frontier loss of every draw (draws, budgets); closed where the frontier is a power law."""
    if fit.draws is not None and per_token is None:
        power = frontier_power_law(fit.law, fit.draws.values[:, None, :])
        if power is not None:
            floor, log_k, slope = power
            return floor + np.exp(log_k - slope * np.log(compute))
    return fit.frontier_draws(compute, flops_per_token=per_token)

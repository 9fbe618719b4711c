"""The cheapest model that reaches a loss, whatever is counted.

least_cost(law, values, loss, cost) -> log N, log D
    minimise  cost(log N, log D)  over N and D with L(N, D) = loss
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from analysis.errors import AnalysisError
from analysis.fit.law_fit import LawFit
from analysis.units import LEVEL, Array

_GRID, _WIDEST, _ROUNDS = 241, 14.0, 3
"""Sizes tried a round, from just above the smallest that can reach the loss to e^14 times it."""

Cost = Callable[[Array, Array], Array]
"""Of log N and log D of one shape; the same shape, in any unit."""


def least_cost(law: LawFit, values: Array, loss: float, cost: Cost) -> tuple[Array, Array]:
    """log N and log D (b,) of the cheapest model for natural parameters (b, p); NaN where none
    reaches the loss.

    Raises:
        AnalysisError: a law without N and D.
    """
    inner = law.law.inner(values)
    if inner is None or {"n", "d"} - set(law.law.columns):
        raise AnalysisError(f"{law.form} has no N and D to trade")
    floor = law.law.column(values, "E") if law.law.has_floor else np.zeros(len(values))
    with np.errstate(invalid="ignore", divide="ignore"):
        wanted = np.log(loss - floor) / law.law.outer(values)
        smallest = (np.log(inner.A) - wanted) / inner.alpha  # log N at endless data

    def tokens(log_n: Array) -> Array:
        """log D that reaches the loss at log N (b, g)."""
        share = -np.expm1(inner.alpha[:, None] * (smallest[:, None] - log_n))
        return (np.log(inner.B)[:, None] - wanted[:, None] - np.log(share)) / inner.beta[:, None]

    # Steps above the smallest size, in logarithms of their own: the optimum may hug it.
    low = np.full(len(values), np.log(1e-5))
    high = np.full(len(values), np.log(_WIDEST))
    step = low
    for _ in range(_ROUNDS):
        grid = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, _GRID)
        log_n = smallest[:, None] + np.exp(grid)
        total = cost(log_n, tokens(log_n))
        best = np.where(np.isfinite(total), total, np.inf).argmin(axis=1)
        width = (high - low) / (_GRID - 1)
        step = np.take_along_axis(grid, best[:, None], axis=1)[:, 0]
        low, high = step - width, step + width
    log_n = smallest + np.exp(step)
    return log_n, tokens(log_n[:, None])[:, 0]


def interval_of(draws: Array, level: float = LEVEL) -> tuple[float, float]:
    """Central interval of draws that may be infinite: of draws themselves, not between them."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    return float(low), float(high)


def outside_of(law: LawFit, n: float, d: float) -> str:
    """In words, where N lies outside the sizes fitted, or N D beyond the largest; else empty."""
    sizes = law.observations.columns["n"]
    leap = float(law.leap({"n": np.array([n]), "d": np.array([d])})[0])
    found = [f"N is {factor:.3g} times {edge} that was fitted" for factor, edge, is_out in (
                 (n / sizes.max(), "the largest", n > sizes.max()),
                 (n / sizes.min(), "the smallest", n < sizes.min())) if is_out]  # fmt: skip
    found += [f"N D is {leap:.3g} times the largest that was fitted"] if leap > 1.001 else []
    return "; ".join(found)

"""Families of hybrids in a sweep: one base architecture with several shares of softmax layers.

points (arch: a pattern) -> table: family, ratio, budget and the columns of the points
                         -> laws: L(C, ratio) of each family (`analysis.fit.ratio_law`)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.fit.ratio_law import RatioLaw, fit_ratio_law
from analysis.io.frames import numbers, rows, take, where, words
from linscale.layer_groups import softmax_share

LEAST_SHARES = 3
"""Fewer make no family."""
SAME_BUDGET = 0.1
"""Budgets whose natural logarithms lie closer are one: horizons are whole steps."""


@dataclass(frozen=True)
class Shares:
    """What is known about families of hybrids."""

    table: pd.DataFrame
    """Points of families, with family, ratio and budget."""
    laws: dict[str, RatioLaw] = field(default_factory=dict[str, RatioLaw])
    failures: dict[str, str] = field(default_factory=dict[str, str])
    """Families without a law, and why."""

    def lowest(self) -> pd.DataFrame:
        """Lowest loss of the sizes at each family, ratio and budget that all its ratios have."""
        parts: list[pd.DataFrame] = []
        for family in dict.fromkeys(words(self.table, "family")):
            own = where(self.table, family=family)
            shares = own["ratio"].nunique()
            for budget in np.unique(numbers(own, "budget")):
                at = where(own, budget=budget)
                best = at.loc[at.groupby("ratio")["loss"].idxmin()]
                if len(best) == shares:
                    parts.append(best)
        return _stack(parts, "family", "ratio", "budget", "loss", "size")

    def bands(self, level: float) -> pd.DataFrame:
        """Each law over the ratios at each budget of `lowest`: family, budget, ratio, loss, lo,
        hi."""
        parts: list[pd.DataFrame] = []
        for family, budget in self._measured():
            band = self.laws[family].band(budget, np.linspace(0, 1, 81), level)
            parts.append(band.assign(family=family, budget=budget))
        return _stack(parts, "family", "budget", "ratio", "loss", "lo", "hi")

    def best(self, level: float) -> pd.DataFrame:
        """Best ratio at each budget of `lowest`: family, budget, ratio, lo, hi, tied (the ratios
        measured that cannot be told from the best of them)."""
        found: list[dict[str, object]] = []
        for family, budget in self._measured():
            law = self.laws[family]
            ratio, low, high = law.best(budget, level)
            measured = np.unique(numbers(where(self.table, family=family), "ratio"))
            tied = ", ".join(f"{r:g}" for r in law.tied(budget, measured, level))
            found.append({"family": family, "budget": budget, "ratio": ratio, "lo": low,
                          "hi": high, "tied": tied})  # fmt: skip
        return pd.DataFrame(found, columns=["family", "budget", "ratio", "lo", "hi", "tied"])

    def _measured(self) -> list[tuple[str, float]]:
        lowest = self.lowest()
        return [
            (family, float(budget))
            for family in self.laws
            for budget in np.unique(numbers(where(lowest, family=family), "budget"))
        ]


def shares_of(points: pd.DataFrame, *, bootstrap: int, seed: int = 0) -> Shares:
    """Finds the families among the points of a sweep and fits each; most sweeps have none.

    Args:
        points: as `Sweep.points`.
        bootstrap: redraws of whole runs.
        seed: of the redraws.
    """
    known = {name: _share(name) for name in dict.fromkeys(words(points, "arch"))}
    found = [known[name] for name in words(points, "arch")]
    table = points.assign(
        family=[f[0] for f in found], ratio=[f[1] for f in found],
        budget=_budgets(numbers(points, "flops")),
    )  # fmt: skip
    shares = {f: table.loc[table["family"] == f, "ratio"].nunique() for f in {f for f, _ in found}}
    families = sorted(f for f, count in shares.items() if f and count >= LEAST_SHARES)
    table = rows(table, np.isin(words(table, "family"), families))
    laws: dict[str, RatioLaw] = {}
    failures: dict[str, str] = {}
    for family in families:
        own = where(table, family=family)
        named = set(zip(numbers(own, "ratio"), words(own, "arch"), strict=True))
        if len(named) > len({ratio for ratio, _ in named}):
            failures[family] = "several patterns have the same share: fit them apart"
            table = rows(table, words(table, "family") != family)
            continue
        try:
            laws[family] = fit_ratio_law(
                where(table, family=family), bootstrap=bootstrap, seed=seed
            )
        except AnalysisError as error:
            failures[family] = str(error)
    return Shares(table, laws, failures)


def _stack(parts: list[pd.DataFrame], *columns: str) -> pd.DataFrame:
    if not parts:
        return pd.DataFrame(columns=list(columns))
    return take(pd.concat(parts, ignore_index=True), {name: name for name in columns})


def _share(name: str) -> tuple[str, float]:
    """Base architecture and share of a group; ("", nan) where it is none of ours."""
    return softmax_share(name) or ("", float("nan"))


def _budgets(flops: Sequence[float] | np.ndarray) -> np.ndarray:
    """The same number, a geometric mean, for compute that is nearly equal."""
    order = np.argsort(flops)
    logs = np.log(np.asarray(flops, dtype=float)[order])
    group = np.concatenate([[0], np.cumsum(np.diff(logs) > SAME_BUDGET)]) if len(logs) else logs
    means = np.array([logs[group == g].mean() for g in group])
    budgets = np.empty(len(logs))
    budgets[order] = np.exp(means)
    return budgets

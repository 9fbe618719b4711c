"""The laws of one architecture, mixed and checked: what answers its targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.forecast.predictive import Predictive, predict_from
from analysis.forecast.rolling import mixture, roll, widened
from analysis.forecast.rows import Rows
from analysis.laws.power_sum import Array, Inner
from analysis.laws.registry import optimum


@dataclass(frozen=True)
class Group:
    """The laws of one architecture, ready to answer."""

    name: str
    laws: dict[str, Predictive]
    weights: dict[str, float]
    calibration: dict[str, Any]
    seed: int

    @property
    def rows(self) -> Rows:
        """Of the first law."""
        return next(iter(self.laws.values())).rows

    @property
    def no_interval(self) -> str | None:
        """Why there is none; None where there is."""
        return next((law.no_interval for law in self.laws.values() if law.no_interval), None)

    def draw(
        self, columns: Mapping[str, Array], runs: list[str], *, law_alone: bool = False
    ) -> Array:
        """Draws (s, t) of the mixture of the laws."""
        drawn = {
            name: law.draw(columns, runs, law_alone=law_alone, seed=self.seed)
            for name, law in self.laws.items()
        }
        return widened(mixture(drawn, self.weights), float(self.calibration["widen"]))

    def per_token(self) -> Callable[[Array], Array]:
        """FLOPs of one token as a function of N: the power law through the rows' C / D, or 6 N."""
        columns = self.rows.columns
        if not {"n", "d", "c"} <= columns.keys():
            return lambda n: 6.0 * n
        x, y = np.log(columns["n"]), np.log(columns["c"] / columns["d"])
        middle = float(x.mean())
        slope = float(((x - middle) * (y - y.mean())).sum() / ((x - middle) ** 2).sum())
        level = float(y.mean())
        return lambda n: np.exp(level + slope * (np.log(n) - middle))

    def split(self, compute: Array) -> dict[str, Array]:
        """Draws (s, t) of the best N and D within budgets, by key n and d; NaN where a draw has no
        best split."""
        sizes: dict[str, Array] = {}
        tokens: dict[str, Array] = {}
        for name, law in self.laws.items():
            found = law.mean.inner(law.thetas(self.seed))
            inner = Inner(*(v[:, None] for v in (found.A, found.alpha, found.B, found.beta)))
            with np.errstate(all="ignore"):  # a draw far out may split without bounds: NaN
                n, d = optimum(inner, compute[None, :], self.per_token())
            good = np.isfinite(n) & np.isfinite(d) & (n > 0) & (d > 0)
            sizes[name], tokens[name] = (np.where(good, v, np.nan) for v in (n, d))
        return {"n": mixture(sizes, self.weights), "d": mixture(tokens, self.weights)}


def prepare_group(
    name: str, rows: dict[str, Rows], pinned: Mapping[str, float], seed: int
) -> Group:
    """The laws of one group, weighed and checked by a rolling hold-out.

    Args:
        name: of the group.
        rows: as each law reads them, by form.
        pinned: parameters that are held.
        seed: of the draws.
    """
    laws = {form: predict_from(each, pinned) for form, each in rows.items()}
    first = next(iter(rows.values()))
    rolling = roll(first, rows, pinned)
    weights = rolling.weights()
    return Group(name, laws, weights, rolling.check(weights), seed)

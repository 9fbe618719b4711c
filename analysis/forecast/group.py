"""The laws of one architecture, mixed and checked: what answers its targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from analysis.fit.observations import model_of
from analysis.forecast.predictive import Predictive, predict_from
from analysis.forecast.rolling import mixture, roll, widened
from analysis.forecast.rows import Rows
from analysis.laws.compute_model import ComputeModel, optimum
from analysis.laws.power_sum import Inner
from analysis.units import Array


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

    @cached_property
    def compute_model(self) -> ComputeModel:
        """What a token costs at a size: from the record or the column of C, else 6 N."""
        return model_of(self.rows.observations)

    def split(self, compute: Array) -> dict[str, Array]:
        """Draws (s, t) of the best N and D within budgets, by key n and d; NaN where a draw has no
        best split."""
        sizes: dict[str, Array] = {}
        tokens: dict[str, Array] = {}
        for name, law in self.laws.items():
            found = law.mean.inner(law.thetas(self.seed))
            inner = Inner(*(v[:, None] for v in (found.A, found.alpha, found.B, found.beta)))
            with np.errstate(all="ignore"):  # a draw far out may split without bounds: NaN
                n, d = optimum(inner, compute[None, :], self.compute_model)
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

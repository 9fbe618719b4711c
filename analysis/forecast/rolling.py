"""A rolling hold-out on the user's own rows: how the method does here, and how to weigh laws.

    roll(rows, forms, pinned) -> Rolling
        at each cut in compute the laws know what is cheaper and forecast what is dearer
    Rolling.weights()    share of each law: the mixture with the lowest CRPS, drawn towards equal
    Rolling.check(...)   coverage of the mixture on these rows, and a widening where it is too low

On public sets a hold-out inside the known rows says little about the rows beyond them (its scale
ranks with the outer one's by .14): intervals are therefore calibrated on those sets, and widened
only where the user's own rows contradict them beyond chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from analysis.errors import AnalysisError
from analysis.forecast.predictive import predict_from
from analysis.forecast.rows import Rows
from analysis.forecast.score import binomial_interval, crps, interval, quantiles_of
from analysis.units import LEVEL, Array

SHARES = (0.5, 0.65, 0.8)
"""Cuts: shares of the rows, by compute, that are known."""
FEWEST_FORECASTS = 10
"""Fewer held-out rows calibrate nothing."""
_MOST_TARGETS = 30
_TOWARDS_EQUAL = 50.0
"""Held-out rows that equal weights count for: laws this close are told apart by chance."""
_DRAWS = 1000
_WIDEST = 4.0


@dataclass(frozen=True)
class Rolling:
    """Held-out rows and what each law drew for them."""

    outcomes: Array
    """(m,) measured losses."""
    draws: dict[str, Array]
    """By law, (s, m)."""
    leap: Array
    """(m,) compute beyond the cut, as a factor."""
    independent: int
    """Distinct runs or sizes that were held out: what chance is reckoned with."""
    cuts: int

    @property
    def too_few(self) -> str | None:
        """Why this calibrates nothing; None where it can."""
        count = len(self.outcomes)
        if count >= FEWEST_FORECASTS and self.cuts >= 2:
            return None
        return (
            f"too few rungs to calibrate on: {count} held-out rows at {self.cuts} cuts, of at "
            f"least {FEWEST_FORECASTS} at 2. What the intervals cover is known from public sets "
            "only"
        )

    def weights(self) -> dict[str, float]:
        """Share of each law in the mixture: lowest CRPS over the held-out rows, drawn towards
        equal shares as if these had fifty rows of their own."""
        names = list(self.draws)
        equal = np.full(len(names), 1.0 / len(names))
        count = len(self.outcomes)
        if len(names) == 1 or self.too_few:
            return dict(zip(names, equal.tolist(), strict=True))
        logs = [np.log(self.draws[n]) for n in names]
        miss = np.array([np.abs(each - np.log(self.outcomes)).mean() for each in logs])
        apart = np.array([[_distance(a, b) for b in logs] for a in logs])

        def score(shares: Array) -> float:
            return 100 * float(shares @ miss - 0.5 * shares @ apart @ shares)

        best = minimize(score, equal, bounds=[(0, 1)] * len(names), method="SLSQP",
                        constraints={"type": "eq", "fun": lambda s: s.sum() - 1}).x  # fmt: skip
        mixed = (count * np.clip(best, 0, 1) + _TOWARDS_EQUAL * equal) / (count + _TOWARDS_EQUAL)
        return dict(zip(names, (mixed / mixed.sum()).tolist(), strict=True))

    def check(self, weights: Mapping[str, float]) -> dict[str, Any]:
        """Coverage of the mixture on the held-out rows, and `widen`, the factor for intervals."""
        told: dict[str, Any] = {
            "forecasts": len(self.outcomes), "independent": self.independent, "cuts": self.cuts,
            "too_few": self.too_few, "widen": 1.0,
        }  # fmt: skip
        if not len(self.outcomes):
            return told
        quantiles = quantiles_of(mixture(self.draws, weights))
        for level in (0.5, 0.9):
            low, high = interval(quantiles, level)
            inside = int(((low <= self.outcomes) & (self.outcomes <= high)).sum())
            told[f"inside_{level:.0%}"] = inside
            share = inside / len(self.outcomes)
            told[f"binomial_{level:.0%}"] = list(
                binomial_interval(round(share * self.independent), self.independent)
            )
        told["crps"] = float(crps(quantiles, self.outcomes).mean())
        told["largest_leap"] = float(self.leap.max())
        if self.too_few is None and told["binomial_90%"][1] < 0.9:
            told["widen"] = _widening(quantiles, self.outcomes)
        return told


def roll(rows: Rows, forms: Mapping[str, Rows], pinned: Mapping[str, float]) -> Rolling:
    """Forecasts of the dearer rows from the cheaper ones, by every law.

    Args:
        rows: what the cuts are taken of.
        forms: the same rows as each law reads them.
        pinned: parameters that are held.
    """
    axis = rows.axis(rows.columns)
    order = np.sort(axis)
    edges = sorted({float(order[int(share * len(order)) - 1]) for share in SHARES
                    if int(share * len(order)) > 0})  # fmt: skip
    outcomes: list[Array] = []
    leaps: list[Array] = []
    draws: dict[str, list[Array]] = {form: [] for form in forms}
    units = np.arange(len(axis)) if rows.groups is None else rows.groups
    held_out: set[int] = set()
    for edge in edges:
        known, held = axis <= edge, np.flatnonzero(axis > edge)
        if not len(held):
            continue
        if len(held) > _MOST_TARGETS:
            held = held[np.linspace(0, len(held) - 1, _MOST_TARGETS).astype(int)]
        drawn = _drawn(forms, known, held, pinned)
        if drawn is None:
            continue
        outcomes.append(rows.loss[held])
        held_out |= set(units[held].tolist())
        leaps.append(axis[held] / edge)
        for form, values in drawn.items():
            draws[form].append(values)
    if not outcomes:
        return Rolling(np.empty(0), {f: np.empty((0, 0)) for f in forms}, np.empty(0), 0, 0)
    return Rolling(
        np.concatenate(outcomes),
        {form: np.concatenate(parts, axis=1) for form, parts in draws.items()},
        np.concatenate(leaps),
        len(held_out),
        len(outcomes),
    )


def _drawn(
    forms: Mapping[str, Rows], known: NDArray[np.bool_], held: NDArray[np.int64],
    pinned: Mapping[str, float],
) -> dict[str, Array] | None:  # fmt: skip
    """Draws (s, m) of every law at one cut; None where one of them has too few rows."""
    found: dict[str, Array] = {}
    for form, whole in forms.items():
        part = whole.take(known)
        if part.too_few:
            return None
        try:
            predictive = predict_from(part, pinned)
        except AnalysisError:  # a pinned E above the losses known here
            return None
        columns = {k: v[held] for k, v in whole.columns.items()}
        labels = [whole.observations.labels[i] for i in whole.observations.cluster[held]]
        found[form] = predictive.draw(columns, labels, draws=_DRAWS)
    return found


def mixture(draws: Mapping[str, Array], weights: Mapping[str, float]) -> Array:
    """Draws of a mixture: of each law as many as its weight says, evenly spread over its own."""
    parts = []
    for name, every in draws.items():
        count = round(weights[name] * len(every))
        if count:
            parts.append(every[np.linspace(0, len(every) - 1, count).round().astype(int)])
    return np.concatenate(parts)


def _distance(left: Array, right: Array) -> float:
    """Mean absolute difference between draws (s, m) of two laws, over the held-out rows."""
    half = len(left) // 2  # pair each draw with one far from it: independent within a law too
    return float(np.abs(left - np.roll(right, half, axis=0)).mean())


def _widening(quantiles: Array, outcomes: Array) -> float:
    """How many times wider the intervals must be for nine outcomes in ten to lie inside."""
    low, high = interval(quantiles, LEVEL)
    middle, target = np.log(quantiles[49]), np.log(outcomes)
    reach = np.where(target > middle, np.log(high) - middle, middle - np.log(low))
    times = np.abs(target - middle) / np.maximum(reach, 1e-12)
    rank = min(len(times), math.ceil(0.9 * (len(times) + 1)))
    return float(np.clip(np.sort(times)[rank - 1], 1.0, _WIDEST))


def widened(draws: Array, factor: float) -> Array:
    """Draws (s, t) moved away from their median, in log loss."""
    if factor == 1.0:
        return draws
    middle = np.median(draws, axis=0)
    return middle * (draws / middle) ** factor

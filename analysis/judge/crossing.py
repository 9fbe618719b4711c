"""Where the compute-optimal frontiers of two laws cross, with an interval.

crossing(x, y) -> Crossing      first crossing in a range of compute, over the draws of both
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.fit.law_fit import LawFit
from analysis.fit.uncertainty import quantiles
from analysis.fit.within import frontier_within
from analysis.judge.frontier import reach
from analysis.units import LEVEL, Array

_SETTLED = 0.9
"""Share of draws that must cross before an interval is read as one."""


@dataclass(frozen=True)
class Crossing:
    """Where two frontiers cross."""

    loss: float
    """Loss at the crossing; NaN when the estimates do not cross in the range searched."""
    compute: float
    """FLOPs there."""
    lo: float
    hi: float
    """Interval of `compute` over the draws that cross; NaN without draws."""
    share: float
    """Share of draws that cross in the range searched; NaN without draws."""
    inside: bool
    """Whether the crossing is within the data of both fits: C, and N* and D* of each there."""

    def describe(self, x: str, y: str, level: float) -> str:
        """One sentence that says no more than the draws allow."""
        drawn = np.isfinite(self.share)
        if not np.isfinite(self.compute):
            text = f"The frontiers of {x} and {y} do not cross in the range searched"
            if not drawn:
                return f"{text}."
            if not self.share:
                return f"{text}, nor do those of any refit."
            return f"{text}; those of {self.share:.0%} of the refits do."
        text = (
            f"The frontiers of {x} and {y} cross at {self.compute:.2g} FLOPs (loss "
            f"{self.loss:.3g}), {'within' if self.inside else 'outside'} the data"
        )
        if not drawn:
            return text + "; without a bootstrap this has no interval."
        if self.share < _SETTLED:
            return (
                f"{text}, but only {self.share:.0%} of the refits cross at all: whether they "
                "cross is not settled."
            )
        over = f", over the {self.share:.0%} of refits that cross" if self.share < 1 else ""
        return f"{text} ({level:.0%} interval {self.lo:.2g} to {self.hi:.2g} FLOPs{over})."


def crossing(
    x: LawFit,
    y: LawFit,
    *,
    span: float = 1e4,
    level: float = LEVEL,
) -> Crossing:
    """First crossing of the two frontiers between C_min / span and C_max * span."""
    low, high = min(reach(x)[0], reach(y)[0]), max(reach(x)[1], reach(y)[1])
    grid = np.geomspace(low / span, high * span, 400)
    gap = np.log(x.frontier(grid)) - np.log(y.frontier(grid))
    place = _first_zero(np.log(grid), gap[None])[0]
    compute = float(np.exp(place))
    loss = float(x.frontier(np.array([compute]))[0]) if (
        np.isfinite(place)
    ) else float("nan")  # fmt: skip
    inside = all(frontier_within(fit, [compute])[0] for fit in (x, y))
    if x.draws is None or y.draws is None:
        nan = float("nan")
        return Crossing(loss, compute, nan, nan, nan, bool(inside))
    coarse = grid[::4]
    sides = [np.log(f.frontier_draws(coarse)) for f in (x, y)]
    count = min(len(s) for s in sides)
    places = _first_zero(np.log(coarse), sides[0][:count] - sides[1][:count])
    crossed = np.isfinite(places)
    lo = hi = np.array(np.nan)
    if crossed.any():
        lo, hi = quantiles(np.exp(places[crossed]), level)
    return Crossing(loss, compute, float(lo), float(hi), float(crossed.mean()), bool(inside))


def _first_zero(x: Array, gap: Array) -> Array:
    """Abscissa of the first sign change of each row (b, m), linearly interpolated; NaN if none.

    A gap of exactly zero counts as positive, so that a crossing on a grid point is found once, and
    frontiers that coincide do not cross.
    """
    change = (gap[:, :-1] >= 0) != (gap[:, 1:] >= 0)
    at = change.argmax(axis=1)
    rows = np.arange(len(gap))
    left, right = gap[rows, at], gap[rows, at + 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        place = x[at] + (x[at + 1] - x[at]) * left / (left - right)
    return np.where(change.any(axis=1), place, np.nan)

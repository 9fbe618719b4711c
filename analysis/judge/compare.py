"""How much compute one architecture saves over another, as a function of loss.

    compute_multiplier(x, y) -> CompareResult
        m(L) = C_y(L) / C_x(L): how many times the compute of x must y spend for the same loss
        (above 1: x is the more efficient). C(L) inverts the compute-optimal frontier of each law.
        Intervals come from the same resampled runs for both (paired) when the fits were drawn over
        clusters with equal labels; unpaired intervals are wider and are marked.

Where the frontiers cross: crossing.py. Shared against separate exponents:
shared_exponents.py.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError, FitWarning
from analysis.fit.drawing import figure_of
from analysis.fit.law_fit import LawFit
from analysis.fit.within import frontier_within
from analysis.io.saved import saved
from analysis.judge.crossing import Crossing, crossing
from analysis.judge.frontier import compute_for_loss, reach
from analysis.units import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BASELINE = "llama"
_NEGLIGIBLE = 0.05
"""A multiplier within 5 % of 1 is called no practical difference when its interval is as narrow."""


@dataclass(frozen=True)
class CompareResult:
    """Compute multiplier of x over y."""

    x: str
    y: str
    level: float
    paired: bool
    """Whether both sides of every draw come from the same resampled runs."""
    frame: pd.DataFrame
    """Columns loss, c_x, c_y, multiplier, lo, hi, inside (both have reached the loss, and the
    optimum of both for it is within the data: `analysis.fit.within`); one row per loss, from high
    to low."""
    crossing: Crossing
    verdict: str
    """One sentence that says no more than the intervals allow."""
    warnings: list[FitWarning]
    compute: tuple[str, str] = ("", "")
    """Under which C the frontiers of x and y are taken, in words."""

    @property
    def judged(self) -> int:
        """The row that the verdict ends with (`judged_row`)."""
        return judged_row(self.frame)

    @property
    def crossing_words(self) -> str:
        """Where the frontiers cross, in one sentence."""
        return self.crossing.describe(self.x, self.y, self.level)

    def table(self) -> pd.DataFrame:
        """The frame."""
        return self.frame

    def to_json(self) -> str:
        """JSON at full precision."""
        return json.dumps({
            "schema": 1, "x": self.x, "y": self.y, "level": self.level, "paired": self.paired,
            "table": self.frame.to_dict("list"), "crossing": asdict(self.crossing),
            "verdict": self.verdict, "compute": self.compute,
            "warnings": [w.as_dict() for w in self.warnings],
        })  # fmt: skip

    @staticmethod
    def from_json(text: str) -> CompareResult:
        """Inverse of `to_json`."""
        with saved(text, "CompareResult") as r:
            return CompareResult(
                r["x"], r["y"], r["level"], r["paired"], pd.DataFrame(r["table"]),
                Crossing(**r["crossing"]), r["verdict"],
                [FitWarning.from_dict(w) for w in r["warnings"]], tuple(r.get("compute", ("", ""))),
            )  # fmt: skip

    def plot(self, *, style: str = "house") -> Figure:
        """The multiplier against the compute of y."""
        return figure_of(self, style=style)

    def _repr_html_(self) -> str:
        return f"<p>{self.verdict}</p>{self.frame.to_html(index=False)}"


def baseline_of(names: Iterable[str], asked: str | None = None) -> str:
    """The group that others are compared with: the one asked for, else llama, else the first.

    Raises:
        AnalysisError: no group of the name asked for.
    """
    known = list(names)
    if asked is None:
        return _BASELINE if _BASELINE in known else known[0]
    if asked not in known:
        near = difflib.get_close_matches(asked, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise AnalysisError(f"baseline {asked!r}: no such group; {hint}")
    return asked


def judged_row(frame: pd.DataFrame) -> int:
    """Row of the lowest loss within the data of both; where none is, of the lowest loss."""
    inside = np.flatnonzero(frame["inside"].to_numpy(dtype=bool))
    return int(inside[-1]) if len(inside) else len(frame) - 1


def lowest_common(x: Array, y: Array) -> float:
    """The lowest loss that both of two groups of points have reached."""
    return max(float(np.min(x)), float(np.min(y)))


def compute_multiplier(
    x: LawFit,
    y: LawFit,
    *,
    names: tuple[str, str] = ("x", "y"),
    losses: Array | None = None,
    compute: Array | None = None,
    level: float = 0.9,
) -> CompareResult:
    """Equal-loss compute multiplier of x over y.

    Args:
        x, y: fits of the same loss on the same data; with draws for intervals.
        names: what to call them.
        losses: where to compare; default 25 losses over the compute that both have seen, the last
            of them the lowest that both have reached.
        compute: instead of losses, budgets of x.
        level: of the intervals.

    Raises:
        AnalysisError: no common range of compute, or fits without compute.
    """
    low, high = (max(reach(x)[0], reach(y)[0]), min(reach(x)[1], reach(y)[1]))
    if losses is None:
        if compute is None:
            if not low < high:
                raise AnalysisError(
                    f"{names[0]} and {names[1]} share no range of compute ({_range(x)} and "
                    f"{_range(y)} FLOPs): their runs cannot be compared at an equal loss that both "
                    "have seen. Pass losses to compute_multiplier to compare by extrapolation"
                )
            lowest = lowest_common(x.observations.loss, y.observations.loss)
            losses = x.frontier(np.geomspace(low, high, 25))
            losses = np.append(losses[losses > lowest], lowest)
        else:
            losses = x.frontier(compute)
    losses = np.sort(np.asarray(losses, dtype=float))[::-1]
    c_x = compute_for_loss(x, losses)
    c_y = compute_for_loss(y, losses)
    frame = pd.DataFrame({"loss": losses, "c_x": c_x, "c_y": c_y})
    with np.errstate(invalid="ignore"):
        frame["multiplier"] = c_y / c_x
    paired = False
    ratio: Array | None = None
    if x.draws is not None and y.draws is not None:
        paired = x.draws.paired_with(y.draws)
        ratio = ratio_draws(x, y, losses)
        frame["lo"], frame["hi"] = np.quantile(
            ratio, [(1 - level) / 2, (1 + level) / 2], axis=0, method="nearest"
        )
    # A law may promise, even at a size that was trained, losses that no run has shown.
    frame["inside"] = (
        frontier_within(x, c_x) & frontier_within(y, c_y)
        & (losses >= lowest_common(x.observations.loss, y.observations.loss))
    )  # fmt: skip
    cross = crossing(x, y, level=level)
    warnings = _warnings(frame, paired, ratio is not None, names)
    verdict = _verdict(frame, names, level, ratio is not None)
    words = x.compute_model.describe(), y.compute_model.describe()
    return CompareResult(names[0], names[1], level, paired, frame, cross, verdict, warnings, words)


def ratio_draws(x: LawFit, y: LawFit, losses: Array) -> Array:
    """C_y / C_x of every pair of refits (draws, losses)."""
    d_x, d_y = (compute_for_loss(fit, losses, draws=True) for fit in (x, y))
    count = min(len(d_x), len(d_y))
    with np.errstate(invalid="ignore", divide="ignore"):
        # A refit under which neither reaches the loss does not separate them
        return np.nan_to_num(d_y[:count] / d_x[:count], nan=1.0, posinf=np.inf)


def _range(fit: LawFit) -> str:
    low, high = reach(fit)
    return f"{low:.2g} to {high:.2g}"


def _warnings(
    frame: pd.DataFrame, paired: bool, drawn: bool, names: tuple[str, str]
) -> list[FitWarning]:
    found: list[FitWarning] = []
    if drawn and not paired:
        found.append(
            FitWarning(
                "one_draw_source",
                f"{names[0]} and {names[1]} were resampled independently, so noise that their "
                "runs share does not cancel and intervals are wide. To draw them in pairs, name a "
                "column whose values recur in both, such as a size or a seed (`clusters`; "
                "--clusters on the command line).",
            )
        )
    outside = int((~frame["inside"].to_numpy(dtype=bool)).sum())
    if outside:
        found.append(
            FitWarning(
                "extrapolation",
                f"{outside} of {len(frame)} losses were not reached by both, or have their "
                "optimum beyond the sizes, tokens or compute of one of the two.",
                {"outside": outside},
            )
        )
    return found


def _verdict(frame: pd.DataFrame, names: tuple[str, str], level: float, drawn: bool) -> str:
    """The clearest difference first, then the lowest loss within the data of both."""
    last = _verdict_at_the_end(frame, names, level, drawn)
    clear = _clearest(frame, names, level) if drawn else ""
    return f"{clear} {last}" if clear else last


def _clearest(frame: pd.DataFrame, names: tuple[str, str], level: float) -> str:
    """Where within the data one of the two certainly needs less, over the widest such stretch of
    losses; empty where it is nowhere, or a single loss."""
    lo, hi, m, loss, spent = (
        frame[k].to_numpy(dtype=float) for k in ("lo", "hi", "multiplier", "loss", "c_y")
    )
    inside = frame["inside"].to_numpy(dtype=bool) & np.isfinite(m)
    best: tuple[float, int, int, bool] | None = None
    for first in (True, False):
        clear = inside & ((lo > 1) if first else (hi < 1))
        edges = np.flatnonzero(np.diff(np.concatenate([[0], clear.astype(int), [0]])))
        for start, stop in zip(edges[::2], edges[1::2] - 1, strict=True):
            span = float(np.log(spent[stop] / spent[start]))
            if start < stop and (best is None or span > best[0]):
                best = span, int(start), int(stop), first
    if best is None:
        return ""
    _, start, stop, first = best
    better, worse = names if first else names[::-1]
    times = m[start : stop + 1] if first else 1 / m[start : stop + 1]
    low, high = float(times.min()), float(times.max())
    factor = _times(low) if _times(low) == _times(high) else f"{_times(low)} to {_times(high)}"
    return (
        f"From loss {loss[start]:.3f} down to {loss[stop]:.3f}, {better} is more efficient: "
        f"{worse} needs {factor} times its compute (every {level:.0%} interval excludes 1)."
    )


def _verdict_at_the_end(
    frame: pd.DataFrame, names: tuple[str, str], level: float, drawn: bool
) -> str:
    x, y = names
    index = judged_row(frame)
    loss, m = (float(frame[k].to_numpy()[index]) for k in ("loss", "multiplier"))
    place = f"At loss {loss:.3f}, the lowest within the data of both"
    if not bool(frame["inside"].to_numpy()[index]):
        place = f"At loss {loss:.3f}, beyond the data of one of them"
    if not np.isfinite(m):
        return f"{place}, {_say_unreached(frame, names, index)} by the point estimates."
    if not drawn:
        return (
            f"{place}, {y} needs {_times(m)} times the compute of {x} by the point estimates; "
            "without a bootstrap nothing can be said about significance."
        )
    lo, hi = (float(frame[k].to_numpy()[index]) for k in ("lo", "hi"))
    spread = f"({level:.0%} interval {_times(lo)} to {_times(hi)})"
    if lo > 1 - _NEGLIGIBLE and hi < 1 + _NEGLIGIBLE:
        end = f"{x} and {y} need the same compute within {_NEGLIGIBLE:.0%}"
        return f"{place}, {end}: the multiplier is {m:.2f} {spread}."
    if lo > 1:
        return f"{place}, {x} is more efficient: {y} needs {_times(m)} times its compute {spread}."
    if hi < 1:
        return f"{place}, {y} needs only {_times(m)} times the compute of {x} {spread}."
    return (
        f"{place}, the data do not separate {x} and {y}: {y} needs {_times(m)} times the compute "
        f"of {x}, but the interval includes 1 {spread}."
    )


def _times(factor: float) -> str:
    """A factor with two decimals, or with two digits where these would be zeros or too many."""
    return f"{factor:.2f}" if 0.095 <= factor < 100 else f"{factor:.2g}"


def _say_unreached(frame: pd.DataFrame, names: tuple[str, str], index: int) -> str:
    """Which of the two never comes down to a loss."""
    never = [name for name, column in zip(names, ("c_x", "c_y"), strict=True)
             if not np.isfinite(frame[column].to_numpy(dtype=float)[index])]  # fmt: skip
    return f"{'neither of the two reaches' if len(never) == 2 else f'{never[0]} does not reach'} it"

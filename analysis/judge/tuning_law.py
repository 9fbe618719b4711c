"""Laws of hyper-parameters: which learning rate or batch is best, as a function of N and D.

    tuning_law(table, setting="lr") -> TuningLaw
        1. runs of equal N and D form a valley over the setting; of several with one value of it,
           which differ in other settings, the lowest counts
        2. the best setting of each: a parabola of log loss in the log of the setting, through the
           lowest run and its neighbours; where the lowest is the first or last that was tried the
           optimum lies outside, and the valley is left out, by name
        3. log best = log k + p log N + q log D, by least squares
        4. intervals: valleys are resampled, and so are the residuals of losses within them

An exponent whose interval is wider than `_OPEN` or over which N and D cannot be told apart is not
identified, and is called so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.fit.uncertainty import quantiles
from analysis.io.cells import read_cells
from analysis.io.frames import by, numbers, rows
from analysis.units import LEVEL, Array

_OPEN = 0.6
"""Width of a 90 % interval from which an exponent is called not identified: .3 each way is from
N^0 to more than any published law."""
_COLLINEAR = 0.995
_FEWEST = 4
_COUNTED = ("batch", "bs", "tokens", "steps")
"""In names of settings that are counts: 64k may stand there, and 65,536."""
_REACH = 2
"""Neighbours on either side of the lowest run that the parabola goes through."""


@dataclass(frozen=True)
class Valley:
    """Runs that differ in the setting alone."""

    n: float
    d: float
    setting: Array
    """Tried values, ascending (k,)."""
    loss: Array
    """Losses (k,)."""
    best: float
    """Setting at the bottom; NaN where it lies outside what was tried."""
    scatter: float
    """Root mean square of log losses about the parabola; NaN through three points."""
    note: str = ""


@dataclass(frozen=True)
class TuningLaw:
    """best = k N^p D^q."""

    setting: str
    values: dict[str, float]
    """k, and the exponents that were fitted: N, D."""
    draws: dict[str, Array]
    valleys: list[Valley]
    notes: list[str] = field(default_factory=list[str])

    def interval(self, name: str, level: float = LEVEL) -> tuple[float, float]:
        """Percentile interval of k or an exponent."""
        low, high = quantiles(self.draws[name], level)
        return float(low), float(high)

    def identified(self, name: str) -> bool:
        """Whether the data tell an exponent."""
        low, high = self.interval(name)
        return high - low < _OPEN

    def predict(self, n: float, d: float) -> float:
        """The best setting at N and D."""
        return float(self.values["k"] * n ** self.values.get("N", 0.0)
                     * d ** self.values.get("D", 0.0))  # fmt: skip

    def describe(self) -> list[str]:
        """The law and what it rests on, a sentence each."""
        used = [v for v in self.valleys if np.isfinite(v.best)]
        powers = " ".join(f"{x}^{p:.3f}" for x, p in self.values.items() if x != "k")
        found = [f"best {self.setting} = {self.values['k']:.4g} {powers}, from {len(used)} of "
                 f"{len(self.valleys)} valleys."]  # fmt: skip
        for name in self.values:
            if name == "k":
                continue
            low, high = self.interval(name)
            text = f"exponent of {name}: {self.values[name]:.3f} [{low:.3f}, {high:.3f}]"
            found.append(text + ("." if self.identified(name) else ": not identified."))
        return [*found, *self.notes]

    def as_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "setting": self.setting, "values": self.values,
            "intervals": {k: list(self.interval(k)) for k in self.values},
            "identified": {k: self.identified(k) for k in self.values if k != "k"},
            "level": LEVEL, "words": self.describe(),
            "valleys": [{"n": v.n, "d": v.d, "tried": v.setting.tolist(),
                         "best": v.best, "note": v.note} for v in self.valleys],
        }  # fmt: skip


def tuning_law(
    table: pd.DataFrame, setting: str, *, bootstrap: int = 1000, seed: int = 0
) -> TuningLaw:
    """The law of the best setting.

    Args:
        table: columns n_params, tokens, loss and the setting.
        setting: column of what was swept, positive.
        bootstrap: resamplings for the intervals.
        seed: of the bootstrap.

    Raises:
        AnalysisError: a column is missing, or too few valleys have their bottom inside.
    """
    missing = [c for c in ("n_params", "tokens", "loss", setting) if c not in table]
    if missing:
        raise AnalysisError(f"a law of {setting} needs columns for N, D, the loss and {setting}; "
                            f"{', '.join(missing)} is missing")  # fmt: skip
    valleys = find_valleys(table, setting)
    used = [v for v in valleys if np.isfinite(v.best)]
    if len(used) < _FEWEST:
        why = "; ".join(f"N={v.n:.3g}, D={v.d:.3g}: {v.note}" for v in valleys[:4] if v.note)
        raise AnalysisError(
            f"{len(used)} of {len(valleys)} sweeps over {setting} have their best value inside "
            f"what was tried; a law needs {_FEWEST}" + (f" ({why})" if why else "")
        )
    x, names, notes = _axes(used)
    outside = len(valleys) - len(used)
    if outside:
        notes.append(f"{outside} sweep(s) are left out: their lowest loss is at an end of what was "
                     "tried, or too few values were.")  # fmt: skip
    y = np.log([v.best for v in used])
    theta = np.linalg.lstsq(x, y, rcond=None)[0]
    drawn = _draws(used, x, bootstrap, seed)
    keys = ["k", *names]
    values = {key: float(np.exp(v)) if key == "k" else float(v)
              for key, v in zip(keys, theta, strict=True)}  # fmt: skip
    draws = {key: np.exp(column) if key == "k" else column
             for key, column in zip(keys, drawn.T, strict=True)}  # fmt: skip
    return TuningLaw(setting, values, draws, valleys, notes)


def find_valleys(table: pd.DataFrame, setting: str) -> list[Valley]:
    """Sweeps over a setting at equal N and D, cheapest first.

    Raises:
        AnalysisError: a cell of the setting is no number.
    """
    columns = ["n_params", "tokens", setting, "loss"]
    table = table.assign(**{setting: _read(table, setting)})
    good = np.all([np.isfinite(numbers(table, c)) & (numbers(table, c) > 0) for c in columns],
                  axis=0)  # fmt: skip
    lowest = by(rows(table, good), "loss").drop_duplicates(columns[:3])
    found: list[Valley] = []
    n_all, d_all = numbers(lowest, "n_params"), numbers(lowest, "tokens")
    for n, d in sorted(set(zip(n_all.tolist(), d_all.tolist(), strict=True))):
        own = by(rows(lowest, (n_all == n) & (d_all == d)), setting)
        tried, loss = numbers(own, setting), numbers(own, "loss")
        if len(tried) > 1:
            best, scatter, note = _bottom(np.log(tried), np.log(loss))
            found.append(Valley(float(n), float(d), tried,
                                loss, float(np.exp(best)), scatter, note))  # fmt: skip
    return sorted(found, key=lambda v: v.n * v.d)


def _read(table: pd.DataFrame, setting: str) -> Array:
    """A setting as numbers: a file's cells are text until somebody asks for them."""
    count = any(part in setting.lower() for part in _COUNTED)
    cells = read_cells(table[setting], setting, count=count)
    if cells.bad:
        raise AnalysisError(f"column {setting!r} is to be swept, and its cell "
                            f"{next(iter(cells.bad.values()))!r} is no number")  # fmt: skip
    return cells.values


def _bottom(x: Array, y: Array) -> tuple[float, float, str]:
    """Where the parabola through the lowest point and its neighbours has its minimum."""
    if len(x) < 3:
        return float("nan"), float("nan"), f"{len(x)} values were tried"
    lowest = int(y.argmin())
    if lowest in (0, len(x) - 1):
        end = "smallest" if lowest == 0 else "largest"
        return float("nan"), float("nan"), f"the {end} value that was tried is the best"
    part = slice(max(0, lowest - _REACH), lowest + _REACH + 1)
    near, height = x[part] - x[lowest], y[part]
    curve, slope, _ = np.polyfit(near, height, 2)
    place = -slope / (2 * curve) if curve > 0 else np.nan
    low, high = near[0], near[-1]
    if not low < place < high:
        return float("nan"), float("nan"), "no valley: the losses do not bend upwards"
    left = height - np.polyval(np.polyfit(near, height, 2), near)
    free = len(near) - 3
    scatter = float(np.sqrt((left**2).sum() / free)) if free > 0 else float("nan")
    return float(x[lowest] + place), scatter, ""


def _axes(used: list[Valley]) -> tuple[Array, list[str], list[str]]:
    """Columns of the regression: a constant, log N, log D as far as they vary apart."""
    logs = {"N": np.log([v.n for v in used]), "D": np.log([v.d for v in used])}
    names = [k for k, v in logs.items() if np.ptp(v) > 1e-6]
    notes = [f"{k} takes one value: its exponent is left out." for k in logs if k not in names]
    if len(names) == 2:
        correlation = float(np.corrcoef(logs["N"], logs["D"])[0, 1])
        if abs(correlation) > _COLLINEAR:
            names = ["N"]
            notes.append("N and D move together: one exponent, in N, stands for both.")
    if not names:
        raise AnalysisError("all sweeps have one N and one D: there is a best value, and no law")
    return np.stack([np.ones(len(used)), *(logs[k] for k in names)], axis=1), names, notes


def _draws(used: list[Valley], x: Array, samples: int, seed: int) -> Array:
    """Refits (samples, p): valleys drawn with replacement, their losses shaken by their scatter."""
    rng = np.random.default_rng(seed)
    known = [v.scatter for v in used if np.isfinite(v.scatter)]
    usual = float(np.median(known)) if known else 0.0
    found: list[Array] = []
    while len(found) < samples:
        chosen = rng.integers(0, len(used), len(used))
        if np.linalg.matrix_rank(x[chosen]) < x.shape[1]:
            continue
        y = np.empty(len(used))
        for place, index in enumerate(chosen):
            valley = used[index]
            spread = valley.scatter if np.isfinite(valley.scatter) else usual
            shaken = np.log(valley.loss) + spread * rng.standard_normal(len(valley.loss))
            best = _bottom(np.log(valley.setting), shaken)[0]
            y[place] = best if np.isfinite(best) else np.log(valley.setting)[int(shaken.argmin())]
        found.append(np.linalg.lstsq(x[chosen], y, rcond=None)[0].astype(np.float64))
    return np.stack(found)

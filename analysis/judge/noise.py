"""How large the noise of a loss is, and where it comes from: the seed, or the evaluation.

repeats(points) -> Noise | None       rows of one N and D: what they differ by is noise, of which
                                      the known evaluation noise is a part, unless the text of the
                                      evaluation was the same
in_common(fits) -> Common | None      several targets of the same runs: what their residuals
                                      share belongs to the run, the rest to each target
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.fit.law_fit import LawFit
from analysis.io.frames import numbers
from analysis.units import LEVEL

_FEWEST = 2
"""Degrees of freedom below which nothing is said of repeats."""
_RUNS = 8
"""Runs below which residuals of several targets are not compared."""


@dataclass(frozen=True)
class Noise:
    """Standard deviations of log loss between rows of one N and D."""

    total: float
    lo: float
    hi: float
    """Interval of `total` (chi-squared)."""
    evaluation: float
    """Of the evaluation alone, as the table has it; NaN where it does not."""
    freedom: int
    """Rows less cells."""
    one_text: bool = False
    """Whether all runs were evaluated on one text: what its choice does to the loss is then common
    to them, and no part of what they differ by."""

    @property
    def common(self) -> bool:
        """Whether the evaluation's noise is no part of what runs differ by."""
        return self.one_text or self.evaluation > self.hi

    @property
    def seed(self) -> float:
        """What is left for the seed, and all else that differs between runs of one design."""
        if self.common:
            return self.total
        return float(np.sqrt(max(0.0, self.total**2 - np.nan_to_num(self.evaluation) ** 2)))

    def describe(self) -> str:
        """In a sentence."""
        text = (f"noise: runs of one N and D differ by {self.total:.2%} [{self.lo:.2%}, "
                f"{self.hi:.2%}] ({self.freedom} degrees of freedom)")  # fmt: skip
        if np.isfinite(self.evaluation) and self.common:
            text += f"; another text of the evaluation would move all by {self.evaluation:.2%}"
            if not self.one_text:
                text += ", which is more: they must have been evaluated on one text"
        elif np.isfinite(self.evaluation):
            text += (f"; of it {self.evaluation:.2%} is the evaluation's, which leaves "
                     f"{self.seed:.2%} for the seed")  # fmt: skip
        return text

    def as_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {**asdict(self), "seed": self.seed, "words": self.describe()}


def repeats(points: pd.DataFrame, *, one_text: bool = False) -> Noise | None:
    """The noise of rows that share group, N and D; None where there are hardly any.

    Args:
        points: of one group: n_params, tokens, loss, run_id, and loss_stderr where it is known.
        one_text: whether all of them were evaluated on the same text.
    """
    if not {"n_params", "tokens", "loss", "run_id"} <= {*points.columns}:
        return None
    loss = numbers(points, "loss")
    with np.errstate(all="ignore"):
        y = np.log(loss)
    good = np.isfinite(y) & ~points.duplicated(["run_id", "n_params", "tokens"]).to_numpy()
    cell = points.groupby(["n_params", "tokens"]).ngroup().to_numpy()[good]
    if not len(cell):
        return None
    _, cell = np.unique(cell, return_inverse=True)
    count = np.bincount(cell)
    within = y[good] - (np.bincount(cell, y[good]) / count)[cell]
    freedom = int(len(cell) - len(count))
    if freedom < _FEWEST:
        return None
    from scipy.special import chdtri  # loaded when used: it takes a tenth of a second

    total = float(np.sqrt((within**2).sum() / freedom))
    tail = (1 - LEVEL) / 2
    low, high = (float(total * np.sqrt(freedom / chdtri(freedom, p))) for p in (tail, 1 - tail))
    evaluation = float("nan")
    if "loss_stderr" in points:
        several = (count > 1)[cell]
        relative = (numbers(points, "loss_stderr") / loss)[good][several]
        if np.isfinite(relative).all():
            evaluation = float(np.sqrt((relative**2).mean()))
    return Noise(total, low, high, evaluation, freedom, one_text)


@dataclass(frozen=True)
class Common:
    """Residuals of several targets of the same runs, as standard deviations of log loss."""

    common: float
    """What the targets of a run share."""
    own: dict[str, float]
    """What is left of each target."""
    runs: int

    def describe(self) -> str:
        """In a sentence."""
        rest = ", ".join(f"{name} {value:.2%}" for name, value in self.own.items())
        return (
            f"scatter about the laws of {len(self.own)} targets over {self.runs} rows: "
            f"{self.common:.2%} is common to the targets of a run (its seed, or a misfit that they "
            f"share), the rest is each one's own (its evaluation): {rest}"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {**asdict(self), "words": self.describe()}


def in_common(fits: Mapping[str, LawFit]) -> Common | None:
    """Parts of the residuals by target; None for one target, or few rows that all of them have.

    With r_it the residual of row i and target t, the mean covariance of two targets is the variance
    of what a row's targets share; the rest of each variance is its own.
    """
    rows = [dict(zip(f.observations.rows, f.residuals()["residual"], strict=True))
            for f in fits.values()]  # fmt: skip
    shared = sorted(set.intersection(*(set(r) for r in rows))) if len(rows) > 1 else []
    if len(shared) < _RUNS:
        return None
    table = np.array([[r[i] for i in shared] for r in rows])
    free = len(shared) / max(1, len(shared) - next(iter(fits.values())).law.size)
    covariance = np.cov(table, bias=True) * free
    pairs = [covariance[i, j] for i, j in itertools.combinations(range(len(rows)), 2)]
    common = max(0.0, float(np.mean(pairs)))
    own = {name: float(np.sqrt(max(0.0, covariance[i, i] - common))) for i, name in enumerate(fits)}
    return Common(float(np.sqrt(common)), own, len(shared))

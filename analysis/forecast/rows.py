"""The rows a forecast is made from: checked, and grouped by the run or the size they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.errors import AnalysisError
from analysis.fit.checks import prepare
from analysis.fit.observations import Observations
from analysis.forecast.gaussian_process import Groups
from analysis.forecast.mean_law import Form, find_form
from analysis.laws.registry import get_law
from analysis.units import Array

FEWEST_ROWS, FEWEST_SIZES, LEAST_RANGE = 8, 3, 1.5
"""Fewer rows, sizes, or a smaller ratio of largest to smallest compute give no interval."""
_FEW_SIZES = 0.6
"""Rows share the effect of their size where there are fewer sizes than this share of the rows."""
_SAME_SIZE = 0.005
"""Sizes within this of each other in ln N are one."""


@dataclass(frozen=True)
class Rows:
    """Clean rows (n,) of one group, for one form."""

    form: str
    observations: Observations
    groups: Groups | None
    """Index of the run or size whose effect a row shares."""
    shared: Literal["run", "size", "nothing"]
    """What rows of one group share."""

    @property
    def columns(self) -> dict[str, Array]:
        """N, D and C by role, as far as known."""
        return self.observations.columns

    @property
    def loss(self) -> Array:
        """Measured losses (n,)."""
        return self.observations.loss

    @property
    def compute(self) -> Array:
        """C (n,): as given, else 6 N D, else NaN."""
        return self.observations.compute

    @property
    def sizes(self) -> int:
        """Distinct values of the form's first variable."""
        return int(_by_size(self.columns[find_form(self.form).columns[0]]).max()) + 1

    @property
    def too_few(self) -> str | None:
        """Why these rows give no interval; None where they do."""
        span = self.span
        if len(self.loss) < FEWEST_ROWS:
            return f"{len(self.loss)} rows; an interval needs at least {FEWEST_ROWS}"
        if self.sizes < FEWEST_SIZES:
            return f"{self.sizes} sizes; an interval needs at least {FEWEST_SIZES}"
        if span < LEAST_RANGE:
            return (f"the largest row has {span:.3g} times the compute of the smallest; an "
                    f"interval needs at least {LEAST_RANGE:g}")  # fmt: skip
        return None

    @property
    def span(self) -> float:
        """Ratio of the largest to the smallest compute, or to that of the form's variable."""
        axis = self.axis(self.columns)
        return float(axis.max() / axis.min())

    def axis(self, columns: Mapping[str, Array]) -> Array:
        """What a leap is measured along: C where it is known or follows from N and D, else the
        form's one variable."""
        if "c" in columns and "c" in self.columns:
            return columns["c"]
        if {"n", "d"} <= set(columns) and {"n", "d"} <= set(self.columns):
            return 6.0 * columns["n"] * columns["d"]
        return columns[find_form(self.form).columns[0]]

    def groups_of(self, columns: Mapping[str, Array], runs: list[str]) -> Groups:
        """The training group (t,) that each target belongs to, -1 where it is a new one."""
        count = len(runs)
        if self.groups is None:
            return np.full(count, -1)
        if self.shared == "run":
            index = {label: i for i, label in enumerate(self.observations.labels)}
            return np.array([index.get(run, -1) for run in runs])
        found = np.full(count, -1)
        known = np.log(self.columns["n"])
        for i, size in enumerate(np.log(columns["n"])):
            nearest = int(np.abs(known - size).argmin())
            if abs(known[nearest] - size) <= _SAME_SIZE:
                found[i] = self.groups[nearest]
        return found

    def take(self, keep: NDArray[np.bool_]) -> Rows:
        """The rows that a boolean mask selects."""
        return _grouped(self.form, self.observations.take(keep))


def gather(points: pd.DataFrame, form: str, pinned: Mapping[str, float] | None = None) -> Rows:
    """Checks a table for a form: columns n_params, tokens, flops and loss, and run_id.

    Raises:
        AnalysisError: a form that cannot be forecast with, absent columns, or too little left.
    """
    shape = find_form(form)
    # A pinned floor is no parameter: the checks are then those of the form without it.
    name = form
    if shape.floor and "E" in (pinned or {}):
        name = "chinchilla_no_e" if _two(shape) else form.removesuffix("_e")
    return _grouped(form, prepare(points, get_law(name)))


def _grouped(form: str, observations: Observations) -> Rows:
    """Rows of one run share its effect where runs have several rows; else rows of one size do."""
    count = len(observations.loss)
    if len(observations.labels) < count:
        return Rows(form, observations, observations.cluster, "run")
    if _two(find_form(form)):
        size = _by_size(observations.columns["n"])
        if int(size.max()) + 1 < _FEW_SIZES * count:
            return Rows(form, observations, size, "size")
    return Rows(form, observations, None, "nothing")


def _two(form: Form) -> bool:
    return len(form.columns) == 2


def _by_size(values: Array) -> Groups:
    """Index (n,) of each value among the distinct ones."""
    order = np.argsort(values, kind="stable")
    gaps = np.diff(np.log(values[order])) > _SAME_SIZE
    index = np.empty(len(values), dtype=np.int64)
    index[order] = np.concatenate([[0], np.cumsum(gaps)])
    return index


def pinned_values(texts: list[str]) -> dict[str, float]:
    """Parameters to hold, from words such as "E=1.4".

    Raises:
        AnalysisError: a word that is not NAME=NUMBER.
    """
    found: dict[str, float] = {}
    for text in texts:
        name, equals, number = text.partition("=")
        try:
            found[name.strip()] = float(number)
        except ValueError:
            equals = ""
        if not equals:
            raise AnalysisError(f"--fix {text}: write NAME=NUMBER, as in E=1.4")
    return found

"""Optima of every law under other choices, along one grid of budgets: what a page can ask.

    what_ifs(study) -> DataFrame
        arch, choice, setting, c, n, d, loss, lo, hi, inside

choice                what changes
as reported           nothing; with the intervals of the report
E held                the irreducible loss, at one value for all architectures
counting of N, of C   the column that counts parameters, or FLOPs (then also those of the budget)
one run left out      the run, for the runs that move the law most

Everything but the first row is a point estimate. The numbers are those of `fit_law`, `optimal`,
`influence` and `within`, so that a page that interpolates them says what the command line says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.errors import AnalysisError
from analysis.fit.fitting import fit_law
from analysis.fit.law_fit import LawFit
from analysis.fit.within import measured, within
from analysis.io.frames import numbers, rows, where, words
from analysis.judge.choices import COUNTINGS
from analysis.judge.sensitivity import STARTS
from analysis.judge.study import Study
from analysis.units import Array

REPORTED = "as reported"
E_HELD, N_COUNTED, C_COUNTED = "E held", "counting of N", "counting of C"
RUN_OUT = "one run left out"
E_SHARES = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
"""E is held at these shares of the lowest loss of all, rounded to two places."""
MOST_RUNS = 16
"""Runs left out, for each architecture those that move its parameters most."""


def what_ifs(result: Study) -> pd.DataFrame:
    """The table, in the order of choices; a choice that leaves too little to fit is left out."""
    parts = [
        _frame(law, result.compute, group, REPORTED, "").assign(
            lo=result.optima[group]["loss_lo"], hi=result.optima[group]["loss_hi"]
        )
        for group, law in result.laws.items()
    ]
    for choice, setting, options in _refits(result):
        for group in result.groups:
            parts += _refitted(result, group, choice, setting, **options)
    for group, law in result.laws.items():
        parts += _left_out(law, result.compute, group)
    frame = pd.concat(parts, ignore_index=True)
    return rows(frame, np.isfinite(numbers(frame, "n")) & np.isfinite(numbers(frame, "loss")))


def _frame(
    law: LawFit, compute: Array, group: str, choice: str, setting: str,
    values: Array | None = None, seen: NDArray[np.bool_] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Optima of a law along the grid, or with other parameters than its own; `seen` says which of
    its points those were fitted to."""
    values = law.values if values is None else values
    n, d = law.optimum_at(values, compute)
    data = measured(law) if seen is None else {k: v[seen] for k, v in measured(law).items()}
    return pd.DataFrame({
        "arch": group, "choice": choice, "setting": setting, "c": compute, "n": n, "d": d,
        "loss": law.law.loss_of_split(values, n, d, law.held), "lo": np.nan, "hi": np.nan,
        "inside": within(data, n=n, d=d, c=compute),
    })  # fmt: skip


def _left_out(law: LawFit, compute: Array, group: str) -> Iterator[pd.DataFrame]:
    """The frames without each of the runs that move the law most."""
    observations = law.observations
    moved = law.influence().head(MOST_RUNS)
    parameters = np.stack([numbers(moved, name) for name in law.law.parameters], axis=1)
    for name, values in zip(words(moved, "left_out"), parameters, strict=True):
        seen = observations.cluster != observations.labels.index(name)
        yield _frame(law, compute, group, RUN_OUT, name, values, seen)


def _refits(result: Study) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Choice, setting and what it changes for `fit_law`."""
    lowest = float(numbers(result.points, "loss").min())
    for held in dict.fromkeys(round(share * lowest, 2) for share in E_SHARES):
        if held > 0:
            yield E_HELD, f"{held:.2f}", {"fix": {"E": held}}
    usual = {"n": "n_params", "c": result.sweep.compute_column}
    for choice, role in ((N_COUNTED, "n"), (C_COUNTED, "c")):
        for label, column in COUNTINGS[role].items():
            given = result.points
            if column in given and not np.array_equal(given[column], given[usual[role]]):
                yield choice, label, {role: column}


def _refitted(
    result: Study, group: str, choice: str, setting: str, **options: Any
) -> list[pd.DataFrame]:
    """The frame of one architecture's law fitted otherwise; none where too little is left."""
    try:
        law = fit_law(
            "chinchilla", where(result.points, arch=group), clusters=result.sweep.unit,
            accounting=result.sweep.recorded, near=result.laws[group], starts=STARTS,
            **{"c": result.sweep.compute_column, **options},
        )  # fmt: skip
        return [_frame(law, result.compute, group, choice, setting)]
    except AnalysisError:
        return []

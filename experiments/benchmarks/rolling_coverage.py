"""How often larger runs of public suites lie in the intervals of a fit, and of a forecast.

    python -m experiments.benchmarks.rolling_coverage [--data DIR] [-o docs/fitting.md]

At each cut of `linscale fit`'s rolling hold-out the cheaper runs forecast the dearer ones twice: by
the law's bootstrap with one run's noise, which stands beside every fit, and by `linscale forecast`,
whose intervals hold the misfit of the form. Both are asked for 90 %. Every family of sets counts as
one, every set within it as one. The sets are not part of the repository: `docs/forecast.md` says
where they come from. With -o the table of that page is replaced.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.forecast.predictive import predict_from
from analysis.forecast.rows import gather
from analysis.io.frames import groups, numbers, rows, where, words
from analysis.judge.form_selection import holdout
from analysis.units import LEVEL
from experiments.benchmarks.public_ladders import Ladder, data_folder, public_ladders
from experiments.benchmarks.tables import put_table

STEPS, DRAWS = 4, 100
"""As beside `linscale fit`."""
MOST_KNOWN, MOST_HELD = 300, 60
"""Rows of a set that are used, and rows forecast at a cut by the second method."""


def coverage_of(ladder: Ladder) -> dict[str, Any] | None:
    """Forecasts, signed error and both coverages of one set; None where nothing can be held out."""
    points = ladder.points
    if len(points) > MOST_KNOWN:
        points = points.iloc[np.linspace(0, len(points) - 1, MOST_KNOWN).astype(int)]
    points = points.reset_index(drop=True)
    try:
        table = holdout("chinchilla", points, steps=STEPS, bootstrap=DRAWS, starts=3)
    except AnalysisError:
        return None
    loss = numbers(table, "loss")
    held = (loss >= numbers(table, "lo")) & (loss <= numbers(table, "hi"))
    inside: list[float] = []
    for cut in np.unique(numbers(table, "cut")):
        compute = numbers(points, "flops")
        known, dearer = rows(points, compute <= cut), rows(points, compute > cut)
        inside += _calibrated(known.reset_index(drop=True), dearer)
    return {
        "family": ladder.family, "forecasts": len(table),
        "error": float(numbers(table, "error").mean()), "bootstrap": float(held.mean()),
        "forecast": float(np.mean(inside)) if inside else float("nan"),
    }  # fmt: skip


def _calibrated(known: pd.DataFrame, dearer: pd.DataFrame) -> list[float]:
    """Whether each dearer run lies in the interval of the calibrated law; nothing without one."""
    if len(dearer) > MOST_HELD:
        dearer = dearer.iloc[np.linspace(0, len(dearer) - 1, MOST_HELD).astype(int)]
    try:
        predictive = predict_from(gather(known, "chinchilla"), {})
    except AnalysisError:
        return []
    if predictive.no_interval:
        return []
    targets = {"n": numbers(dearer, "n_params"), "d": numbers(dearer, "tokens")}
    draws = predictive.draw(targets, words(dearer, "run_id"))
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    loss = numbers(dearer, "loss")
    return [float(v) for v in (loss >= low) & (loss <= high)]


def summary(found: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """The table of the page: a row a family, and all of them, each family counting once."""
    frame = pd.DataFrame(found)
    names = ("error", "bootstrap", "forecast")
    families = {f: where(frame, family=f) for f in groups(frame, "family")}
    means = {f: {n: float(np.nanmean(numbers(own, n))) for n in names}
             for f, own in families.items()}  # fmt: skip
    table = [
        {"family": f, "sets": str(len(own)), "forecasts": f"{numbers(own, 'forecasts').sum():.0f}",
         **_cells(means[f])}
        for f, own in families.items()
    ]  # fmt: skip
    whole = {n: float(np.mean([means[f][n] for f in means])) for n in names}
    return [*table, {"family": "all families", "sets": str(len(frame)),
                     "forecasts": f"{numbers(frame, 'forecasts').sum():.0f}",
                     **_cells(whole)}]  # fmt: skip


def _cells(means: dict[str, float]) -> dict[str, str]:
    return {
        "mean error": f"{means['error']:+.1%}",
        "in the 90 % of a fit": f"{means['bootstrap']:.0%}",
        "in the 90 % of `linscale forecast`": f"{means['forecast']:.0%}",
    }


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="folder of the public sets")
    parser.add_argument("-o", "--output", type=Path, help="page whose table is replaced")
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # refits far out
        for ladder in public_ladders(data_folder(options.data)):
            if not ladder.only_compute and (row := coverage_of(ladder)) is not None:
                found.append(row)
                print(ladder.name, row, flush=True)
    table = summary(found)
    for row in table:
        print(" | ".join(row.values()))
    if options.output:
        caption = f"Measured {date.today():%Y-%m-%d} by `python -m {__spec__.name}`."
        put_table(options.output, "rolling coverage", caption, table)


if __name__ == "__main__":
    main()

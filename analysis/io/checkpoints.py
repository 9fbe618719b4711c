"""Checkpoints of runs that had not ended: how many, and how far above ended runs they lie.

A loss in the middle of a learning-rate schedule lies above that of a run that ended there, and a
law through both is bent. Two things show it: a column of the learning rate that falls within runs,
and shorter runs of the same size, which ended where longer ones were still on their way.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.io.cells import read_cells
from analysis.io.columns import simplify
from analysis.io.frames import numbers, words

_RATES = ("lr", "learning_rate", "learningrate")
_ABOVE = 1.2
"""A rate this many times that at the end of its run had not come down."""
_LONGER, _FEWEST, _GAP = 1.1, 3, 0.003
"""Runs so many times longer are compared, in at least so many pairs; a median gap of log loss."""


def unended(kept: pd.DataFrame, runs: str) -> list[str]:
    """A note where rows are checkpoints before the end of their run; a warning where they are
    known to lie in the middle of a schedule.

    Args:
        kept: the rows that are used; of one with a column `tokens` and runs of several rows.
        runs: the columns that tell runs apart, for the remedy.
    """
    if not {"tokens", "loss"} <= {*kept.columns}:
        return []
    of_run = [kept[name] for name in ("run_id", "n_params") if name in kept]
    run = pd.factorize(pd.MultiIndex.from_arrays(of_run))[0]
    order = np.lexsort((numbers(kept, "tokens"), run))
    run = run[order]
    last = np.append(run[1:] != run[:-1], True)
    early = int((~last).sum())
    if not early:
        return []
    found = [*_high_rate(kept, order, run, last), *_above_ended(kept, order, run, last)]
    text = f"{early} of {len(kept)} rows are checkpoints before the end of their run"
    remedy = f"--last-per {runs} keeps the ends alone"
    if not found:
        return [f"{text}. If their learning rate had not come down there, they lie above a law of "
                f"ended runs: {remedy}"]  # fmt: skip
    return [f"WARNING: {text}: {'; '.join(found)}. They bend the law: {remedy}"]


def _high_rate(
    kept: pd.DataFrame, order: NDArray[np.intp], run: NDArray[np.intp], last: NDArray[np.bool_]
) -> list[str]:
    """How many rows have a learning rate above that at the end of their run."""
    named = [str(c) for c in kept.columns if simplify(str(c).rsplit("/", 1)[-1]) in _RATES]
    if not named:
        return []
    rate = read_cells(kept[named[0]], named[0], count=False).values[order]
    at_end = rate[last][np.cumsum(last) - last]
    high = int((rate > _ABOVE * at_end).sum())
    return [f"at {high} of them {named[0]!r} had not come down to its end"] if high else []


def _above_ended(
    kept: pd.DataFrame, order: NDArray[np.intp], run: NDArray[np.intp], last: NDArray[np.bool_]
) -> list[str]:
    """How far longer runs lie above shorter ones of their size where those ended."""
    if "n_params" not in kept:
        return []
    with np.errstate(all="ignore"):
        d, y = (np.log(numbers(kept, name)[order]) for name in ("tokens", "loss"))
    first = np.flatnonzero(np.append(True, run[1:] != run[:-1]))
    ends = np.flatnonzero(last)
    size = pd.factorize(pd.Series(list(zip(words(kept, "arch"), numbers(kept, "n_params"),
                                           strict=True))))[0][order][ends]  # fmt: skip
    gaps: list[float] = []
    for short in range(len(ends)):
        there, measured = d[ends[short]], y[ends[short]]
        longer = np.flatnonzero((size == size[short]) & (d[ends] > there + np.log(_LONGER)))
        for k in longer:
            own = slice(first[k], ends[k] + 1)
            if d[first[k]] <= there and np.isfinite(y[own]).all():
                gaps.append(float(np.interp(there, d[own], y[own])) - float(measured))
    found = np.array([g for g in gaps if np.isfinite(g)])
    if len(found) < _FEWEST or np.median(found) < _GAP or np.mean(found > 0) < 0.75:
        return []
    return [f"where a shorter run of the same size ended, longer ones were {np.median(found):.1%} "
            f"above it (median of {len(found)} pairs)"]  # fmt: skip

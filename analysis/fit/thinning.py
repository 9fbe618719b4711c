"""Fewer rows that say nearly the same: a run's checkpoints repeat one another.

    spread(cluster, order, most) -> mask

Every run keeps the same number of rows, or all that it has, spread evenly over its own order, its
first and last among them. Where there are more runs than rows to keep, runs are taken evenly over
the order of their last rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from analysis.units import Array


def spread(cluster: NDArray[np.int64], order: Array, most: int) -> NDArray[np.bool_]:
    """Which rows (m,) to keep, at most `most`.

    Args:
        cluster: index of the run of each row, 0 and up.
        order: what orders the rows of a run (tokens, or compute).
        most: rows to keep.
    """
    rows = len(cluster)
    if rows <= most:
        return np.ones(rows, dtype=bool)
    sorted_rows = np.lexsort((order, cluster))
    sizes = np.bincount(cluster)
    ends = np.cumsum(sizes)
    runs = np.flatnonzero(sizes)
    if len(runs) > most:
        last = order[sorted_rows[ends[runs] - 1]]
        ranked = runs[np.argsort(last, kind="stable")]
        runs = ranked[np.linspace(0, len(ranked) - 1, most).astype(int)]
        return np.isin(np.arange(rows), sorted_rows[ends[runs] - 1])
    share = _share(sizes[runs], most)
    keep = np.zeros(rows, dtype=bool)
    for run in runs:
        own = sorted_rows[ends[run] - sizes[run] : ends[run]]
        count = min(share, len(own))
        # of one row the last, else evenly from the first to the last
        places = np.linspace(0, len(own) - 1, count) if count > 1 else np.array([len(own) - 1])
        keep[own[np.round(places).astype(int)]] = True
    return keep


def _share(sizes: NDArray[np.int64], most: int) -> int:
    """The largest number of rows a run with which no more than `most` are kept in all."""
    low, high = 1, int(sizes.max())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(sizes, middle).sum() <= most else (low, middle - 1)
    return low

"""What a forecast must beat: three ways to guess a loss without a law in N and D.

    nearest    the measured loss of the row nearest in size, and among those in tokens
    power      a pure power law L = A C^-alpha through the lower envelope of the rows
    ratio      the last two rungs of the envelope go on: the loss falls by the same ratio for the
               same ratio of compute

Each is a function of the rows that a seal holds and of the target, so that anybody can repeat it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from analysis.laws.power_sum import Array

NAMES = {
    "nearest": "nearest size",
    "power": "pure power law",
    "ratio": "last rung's ratio",
}
_RUNG = 1.5
"""Rungs of the envelope lie at least this factor of compute apart."""


def baselines(
    rows: Mapping[str, Sequence[float] | Array], target: Mapping[str, float | None]
) -> dict[str, float]:
    """Forecasts of one target, by baseline; NaN where a baseline has nothing to go by.

    Args:
        rows: columns loss, and of n, d and c those that are known.
        target: n, d and c where known.
    """
    columns = {k: np.asarray(v, dtype=float) for k, v in rows.items()}
    loss = columns["loss"]
    compute, at = _compute(columns), _compute_of(target)
    found = {"nearest": _nearest(columns, loss, target)}
    if compute is None or at is None:
        return found | {"power": math.nan, "ratio": math.nan}
    return found | {
        "power": _power(*envelope(compute, loss, 1.0), at),
        "ratio": _ratio(*envelope(compute, loss, _RUNG), at),
    }


def envelope(compute: Array, loss: Array, apart: float) -> tuple[Array, Array]:
    """Rows no cheaper row is as good as, at least a factor `apart` in compute from the next dearer
    one kept: C (m,) and loss (m,), cheapest first."""
    order = np.lexsort((loss, compute))
    lowest = np.minimum.accumulate(loss[order])
    first = np.concatenate([[True], lowest[1:] < lowest[:-1]])
    kept = order[first]
    chosen: list[int] = []
    for i in kept[::-1]:
        if not chosen or compute[i] * apart <= compute[chosen[-1]]:
            chosen.append(int(i))
    return compute[chosen[::-1]], loss[chosen[::-1]]


def _compute(columns: Mapping[str, Array]) -> Array | None:
    if "c" in columns:
        return columns["c"]
    return 6.0 * columns["n"] * columns["d"] if {"n", "d"} <= columns.keys() else None


def _compute_of(target: Mapping[str, float | None]) -> float | None:
    n, d, c = (target.get(k) for k in ("n", "d", "c"))
    if c is not None:
        return c
    return 6.0 * n * d if n is not None and d is not None else None


def _nearest(
    columns: Mapping[str, Array], loss: Array, target: Mapping[str, float | None]
) -> float:
    """Nearest in the first of N, D and C that both sides know; ties by the others."""
    distance = [np.round(np.abs(np.log(columns[k] / value)), 3)
                for k in ("n", "d", "c") if k in columns and (value := target.get(k))]  # fmt: skip
    if not distance:
        return math.nan
    return float(loss[np.lexsort(tuple(reversed(distance)))[0]])


def _power(compute: Array, loss: Array, at: float) -> float:
    if len(compute) < 2:
        return math.nan
    slope, level = np.polyfit(np.log(compute), np.log(loss), 1)
    return float(np.exp(level + slope * np.log(at)))


def _ratio(compute: Array, loss: Array, at: float) -> float:
    if len(compute) < 2:
        return math.nan
    steps = math.log(at / compute[-1]) / math.log(compute[-1] / compute[-2])
    return float(loss[-1] * (loss[-1] / loss[-2]) ** steps)

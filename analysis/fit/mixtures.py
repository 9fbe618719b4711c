"""Whether a fit pools what should have been told apart: several corpora, recipes, kinds of model.

A column of words that explains most of what a law misses is named. One whose values follow from N,
D or C (labels of sizes, of budgets) is none of these: there the form may be at fault.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.errors import FitWarning
from analysis.fit.observations import Observations
from analysis.units import Array

_EXPLAINED = 0.5
"""Share of the variance of the residuals, corrected for the number of values, from which a column
is named."""
_FOLLOWS = 0.9
"""Share of the variance of log N, D or C from which a column follows from it."""
_NEAR = 0.02
"""Of columns that explain as much but for this, the one with fewest values is named."""
_ROWS = 4
"""Rows a value that a column must have on average to be a kind rather than a name."""
_LEAST = 0.005
"""Scatter of log loss below which nothing is said: seeds differ by as much."""


def word_columns(data: pd.DataFrame) -> dict[str, NDArray[np.int64]]:
    """Columns that sort the rows into kinds, as a code for each row: no numbers, no names."""
    found: dict[str, NDArray[np.int64]] = {}
    for name in map(str, data.columns):
        cells = data[name]
        if not isinstance(cells, pd.Series) or pd.api.types.is_numeric_dtype(cells.dtype):
            continue
        codes, distinct = pd.factorize(cells.astype(str))
        numbers = np.asarray(pd.to_numeric(pd.Series(distinct), errors="coerce"), dtype=float)
        if not np.isfinite(numbers).all() and 2 <= len(distinct) <= len(data) / _ROWS:
            found[name] = codes.astype(np.int64)
    return found


def mixed(observations: Observations, kinds: pd.DataFrame, residual: Array) -> list[FitWarning]:
    """A warning where a column of words explains most of the residuals of one law for all.

    Args:
        observations: the points.
        kinds: their rows in the caller's table, in the same order.
        residual: log measured - log predicted (m,).
    """
    spread = float(np.std(residual))
    if spread < _LEAST or len(kinds) != len(residual):
        return []
    axes = [np.log(v) for r, v in observations.columns.items() if r in ("n", "d", "c")]
    shares = {
        name: share
        for name, codes in word_columns(kinds).items()
        if (share := explained(residual, codes)) > _EXPLAINED
        and all(explained(axis, codes) < _FOLLOWS for axis in axes)
    }
    if not shares:
        return []
    most = max(shares.values())
    values = {n: len(set(map(str, kinds[n]))) for n, share in shares.items()
              if share > most - _NEAR}  # fmt: skip
    name = min(values, key=lambda n: values[n])
    return [
        FitWarning(
            "mixed_groups",
            f"One law for all misses the losses by {spread:.1%}, and {shares[name]:.0%} of that "
            f"(in variance) is which of its {values[name]} values {name!r} has: these are "
            f"different laws. Fit each by itself (--group {name}), or keep one of them (--where).",
            {"column": name, "values": values[name], "explained": shares[name], "rms": spread},
        )
    ]


def explained(values: Array, codes: NDArray[np.int64]) -> float:
    """Share of the variance of values (m,) that lies between groups, corrected for their number."""
    count = np.bincount(codes)
    means = np.bincount(codes, values) / np.maximum(count, 1)
    total = float(((values - values.mean()) ** 2).sum())
    groups = int((count > 0).sum())
    if total <= 0 or len(values) <= groups:
        return 0.0
    within = float(((values - means[codes]) ** 2).sum())
    return 1.0 - within / total * (len(values) - 1) / (len(values) - groups)

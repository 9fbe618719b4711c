"""Whether the rows of one law are of several kinds that a further column tells apart.

    rows_differ(fit, rows) -> [FitWarning]

A table of several data sets, conditions or models, fitted by one law, has residuals that a column
of words explains. The column that takes away most of their absolute sum is named, with what its
values differ by.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import pandas as pd

from analysis.errors import FitWarning
from analysis.fit.law_fit import LawFit
from analysis.io.frames import numbers, words

_MOST, _FEWEST = 20, 3
"""Values of a column, and rows of a value, that make it one of kinds."""
_EXPLAINED = 0.5
"""Share of the absolute residuals that a column must take away."""
_NOTABLE = 0.005
"""Log loss between the medians of two values below which nothing is said."""
_SHOWN = 4


def rows_differ(fit: LawFit, data: pd.DataFrame) -> list[FitWarning]:
    """A warning where one column of words explains most of what the law leaves over.

    Args:
        fit: of rows of `data`.
        data: the rows of one law; only those of a file, whose columns are known, are judged.
    """
    own = set(data.attrs.get("columns", ())) - set(data.attrs.get("names", {}).values())
    table = fit.residuals()
    residual = numbers(table, "residual")
    used = cast(pd.DataFrame, data.loc[list(table["row"])])
    total = float(np.abs(residual - np.median(residual)).sum())
    best: tuple[float, str, dict[str, float]] = (_EXPLAINED, "", {})
    for name in sorted(own):
        if name not in used or pd.api.types.is_numeric_dtype(used[name]):
            continue
        kinds = words(used, name)
        middles = _medians(kinds, residual)
        if not middles:
            continue
        left = float(np.abs(residual - np.array([middles[kind] for kind in kinds])).sum())
        share = 1.0 - left / max(total, 1e-300)
        apart = max(middles.values()) - min(middles.values())
        if share > best[0] and apart > _NOTABLE:
            best = (share, name, middles)
    share, name, middles = best
    if not name:
        return []
    ends = sorted(middles.items(), key=lambda item: item[1])
    shown = ends if len(ends) <= _SHOWN else [*ends[: _SHOWN // 2], *ends[-_SHOWN // 2 :]]
    text = ", ".join(f"{kind} {np.expm1(value):+.1%}" for kind, value in shown)
    return [
        FitWarning(
            "rows_differ",
            f"Rows differ by {name!r}, which explains {share:.0%} of what the law leaves over "
            f"(median above or below it: {text}): one law does not describe them together. Fit one "
            f"for each with --group '{name}', or choose among them with --where.",
            {"column": name, "explained": share},
        )
    ]


def _medians(kinds: list[str], residual: np.ndarray) -> dict[str, float]:
    """The median residual of each value; none where the column is not one of kinds."""
    index = pd.Series(range(len(kinds))).groupby(pd.Series(kinds)).groups
    if not 2 <= len(index) <= min(_MOST, len(kinds) // _FEWEST):
        return {}
    if min(map(len, index.values())) < _FEWEST:
        return {}
    return {str(kind): float(np.median(residual[list(places)])) for kind, places in index.items()}

"""Typed access to data frames: pandas' own return types are unions that no checker can follow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.io.looks import ordered


def rows(frame: pd.DataFrame, mask: Any) -> pd.DataFrame:
    """The rows that a boolean mask selects."""
    return cast(pd.DataFrame, frame[np.asarray(mask, dtype=bool)])


def where(frame: pd.DataFrame, **values: object) -> pd.DataFrame:
    """The rows whose columns equal the given values."""
    mask = np.ones(len(frame), dtype=bool)
    for name, value in values.items():
        mask &= np.asarray(frame[name] == value, dtype=bool)
    return rows(frame, mask)


def numbers(frame: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """A column as floats."""
    return np.asarray(frame[name], dtype=np.float64)


def words(frame: pd.DataFrame, name: str) -> list[str]:
    """A column as text."""
    return [str(value) for value in frame[name]]


def take(frame: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """Some columns under new names, in that order."""
    return pd.DataFrame({new: frame[old] for old, new in names.items()})


def by(frame: pd.DataFrame, *names: str) -> pd.DataFrame:
    """Sorted by columns."""
    return frame.sort_values(list(names), ignore_index=True)


def groups(frame: pd.DataFrame, name: str) -> list[str]:
    """Distinct values of a column, architectures in their usual order."""
    return ordered(words(frame, name))


def finite(value: Any) -> Any:
    """JSON types with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON types, None for what is not a number."""
    return frame.astype(object).where(frame.notna(), None).to_dict("records")

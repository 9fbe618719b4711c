"""Profiles of loss over size, one per budget, and the minimum of each that has one."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.fit.checks import name_rows
from analysis.fit.divergence import find_diverged
from analysis.io.frames import numbers, rows
from analysis.laws.polynomials import find_outlying, polynomial_minimum
from analysis.units import Array

Shape = Literal["parabola", "cubic"]
DEGREES: dict[Shape, int] = {"parabola": 2, "cubic": 3}
"""Of the polynomial in log size."""
_SAME_BUDGET = 0.12
"""Points whose log compute is within this of their neighbour share a budget."""
_FLOOR, _NOISE = 0.25, 3.0
"""A floor below the lowest loss by more than this share of half the profile's rise, and by more
than so many standard deviations, was not measured."""


def budget_table(
    data: pd.DataFrame, budget: str | None, *, c: str, n: str, d: str, loss: str
) -> tuple[pd.DataFrame, int]:
    """Columns budget, c, n, d, loss, sorted; and how many unusable rows were left out."""
    columns: dict[str, Array] = {}
    for key, name in (("c", c), ("n", n), ("d", d), ("loss", loss), ("budget", budget)):
        if name is not None and name in data.columns:
            given = pd.to_numeric(data[name], errors="coerce")
            columns[key] = np.asarray(given, dtype=np.float64)
    if budget is not None and "budget" not in columns:
        raise AnalysisError(f"no column {budget!r} for the budget")
    if "loss" not in columns or "n" not in columns or not columns.keys() & {"c", "d", "budget"}:
        raise AnalysisError(f"IsoFLOP profiles need N, loss and C or D; the table has "
                            f"{', '.join(map(str, data.columns))}")  # fmt: skip
    if "c" not in columns:
        columns["c"] = (
            6 * columns["n"] * columns["d"] if "d" in columns else columns["budget"].copy()
        )
    if "d" not in columns:
        columns["d"] = columns["c"] / (6 * columns["n"])
    good = np.ones(len(data), dtype=bool)
    for values in columns.values():
        good &= np.isfinite(values) & (values > 0)
    columns = {k: v[good] for k, v in columns.items()}
    called = np.array(name_rows(data), dtype=object)[good]
    if budget is None:
        order = np.argsort(columns["c"], kind="stable")
        columns, called = {k: v[order] for k, v in columns.items()}, called[order]
        log_c = np.log(columns["c"])
        label = np.cumsum(np.diff(log_c, prepend=-np.inf) > _SAME_BUDGET) - 1
        if len(label):
            mean = np.bincount(label, weights=log_c) / np.bincount(label)
            columns["budget"] = np.exp(mean[label])
        else:
            columns["budget"] = columns["c"]
    named = pd.DataFrame(columns).assign(name=called)
    table = rows(named, ~named.duplicated(list(columns)))
    return table.sort_values(["budget", "n"], ignore_index=True), int((~good).sum())


def without_outlying(table: pd.DataFrame, shape: Shape) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table without rows far above their neighbours, and those rows with a `reason`.

    Rows far above all others in N and D diverged; rows far above the profile of their budget would
    bend it.
    """
    if not len(table):
        return table, table.assign(reason=[])
    loss = numbers(table, "loss")
    far, usual = find_diverged([numbers(table, "n"), numbers(table, "d")], loss)
    reason = np.where(far, [f"diverged: its neighbours have {u:.4g}" for u in usual], "").astype(
        object
    )
    degree = DEGREES[shape]
    for value in np.unique(numbers(table, "budget")):
        at = np.flatnonzero((numbers(table, "budget") == value) & ~far)
        above = find_outlying(np.log(numbers(table, "n")[at]), loss[at], degree)
        reason[at[above]] = f"far above the profile of {value:.3g} FLOPs"
    out = reason != ""
    return rows(table, ~out).reset_index(drop=True), rows(table, out).assign(reason=reason[out])


def minima_of(
    table: pd.DataFrame, shape: Shape, best: int | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Minimum of each budget, and the budgets without one."""
    found: list[dict[str, float]] = []
    refused: list[dict[str, float | str]] = []
    degree = DEGREES[shape]
    for value in np.unique(numbers(table, "budget")):
        part = lowest(table, float(value), best)
        sizes = len(np.unique(part["n"]))
        reason = ""
        if sizes < degree + 2:
            reason = f"{sizes} sizes; a {shape} needs {degree + 2}"
        row: dict[str, float] = {"budget": float(value), "points": float(len(part["n"]))}
        for axis in () if reason else ("n", "d"):
            x, y = np.log(part[axis]), part["loss"]
            place, height, se = polynomial_minimum(x, y, degree)
            rest = _rest(x, y, degree)
            if not np.isfinite(place):
                reason = "the profile has no minimum (it does not curve upwards)"
            elif not x.min() < place < x.max():
                reason = "the minimum lies outside the sizes trained"
            elif y.min() - height > max(_FLOOR * float(np.median(y) - y.min()), _NOISE * rest):
                reason = (
                    f"the floor of the {shape}, {height:.4g}, lies far below the lowest loss "
                    f"measured, {y.min():.4g}"
                )
            elif int(y.argmin()) in (int(x.argmin()), int(x.argmax())):
                reason = "the lowest loss is at an end of the sizes trained"
            if reason:
                break
            row[axis], row[f"{axis}_se_log"] = float(np.exp(place)), se
            row.setdefault("loss", height)
        if reason:
            refused.append({"budget": row["budget"], "reason": reason})
        else:
            found.append(row)
    return pd.DataFrame(found), pd.DataFrame(refused, columns=["budget", "reason"])


def _rest(x: Array, y: Array, degree: int) -> float:
    """Standard deviation of y about its polynomial."""
    residual = y - np.polyval(np.polyfit(x - x.mean(), y, degree), x - x.mean())
    return float(np.sqrt(residual @ residual / max(1, len(y) - degree - 1)))


def lowest(table: pd.DataFrame, budget: float, best: int | None) -> dict[str, Array]:
    """The points of one budget by rising loss, at most `best` of them."""
    at = np.flatnonzero(numbers(table, "budget") == budget)
    at = at[np.argsort(numbers(table, "loss")[at], kind="stable")][:best]
    return {k: numbers(table, k)[at] for k in ("n", "d", "loss")}

"""Whether a point (N, D, C), or a law's optimum at a budget, lies within the data of a fit.

    within(data, n=..., d=..., c=...)    points against the sizes, tokens and compute measured
    frontier_within(fit, compute)        the same for N*(C), D*(C) and C of a law
    frontier_reach(fit)                  budgets between which that holds, NaN where it never does

A budget that was spent is not enough: if every run was short, the best split of that budget may be
a smaller model on more tokens than any run has seen, and the law says it unchecked. Figures,
tables, verdicts and crossings all ask here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.fit.solver import EXACT
from analysis.units import Array

if TYPE_CHECKING:
    from analysis.fit.law_fit import LawFit

_SLACK = 1e-3
"""Relative, against rounding: an optimum on the edge is within."""
_STEPS = 400


def within(data: Mapping[str, Array], **point: Any) -> NDArray[np.bool_]:
    """Which points lie within the data: N within the sizes measured (parameters), D within the
    tokens, C within the compute (FLOPs).

    Args:
        data: measured values by role, "n", "d", "c"; each of any length.
        point: n, d, c in the same units: numbers, or arrays of one shape. A role that was not
            measured sets no limit.

    Returns:
        A mask of that shape; False where a value is not finite.
    """
    given = {role: np.asarray(value, dtype=float) for role, value in point.items()}
    shape = np.broadcast_shapes(*(value.shape for value in given.values()))
    inside = np.ones(shape, dtype=bool)
    for role, value in given.items():
        inside &= np.isfinite(value)
        known = np.asarray(data.get(role, ()), dtype=float)
        known = known[np.isfinite(known)]
        if len(known):
            inside &= (value >= known.min() * (1 - _SLACK)) & (value <= known.max() * (1 + _SLACK))
    return inside


def in_interval(values: Array, low: Array, high: Array) -> NDArray[np.bool_]:
    """Which values lie in their intervals, to rounding: those of points without noise are as narrow
    as that."""
    return (values >= low * (1 - EXACT)) & (values <= high * (1 + EXACT))


def measured(fit: LawFit) -> dict[str, Array]:
    """What a law was fitted to, by role, for `within`."""
    return {**fit.observations.columns, "c": fit.observations.compute}


def frontier_within(fit: LawFit, compute: Any) -> NDArray[np.bool_]:
    """Which budgets (FLOPs, (m,)) have their whole optimum within the data: C, and for a law in N
    and D also N*(C) and D*(C) of the estimate."""
    budgets = np.asarray(compute, dtype=float)
    inside = within(measured(fit), c=budgets)
    if fit.law.columns == ("c",) or not inside.any():
        return inside
    n, d = fit.optimum_at(fit.values, budgets[inside])
    inside[inside] = within(measured(fit), n=n, d=d)
    return inside


def frontier_reach(fit: LawFit) -> tuple[float, float]:
    """Least and most compute whose optimum lies within the data; NaN where none does."""
    spent = fit.observations.compute
    grid = np.geomspace(np.nanmin(spent), np.nanmax(spent), _STEPS)
    inside = grid[frontier_within(fit, grid)]
    return (float(inside[0]), float(inside[-1])) if len(inside) else (float("nan"), float("nan"))

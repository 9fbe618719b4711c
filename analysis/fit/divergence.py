"""Runs that diverged though nobody marked them: losses far above their neighbours in N and D.

find_diverged(axes, loss) -> mask
    1. log loss as a quadratic surface of the logarithms of the axes (N, D, or whichever are known),
       by absolute deviations: half of the rows may be wrong
    2. a row is far above it at 8 robust standard deviations and half of the loss there, both

Rows below the surface are never excluded: a loss that is too good is for a person to judge.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from analysis.units import Array

_FAR, _LEAST = 8.0, float(np.log(1.5))
_ITERATIONS = 60
_MOST = 2_000
"""Rows through which the surface is laid; of more, some of all sizes."""
_SPARE = 4
"""Rows beyond the terms of the surface, below which nothing is called far."""


def find_diverged(axes: list[Array], loss: Array) -> tuple[NDArray[np.bool_], Array]:
    """Which rows (m,) lie far above, and the loss of the surface there.

    Args:
        axes: positive columns (m,).
        loss: positive losses (m,).
    """
    y = np.log(loss)
    design = _design([np.log(a) for a in axes])
    rank = int(np.linalg.matrix_rank(design[:: 1 + len(y) // _MOST]))
    if len(y) < rank + _SPARE:
        return np.zeros(len(y), dtype=bool), loss
    some = np.argsort(axes[0], kind="stable")[:: 1 + len(y) // _MOST]
    part, target = design[some], y[some]
    weight, solution = np.ones(len(some)), np.zeros(design.shape[1])
    for _ in range(_ITERATIONS):
        root = np.sqrt(weight)
        solution = np.linalg.lstsq(part * root[:, None], target * root, rcond=None)[0]
        weight = 1.0 / np.maximum(np.abs(target - part @ solution), 1e-6)
    expected = design @ solution
    residual = y - expected
    spread = 1.4826 * float(np.median(np.abs(residual)))
    return residual > max(_FAR * spread, _LEAST), np.exp(expected)


def _design(logs: list[Array]) -> Array:
    """Constant, centred logarithms, and their products."""
    x = [(v - v.mean()) / max(float(np.ptp(v)), 1e-12) for v in logs]
    pairs = itertools.combinations_with_replacement(x, 2)
    return np.stack([np.ones_like(x[0]), *x, *(a * b for a, b in pairs)], axis=1)

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
    rank = int(np.linalg.matrix_rank(design))
    if len(y) < rank + _SPARE:
        return np.zeros(len(y), dtype=bool), loss
    weight = np.ones(len(y))
    expected = y
    for _ in range(_ITERATIONS):
        root = np.sqrt(weight)
        solution = np.linalg.lstsq(design * root[:, None], y * root, rcond=None)[0]
        expected = design @ solution
        weight = 1.0 / np.maximum(np.abs(y - expected), 1e-6)
    residual = y - expected
    spread = 1.4826 * float(np.median(np.abs(residual)))
    return residual > max(_FAR * spread, _LEAST), np.exp(expected)


def _design(logs: list[Array]) -> Array:
    """Constant, centred logarithms, and their products."""
    x = [(v - v.mean()) / max(float(np.ptp(v)), 1e-12) for v in logs]
    pairs = itertools.combinations_with_replacement(x, 2)
    return np.stack([np.ones_like(x[0]), *x, *(a * b for a, b in pairs)], axis=1)

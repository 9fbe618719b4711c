"""Minima of parabolas and cubics, for the profiles of a loss over sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from analysis.units import Array

_FAR, _LEAST, _MOST = 8.0, 0.03, 3000


def polynomial_minimum(x: Array, y: Array, degree: int) -> tuple[float, float, float]:
    """Place, height and standard error of the place of a polynomial's minimum; NaN without one."""
    centre = x.mean()
    design = np.vander(x - centre, degree + 1)  # highest power first
    solution: Array = np.linalg.lstsq(design, y, rcond=None)[0].astype(np.float64)
    place = float(vertex(solution[None])[0])
    if not np.isfinite(place):
        return float("nan"), float("nan"), float("nan")
    residual = y - design @ solution
    freedom = max(1, len(y) - degree - 1)
    covariance = np.linalg.pinv(design.T @ design) * float(residual @ residual) / freedom
    # dx*/dp = -(dp'(x*)/dp) / p''(x*)
    powers = np.arange(degree, -1, -1)
    slope = np.array([k * place ** (k - 1) if k else 0.0 for k in powers])
    curve = float(np.polyval(np.polyder(solution, 2), place))
    se = float(np.sqrt(slope @ covariance @ slope) / curve)
    return place + float(centre), float(np.polyval(solution, place)), se


def vertex(coefficients: Array) -> Array:
    """Local minimum (b,) of polynomials (b, 3 or 4), highest power first; NaN without one."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if coefficients.shape[1] == 3:
            place = -coefficients[:, 1] / (2 * coefficients[:, 0])
            return np.where(coefficients[:, 0] > 0, place, np.nan)
        p, q, r = (coefficients[:, i] for i in range(3))
        return (-2 * q + np.sqrt(4 * q**2 - 12 * p * r)) / (6 * p)


def find_outlying(x: Array, y: Array, degree: int) -> NDArray[np.bool_]:
    """Points (m,) far above the polynomial of least absolute deviations through the others.

    Far is 8 times the median deviation of the points that it does not pass through, and 3 % of y
    That polynomial passes through `degree` + 1 points, so all such choices are tried (at random
    where there are thousands).
    """
    far = np.zeros(len(x), dtype=bool)
    if len(x) < degree + 4:
        return far
    design = np.vander((x - x.mean()) / max(float(np.ptp(x)), 1e-12), degree + 1)
    chosen = np.array(list(itertools.islice(_choices(len(x), degree + 1), _MOST)))
    systems = design[chosen]
    chosen = chosen[np.abs(np.linalg.det(systems)) > 1e-9]
    if not len(chosen):  # repeats of at most `degree` places determine no polynomial
        return far
    solutions = np.linalg.solve(design[chosen], y[chosen][:, :, None])[:, :, 0]
    residual = y - solutions @ design.T
    best = residual[np.abs(residual).sum(axis=1).argmin()]
    free = np.sort(np.abs(best))[degree + 1 :]
    return (best > _FAR * float(np.median(free))) & (best > _LEAST * np.abs(y))


def _choices(count: int, size: int) -> Iterator[tuple[int, ...]]:
    """Every choice of `size` out of `count`; of very many, random ones."""
    if math.comb(count, size) <= _MOST:
        yield from itertools.combinations(range(count), size)
        return
    rng = np.random.default_rng(0)
    while True:
        yield tuple(int(k) for k in rng.choice(count, size, replace=False))

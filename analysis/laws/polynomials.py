"""Minima of parabolas and cubics, for the profiles of a loss over sizes."""

from __future__ import annotations

import numpy as np

from analysis.units import Array


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

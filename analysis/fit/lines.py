"""Straight lines in log-log space: y = coefficient * x^exponent, batched, optionally weighted.

Used for N*(C), D*(C) and pure power laws L(C). Weights are inverse variances of log y, so that a
weighted line agrees with published exponents that state them (Porian et al. 2406.19146).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from analysis.errors import AnalysisError
from analysis.fit.uncertainty import quantiles
from analysis.units import Array


@dataclass(frozen=True)
class Line:
    """y = coefficient * x^exponent."""

    coefficient: float
    exponent: float
    se: float
    """Standard error of the exponent from the scatter about the line; NaN with two points."""

    def predict(self, x: Array | float) -> Array:
        """y at x."""
        return self.coefficient * np.asarray(x, dtype=float) ** self.exponent


def fit_line(x: Array, y: Array, weight: Array | None = None) -> Line:
    """Least squares of log y on log x.

    Raises:
        AnalysisError: fewer than two distinct x, or values that are not positive.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    good = np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)
    if not good.all():
        raise AnalysisError(f"{int((~good).sum())} of {len(x)} points of a log-log line are not "
                            "positive numbers")  # fmt: skip
    if len(np.unique(x)) < 2:
        raise AnalysisError(f"a log-log line needs two distinct x, got {len(np.unique(x))}")
    w = np.ones_like(x) if weight is None else np.asarray(weight, dtype=float)
    slope, intercept = batched_lines(np.log(x), np.log(y)[None], w[None])
    residual = np.log(y) - intercept - slope * np.log(x)
    if len(x) > 2:
        centred = np.log(x) - np.average(np.log(x), weights=w)
        variance = float((w * residual**2).sum()) / (len(x) - 2) / float((w * centred**2).sum())
        se = float(np.sqrt(variance))
    else:
        se = float("nan")
    return Line(float(np.exp(intercept[0])), float(slope[0]), se)


def batched_lines(x: Array, y: Array, weight: Array) -> tuple[Array, Array]:
    """Slopes and intercepts (b,) of y (b, m) on x (m,) or (b, m) with weights (b, m)."""
    total = weight.sum(axis=1)
    mean_x = (weight * x).sum(axis=1) / total
    mean_y = (weight * y).sum(axis=1) / total
    centred = x - mean_x[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):  # one distinct x: no slope
        slope = (weight * centred * y).sum(axis=1) / (weight * centred**2).sum(axis=1)
    return slope, mean_y - slope * mean_x


def line_bands(draws: Mapping[str, Array], compute: Array, level: float) -> dict[str, Array]:
    """Intervals n_lo, n_hi, d_lo, d_hi of N* = n_coefficient C^a and D* = d_coefficient C^b.

    `draws` holds these four parameters (b,); without draws there are no intervals.
    """
    bands: dict[str, Array] = {}
    for name, exponent in (("n", "a"), ("d", "b")) if draws else ():
        log = np.log(draws[f"{name}_coefficient"])[:, None]
        values = np.exp(log + draws[exponent][:, None] * np.log(compute))
        bands[f"{name}_lo"], bands[f"{name}_hi"] = quantiles(values, level)
    return bands

"""Scores of forecasts against outcomes, in per cent of loss.

A forecast is kept as its quantiles at 1 to 99 %, so that anybody can score it from the file. All
scores are of log losses, times 100: an error of 1 is 1 % of the loss.

    pinball(q, tau, y)   (y - q) tau above the quantile, (q - y) (1 - tau) below it
    CRPS                 twice the mean pinball score over the 99 levels; |error| for a point
"""

from __future__ import annotations

import numpy as np
from scipy.stats import beta

from analysis.units import LEVEL, Array

LEVELS = np.arange(1, 100) / 100.0
"""Levels of the quantiles that are kept."""
PINBALL_AT = (0.05, 0.25, 0.5, 0.75, 0.95)


def quantiles_of(draws: Array) -> Array:
    """Quantiles (99, t) of draws (s, t)."""
    return np.quantile(draws, LEVELS, axis=0)


def interval(quantiles: Array, level: float) -> tuple[Array, Array]:
    """Central interval, from the quantiles (99, ...)."""
    low = round(100 * (1 - level) / 2) - 1
    return quantiles[low], quantiles[98 - low]


def pinball(quantiles: Array, outcome: Array) -> Array:
    """Pinball score (99, ...) of each level, in per cent of loss."""
    above = 100.0 * (np.log(outcome) - np.log(quantiles))
    levels = LEVELS.reshape(-1, *[1] * (quantiles.ndim - 1))
    return np.maximum(levels * above, (levels - 1.0) * above)


def crps(quantiles: Array, outcome: Array) -> Array:
    """Continuous ranked probability score (...), in per cent of loss."""
    return 2.0 * pinball(quantiles, outcome).mean(axis=0)


def binomial_interval(hits: int, count: int, level: float = LEVEL) -> tuple[float, float]:
    """Clopper and Pearson's interval of a coverage of `hits` out of `count`."""
    if count == 0:
        return 0.0, 1.0
    tail = (1.0 - level) / 2.0
    low = float(beta.ppf(tail, hits, count - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, count - hits)) if hits < count else 1.0
    return low, high

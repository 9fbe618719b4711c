"""Losses applied to residuals r = log(predicted loss) - log(measured loss).

    huber(delta)     r^2/2 inside delta, delta (|r| - delta/2) outside (Huber 1964)
    lad              |r|: the limit of huber(delta)/delta for delta -> 0
    least_squares    r^2/2: the limit of huber for delta -> infinity
    logcosh(delta)   delta^2 log cosh(r/delta): smooth, between the two
    asymmetric       huber(delta), weighted 2 (1 - below) where the law lies above the measurement
                     and 2 below elsewhere: about a share `below` of the runs comes to lie below
                     it, if delta is well below the noise. For ladders of which some rungs were
                     tuned badly: their losses are too high
    raw_least_squares  (e^r - 1)^2/2: squared errors of the loss itself, once each point is weighted
                     by its squared loss (`fit_law` does)

All are *summed* over points, never averaged: a mean only rescales the objective, but optimisers
with absolute tolerances then stop early (the error behind the published Hoffmann parameters,
arXiv 2404.10102). Objectives are reported in these units, so that a Huber objective can be compared
with SciPy's `scipy.special.huber` summed over points.

`lad` has no curvature; the minimiser reaches it through Huber losses of shrinking delta
(`Robust.path`), the last of which is 1e-8: far below any residual of real data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from analysis.errors import AnalysisError
from analysis.units import Array

Objective = Literal["huber", "lad", "least_squares", "logcosh", "asymmetric", "raw_least_squares"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)


def _tame(residual: Array) -> Array:
    """Residuals whose exponential stays finite."""
    return np.minimum(residual, 100.0)


_LAD_PATH = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)


@dataclass(frozen=True)
class Robust:
    """One of the losses above.

    Raises:
        AnalysisError: unknown name or a delta that is not positive.
    """

    name: Objective
    """Which loss."""
    delta: float = 1e-3
    """Width of the quadratic region, in units of log loss; not of `lad` and least squares."""
    below: float = 0.1
    """Share of runs that `asymmetric` leaves below the law."""

    def __post_init__(self) -> None:
        if self.name not in OBJECTIVES:
            raise AnalysisError(
                f"objective {self.name!r} is not known; choose one of {', '.join(OBJECTIVES)}"
            )
        if not (np.isfinite(self.delta) and self.delta > 0):
            raise AnalysisError(
                f"delta must be a positive number (units of log loss), got {self.delta!r}; "
                "0.001 is usual"
            )
        if not 0 < self.below < 1:
            raise AnalysisError(f"below must be a share between 0 and 1, got {self.below!r}")

    @property
    def gaussian(self) -> bool:
        """Whether far points count with their square, as under Gaussian noise."""
        return self.name in ("least_squares", "raw_least_squares")

    def _side(self, residual: Array) -> Array:
        """Weight of `asymmetric` on either side of the law."""
        return np.where(residual > 0, 2 * (1 - self.below), 2 * self.below)

    def path(self) -> tuple[Robust, ...]:
        """Losses to minimise one after the other, the last being this one (or its limit)."""
        if self.name == "lad":
            return tuple(Robust("huber", delta) for delta in _LAD_PATH)
        return (self,)

    def rho(self, residual: Array) -> Array:
        """Loss of each residual, same shape."""
        match self.name:
            case "huber":
                # u^2/2 + delta (|r| - u) with u = min(|r|, delta): no branch, no mask
                size = np.abs(residual)
                inner = np.minimum(size, self.delta)
                return inner * (size - 0.5 * inner)
            case "asymmetric":
                size = np.abs(residual)
                inner = np.minimum(size, self.delta)
                return self._side(residual) * inner * (size - 0.5 * inner)
            case "lad":
                return np.abs(residual)
            case "least_squares":
                return 0.5 * residual**2
            case "raw_least_squares":
                return 0.5 * np.expm1(_tame(residual)) ** 2
            case "logcosh":
                size = np.abs(residual) / self.delta
                return self.delta**2 * (size + np.log1p(np.exp(-2 * size)) - np.log(2.0))

    def psi(self, residual: Array) -> Array:
        """First derivative of `rho`, same shape."""
        match self.name:
            case "huber":
                return np.clip(residual, -self.delta, self.delta)
            case "asymmetric":
                return self._side(residual) * np.clip(residual, -self.delta, self.delta)
            case "lad":
                return np.sign(residual)
            case "least_squares":
                return residual
            case "raw_least_squares":
                return np.expm1(_tame(residual)) * np.exp(_tame(residual))
            case "logcosh":
                return self.delta * np.tanh(residual / self.delta)

    def curvature(self, residual: Array) -> Array:
        """Second derivative of `rho` (0 for `lad`), same shape."""
        match self.name:
            case "huber":
                return (np.abs(residual) <= self.delta).astype(np.float64)
            case "asymmetric":
                return self._side(residual) * (np.abs(residual) <= self.delta)
            case "lad":
                return np.zeros_like(residual)
            case "least_squares":
                return np.ones_like(residual)
            case "raw_least_squares":
                ratio = np.exp(_tame(residual))
                return ratio * (2 * ratio - 1)
            case "logcosh":
                return 1.0 - np.tanh(residual / self.delta) ** 2

    def scale_weight(self, residual: Array) -> Array:
        """psi(r)/r >= 0, the weight of iteratively reweighted least squares, same shape."""
        match self.name:
            case "huber":
                return self.delta / np.maximum(np.abs(residual), self.delta)
            case "asymmetric":
                return self._side(residual) * self.delta / np.maximum(np.abs(residual), self.delta)
            case "lad":
                return 1.0 / np.maximum(np.abs(residual), 1e-12)
            case "least_squares":
                return np.ones_like(residual)
            case "raw_least_squares":
                safe = np.where(np.abs(residual) < 1e-8, 1e-8, _tame(residual))
                return np.expm1(safe) / safe * np.exp(safe)
            case "logcosh":
                ratio = np.maximum(np.abs(residual) / self.delta, 1e-12)
                return np.tanh(ratio) / ratio

    def describe(self) -> str:
        """The loss in words, with its width."""
        if self.name == "raw_least_squares":
            return "sum of squared errors of the loss, relative to its mean square"
        widths = ("huber", "logcosh", "asymmetric")
        width = f", delta = {self.delta:g}" if self.name in widths else ""
        width += f", {self.below:.0%} of runs below the law" if self.name == "asymmetric" else ""
        return f"sum of {self.name.replace('_', ' ')} of log residuals{width}"

"""One estimation problem: a law, clean points and a loss, ready to be solved many times.

Fits, bootstraps, profiles and jackknives all call `Problem.solve` with other starts, weights, data
or bounds; nothing else touches the optimiser.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from analysis.errors import AnalysisError
from analysis.fit.observations import Observations
from analysis.fit.robust import Robust
from analysis.fit.solver import Solution, minimise
from analysis.fit.thinning import spread
from analysis.laws.power_sum import Law
from analysis.units import Array

Bounds = Mapping[str, tuple[float, float]]


MOST_STARTED = 1_000
"""Points from which every start is solved; of more, so many are taken for it."""


@dataclass(frozen=True)
class Problem:
    """Minimise the weighted sum of robust losses of log residuals over a law's parameters."""

    law: Law
    observations: Observations
    robust: Robust
    x: Array
    """Centred log features (k, m)."""
    centres: Array
    """Their centres (k,)."""
    lower: Array
    upper: Array
    """Bounds (p,) of the internal vector."""

    @staticmethod
    def build(
        law: Law,
        observations: Observations,
        robust: Robust,
        bounds: Bounds | None = None,
        fixed: Mapping[str, float] | None = None,
    ) -> Problem:
        """Raises AnalysisError for bounds or fixed values that the form cannot hold."""
        x, centres = law.features(observations.columns)
        lower, upper = law.bounds(observations.loss)
        for name, (low, high) in (bounds or {}).items():
            if name not in law.exponents and name != "E":
                able = ", ".join([*(["E"] if law.has_floor else []), *law.exponents])
                raise AnalysisError(
                    f"bounds for {name!r}: {law.name} takes bounds on {able} (a coefficient is "
                    "not bounded because its scale depends on the exponent)"
                )
            if not low <= high or (name == "E" and high <= 0):
                raise AnalysisError(f"bounds for {name!r} must be low <= high, got ({low}, {high})")
            i = law.parameters.index(name)
            if name == "E":
                low = float(np.log(low)) if low > 0 else float(lower[i])
                high = float(np.log(high))
            lower[i], upper[i] = low, high
        for name, value in _hold(law, fixed or {}, centres).items():
            i = law.parameters.index(name)
            lower[i] = upper[i] = value
        return Problem(law, observations, robust, x, centres, lower, upper)

    @property
    def y(self) -> Array:
        """log of the measured loss (m,)."""
        return np.log(self.observations.loss)

    def starts(self, count: int) -> Array:
        """Starting points (s, p) by variable projection."""
        obs = self.observations
        return self.law.starts(self.x, obs.loss, obs.weight, count)

    def solve(
        self,
        start: Array,
        *,
        y: Array | None = None,
        weight: Array | None = None,
        lower: Array | None = None,
        upper: Array | None = None,
    ) -> Solution:
        """Solves a batch from `start` (b, p); y and weight (m,) or (b, m) replace the data's."""
        return minimise(
            self.law,
            np.atleast_2d(start),
            self.x,
            self.y if y is None else y,
            self.observations.weight if weight is None else weight,
            self.robust,
            self.lower if lower is None else lower,
            self.upper if upper is None else upper,
        )

    def thinned(self, most: int) -> Problem:
        """The same problem on at most `most` of its points, spread evenly over every run; itself
        where it has no more."""
        obs = self.observations
        if len(obs.loss) <= most:
            return self
        compute = obs.compute
        order = compute if np.isfinite(compute).all() else next(iter(obs.columns.values()))
        keep = spread(obs.cluster, order, most)
        return dataclasses.replace(self, observations=obs.take(keep), x=self.x[:, keep])

    def natural(self, theta: Array) -> Array:
        """Natural parameters of internal vectors."""
        return self.law.natural(theta, self.centres)

    def internal(self, values: Array) -> Array:
        """Internal vectors of natural parameters."""
        return self.law.internal(values, self.centres)

    def residuals(self, theta: Array) -> Array:
        """log predicted - log measured loss (..., m)."""
        return self.law.log_loss(theta, self.x) - self.y


def _hold(law: Law, fixed: Mapping[str, float], centres: Array) -> dict[str, float]:
    """Internal coordinates of natural parameters that are held at a value.

    Raises:
        AnalysisError: not a parameter, not positive, or a coefficient whose exponent is free.
    """
    for name, value in fixed.items():
        if name not in law.parameters:
            raise AnalysisError(f"cannot fix {name!r}: {law.name} has {', '.join(law.parameters)}")
        if not (np.isfinite(value) and value > 0):
            raise AnalysisError(f"cannot fix {name} = {value}: it must be a positive number")
    tries = [np.array([fixed.get(name, other) for name in law.parameters]) for other in (0.3, 0.4)]
    first, second = (law.internal(values, centres) for values in tries)
    held: dict[str, float] = {}
    for name in fixed:
        i = law.parameters.index(name)
        if not np.isclose(first[i], second[i], rtol=1e-12):
            raise AnalysisError(
                f"cannot fix {name} alone: what a coefficient means depends on its exponent; fix "
                "that too"
            )
        held[name] = float(first[i])
    return held

"""Suites of runs simulated from laws inside and outside the forms that are fitted.

simulated_ladders(each) -> list[Ladder]
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from analysis.units import Array
from experiments.benchmarks.public_ladders import Ladder, table_of

World = Callable[[Array, Array, np.random.Generator], Array]


def _worlds() -> dict[str, World]:
    """ln L by N and D; all but the first two are outside the forms that are fitted."""

    def chinchilla(n: Array, d: Array, rng: np.random.Generator) -> Array:
        e, a, b = rng.uniform(1.2, 2.2), rng.uniform(0.25, 0.42), rng.uniform(0.25, 0.42)
        return np.log(e + 0.8 * (n / 1e8) ** -a + 0.9 * (d / 2e9) ** -b)

    def gamma(n: Array, d: Array, rng: np.random.Generator) -> Array:
        e, g = rng.uniform(1.2, 2.2), rng.uniform(0.4, 0.8)
        return np.log(e + (2.0 * (n / 1e8) ** -0.6 + 2.0 * (d / 2e9) ** -0.6) ** g * 0.6)

    def kaplan(n: Array, d: Array, rng: np.random.Generator) -> Array:
        a, b = rng.uniform(0.06, 0.09), rng.uniform(0.08, 0.11)
        return np.log(((8.8e13 / n) ** (a / b) + 5.4e13 / d) ** b)

    def broken(n: Array, d: Array, rng: np.random.Generator) -> Array:
        bend = rng.uniform(0.05, 0.15) * np.logaddexp(0, np.log(n * d / 3e18))
        return chinchilla(n, d, rng) - 0.15 * bend

    def mistuned(n: Array, d: Array, rng: np.random.Generator) -> Array:
        slope = rng.uniform(-0.008, 0.012)
        return chinchilla(n, d, rng) + slope * np.log(n / 1e8)

    def under_trained(n: Array, d: Array, rng: np.random.Generator) -> Array:
        return chinchilla(n, d, rng) + rng.uniform(0.05, 0.3) * (d / n / 4 + 1) ** -1.0

    def repeated(n: Array, d: Array, rng: np.random.Generator) -> Array:
        unique = np.exp(rng.uniform(np.log(2e10), np.log(2e11)))
        fresh = unique * (1 + 5 * (1 - np.exp(-np.maximum(d / unique - 1, 0) / 5)))
        return chinchilla(n, np.where(d > unique, fresh, d), rng)

    def by_size(n: Array, d: Array, rng: np.random.Generator) -> Array:
        _, index = np.unique(n, return_inverse=True)
        return chinchilla(n, d, rng) + 0.01 * rng.standard_normal(index.max() + 1)[index]

    def heavy(n: Array, d: Array, rng: np.random.Generator) -> Array:
        return chinchilla(n, d, rng) + 0.008 * rng.standard_t(2.5, len(n))

    return {f.__name__: f for f in (chinchilla, gamma, kaplan, broken, mistuned, under_trained,
                                    repeated, by_size, heavy)}  # fmt: skip


def simulated_ladders(each: int = 3) -> list[Ladder]:
    """`each` suites of every kind: 6 to 9 sizes, 4 to 6 horizons, noise of .2 to 1 %."""
    found: list[Ladder] = []
    for kind, world in _worlds().items():
        for seed in range(each):
            rng = np.random.default_rng([seed, len(found)])
            sizes = np.geomspace(2e7, np.exp(rng.uniform(np.log(1e9), np.log(8e9))),
                                 int(rng.integers(6, 10)))  # fmt: skip
            ratios = np.geomspace(rng.uniform(2, 8), rng.uniform(60, 200), int(rng.integers(4, 7)))
            n, ratio = (v.ravel() for v in np.meshgrid(sizes, ratios, indexing="ij"))
            d = n * ratio
            noise = rng.uniform(0.002, 0.01) * rng.standard_normal(len(n))
            loss = np.exp(world(n, d, rng) + noise)
            found.append(Ladder(kind, f"{kind} {seed}", table_of(n, d, loss)))
    return found

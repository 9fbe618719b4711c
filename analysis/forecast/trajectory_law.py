"""A law of loss over tokens under any learning rate: where a trunk stands and what a decay gives.

With u(t) the learning rate at t tokens as a share of its peak, and S(t) its integral from 0 to t,

    L = E + A (N / 1e5)^-a + B (S / 1e6)^-b - K (N / 1e5)^kappa gain(t)
    gain(t) = sum over falls of u:  (u before - u after) G(u^-gamma S(from the fall to t))
    G(x) = 1 - (1 + c x / 1e6)^-beta

The first part is a law in size and in tokens weighted by their rate; the last is the multi-power
law of Luo et al. (arXiv 2503.12811), in which every fall of the rate pays off with the tokens that
follow it, later where the rate is low. They fit one model; here what a decay wins may grow with
size, as it does on the small ladder. At a constant rate gain is 0, so that one set of parameters
holds trunks, their decays and cosine schedules.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from analysis.units import Array

N_UNIT, S_UNIT = 1e5, 1e6
NAMES = ("E", "A", "a", "B", "b", "K", "c", "beta", "gamma", "kappa")
START = np.append(np.log([0.7, 0.3, 0.3, 0.6, 0.5, 0.1, 20.0, 0.5, 0.5]), 0.1)
"""Logarithms of the positive parameters, and kappa."""
SPREAD = np.array([0.5, 1.0, 0.4, 1.0, 0.4, 0.7, 1.5, 0.7, 0.5, 0.05])
"""Standard deviations of their normal priors around `START`: they matter where the data are few."""


@dataclass(frozen=True)
class Rates:
    """The learning rate over one stretch of training, knot by knot."""

    tokens: Array
    """(k,), increasing."""
    share: Array
    """u at the knots (k,)."""
    before: float
    """S at the first knot."""

    @cached_property
    def weighted(self) -> Array:
        """S at the knots (k,)."""
        steps = np.diff(self.tokens) * (self.share[1:] + self.share[:-1]) / 2
        return self.before + np.concatenate([[0.0], np.cumsum(steps)])

    def at(self, tokens: Array) -> Array:
        """S at any tokens within the stretch."""
        return np.interp(tokens, self.tokens, self.weighted)


def gain(rates: Rates, tokens: Array, c: float, beta: float, gamma: float) -> Array:
    """What the falls of the rate have given by `tokens` (n,), from 0 to 1.

    Falls before the first knot are not known and count as none.
    """
    return gain_slopes(rates, tokens, c, beta, gamma)[0]


def gain_slopes(rates: Rates, tokens: Array, c: float, beta: float, gamma: float) -> Array:
    """`gain` and its derivatives by ln c, ln beta and ln gamma (4, n)."""
    falls = rates.share[:-1] - rates.share[1:]
    fallen = falls > 0
    if not fallen.any():
        return np.zeros((4, len(tokens)))
    weighted = rates.weighted
    # A fall takes place within its interval: its middle stands for it.
    start = (weighted[:-1] + weighted[1:])[fallen] / 2
    level = (rates.share[:-1] + rates.share[1:])[fallen] / 2
    since = np.maximum(rates.at(tokens)[:, None] - start, 0.0)
    reached = c / S_UNIT * level**-gamma * since
    log = np.log1p(reached)
    left = np.exp(-beta * log)
    by_reached = beta * left * reached / (1.0 + reached)  # by the logarithm of it
    parts = (1.0 - left, by_reached, beta * log * left, by_reached * (-gamma * np.log(level)))
    return np.stack([part @ falls[fallen] for part in parts])


def values(theta: Array) -> dict[str, float]:
    """The parameters by name."""
    return dict(zip(NAMES, [*np.exp(theta[:-1]).tolist(), float(theta[-1])], strict=True))


def trunk_loss(n: Array, weighted: Array, theta: Array) -> Array:
    """Loss at a rate that has not fallen.

    Args:
        n: parameters.
        weighted: S.
        theta: the parameters in the order of `NAMES`, as `START` has them.
    """
    e, a_size, a, b_data, b = np.exp(theta[:5])
    return e + a_size * (n / N_UNIT) ** -a + b_data * (weighted / S_UNIT) ** -b

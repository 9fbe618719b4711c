"""Loss of models whose numbers have few bits in training.

    precision       L = E + A (N (1 - e^(-P/P_0)))^-alpha + B D^-beta
                    2411.04330 equation 3: weights of P bits, all else at high precision
    precision_all   L = E + A (N (1 - e^(-P/P_0))^3)^-alpha + B D^-beta
                    its equation 5: weights, activations and the cache of keys and values of the
                    same P bits; P_0 is the mean of the three constants of its equation 4

A table in which the three differ from one another (equation 4) has a column for each: not fitted.
The loss from quantising after training (equation 8 on) is not in either.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.laws.nested import Stepped, complex_lse
from analysis.laws.power_sum import Columns, Inner, PowerSum, Term
from analysis.units import Array

_BASE = PowerSum("base", "", [Term("E"), Term("A", "alpha", "n"), Term("B", "beta", "d")])
_BITS = (0.05, 50.0)
"""Bounds of P_0, in bits."""


class PrecisionLaw(Stepped):
    """Few bits are worth fewer parameters; P_0 is about how many bits cost a factor e."""

    factors = 1
    """How many parts of the model have these bits."""
    name = "precision"
    formula = "L = E + A (N (1 - e^(-P/P_0)))^-alpha + B D^-beta, P = bits of the weights"
    columns = ("n", "d", "p")
    parameters = ("E", "A", "alpha", "B", "beta", "P_0")
    exponents = ("alpha", "beta")
    scales = ("P_0",)

    def features(self, columns: Columns, centres: Array | None = None) -> tuple[Array, Array]:
        x = np.stack([np.log(columns["n"]), np.log(columns["d"]), columns["p"]])
        middle: Array = np.array([x[0].mean(), x[1].mean(), 0.0]) if centres is None else centres
        return x - middle[:, None], middle

    def complex_log_loss(self, theta: Any, x: Array) -> Any:
        e, a, alpha, b, beta, log_bits = (theta[:, i, None] for i in range(6))
        worth = self.factors * np.log(1.0 - np.exp(-x[2] * np.exp(-log_bits)))
        return complex_lse(e + 0 * worth, a - alpha * (x[0] + worth), b - beta * x[1])

    def inner(self, values: Array, held: Mapping[str, float] | None = None) -> Inner:
        bits = (held or {}).get("bits", math.inf)
        alpha = self.column(values, "alpha")
        worth = self.factors * np.log1p(-np.exp(-bits / self.column(values, "P_0")))
        first = self.column(values, "A") * np.exp(-alpha * worth)
        return Inner(first, alpha, self.column(values, "B"), self.column(values, "beta"))

    def starts(self, x: Array, loss: Array, weight: Array, count: int) -> Array:
        rows = np.stack([np.zeros(x.shape[1]), x[0], x[1]])
        base = _BASE.starts(rows, loss, weight, max(1, count // 3))
        found = [np.column_stack([base, np.full(len(base), math.log(p))]) for p in (2.0, 0.7, 6.0)]
        return np.concatenate(found)[:count]

    def natural(self, theta: Array, centres: Array) -> Array:
        out = np.array(theta, dtype=float)
        for coefficient, exponent, row in ((1, 2, 0), (3, 4, 1)):
            shift = theta[..., exponent] * centres[row]
            out[..., coefficient] = np.exp(theta[..., coefficient] + shift)
        for i in (0, 5):
            out[..., i] = np.exp(theta[..., i])
        return out

    def internal(self, values: Array, centres: Array) -> Array:
        out = np.array(values, dtype=float)
        for coefficient, exponent, row in ((1, 2, 0), (3, 4, 1)):
            shift = values[..., exponent] * centres[row]
            out[..., coefficient] = np.log(values[..., coefficient]) - shift
        for i in (0, 5):
            out[..., i] = np.log(values[..., i])
        return out

    def bounds(self, loss: Array) -> tuple[Array, Array]:
        lower, upper = super().bounds(loss)
        lower[5], upper[5] = (math.log(v) for v in _BITS)
        return lower, upper


class PrecisionOfAll(PrecisionLaw):
    """The same where weights, activations and cache have the same bits."""

    factors = 3
    name = "precision_all"
    formula = (
        "L = E + A (N (1 - e^(-P/P_0))^3)^-alpha + B D^-beta, P = bits of weights, activations and "
        "cache"
    )

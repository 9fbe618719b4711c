"""Loss of models whose weights have few bits.

    precision   L = E + A (N (1 - e^(-P/P_0)))^-alpha + B D^-beta      2411.04330

P are the bits of the weights in training. Where activations and the cache of keys and values have
the same bits, the paper's factor is a product of three such; one of them is fitted here.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from analysis.laws.nested import Stepped, complex_lse
from analysis.laws.power_sum import Columns, PowerSum, Term
from analysis.units import Array

_BASE = PowerSum("base", "", [Term("E"), Term("A", "alpha", "n"), Term("B", "beta", "d")])
_BITS = (0.05, 50.0)
"""Bounds of P_0, in bits."""


class PrecisionLaw(Stepped):
    """Few bits are worth fewer parameters; P_0 is about how many bits cost a factor e."""

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
        worth = np.log(1.0 - np.exp(-x[2] * np.exp(-log_bits)))
        return complex_lse(e + 0 * worth, a - alpha * (x[0] + worth), b - beta * x[1])

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

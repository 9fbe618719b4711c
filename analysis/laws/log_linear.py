"""Sums of terms whose exponents depend on further columns: experts, mixtures, sizes.

    size_exponent  L = E + A N^-alpha + B N^-eta D^-(beta + kappa ln N)
                   an exponent of D that depends on N, the idea of 2506.10972 in the fewest
                   parameters that make it independent of the units of N and D
    experts        L = E + A R^-delta N^-(alpha + gamma ln R) + B R^-omega D^-(beta + zeta ln R)
                   joint law of 2502.05172, N active parameters; R is total over active parameters
                   where they have a saturating transform of the number of experts
    mixture        L = E + K e^(-t s) + A N^-alpha + B D^-beta
                   2403.16952 has, for one size and one length of training, c + k exp(sum_j t_j r_j)
                   over the shares r_j of all sources, and takes laws of size and of steps one
                   after the other. One share s against the rest, and Chinchilla's terms added to
                   it so that one fit holds all sizes, are this project's own: N and D shift the
                   curve in s and do not bend it

The logarithm of every term is linear in the internal parameters, so that gradient and Hessian are
those of a log-sum-exp, as in `power_sum`: with M_k the derivatives of term k (constant in theta),
J = sum_k s_k M_k and H = sum_k s_k M_k M_k^T - J J^T.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from analysis.laws.held import columns_at
from analysis.laws.power_sum import EXPONENT_BOUNDS, Columns, Inner, Law, PowerSum, Term
from analysis.units import Array

_BASE = PowerSum("base", "", [Term("E"), Term("A", "alpha", "n"), Term("B", "beta", "d")])
SLOPE_BOUNDS = (-5.0, 5.0)
"""Of parameters of any sign: how exponents and levels change."""

Feature = Callable[[Columns], Array]


@dataclass(frozen=True)
class Monomial:
    """coefficient * exp(-sum of parameter * feature)."""

    coefficient: str
    slopes: Mapping[str, Feature]
    """What multiplies each parameter, from the columns."""


class LogLinear(Law):
    """A sum of monomials; parameters other than coefficients belong to one term each."""

    def __init__(
        self, name: str, formula: str, columns: Sequence[str], terms: Sequence[Monomial], *,
        signed: Mapping[str, Sequence[float]], level: str = "", separable: bool = True,
    ) -> None:  # fmt: skip
        """A form of that name.

        Args:
            name, formula, columns: as of every law.
            terms: the first three after E are those of Chinchilla, A with alpha and B with beta.
            signed: parameters of any sign, and the values to start from (none: as Chinchilla's).
            level: coefficient of a term that takes half of E to start from; "" for none.
            separable: whether under a setting each term has N or D, not both.
        """
        self.name, self.formula, self.columns = name, formula, tuple(columns)
        self.terms, self._signed, self._level = tuple(terms), dict(signed), level
        self.separable = separable
        names: list[str] = []
        for term in terms:
            names += [term.coefficient, *term.slopes]
        self.parameters = tuple(names)
        self.exponents = tuple(s for term in terms for s in term.slopes)

    @cached_property
    def _places(self) -> list[tuple[int, list[tuple[int, int]]]]:
        """Of each term: its coefficient, and (parameter, feature row) of its slopes."""
        position, row = self.parameters.index, 0
        found: list[tuple[int, list[tuple[int, int]]]] = []
        for term in self.terms:
            slopes = [(position(s), row + i) for i, s in enumerate(term.slopes)]
            row += len(slopes)
            found.append((position(term.coefficient), slopes))
        return found

    def features(self, columns: Columns, centres: Array | None = None) -> tuple[Array, Array]:
        x = np.stack([f(columns) for term in self.terms for f in term.slopes.values()])
        middle: Array = x.mean(axis=1) if centres is None else centres
        return x - middle[:, None], middle

    def _logs(self, theta: Array, x: Array) -> Array:
        """Logarithms of the terms (..., k, n)."""
        parts: list[Array] = []
        for coefficient, slopes in self._places:
            part = np.broadcast_to(
                theta[..., coefficient, None], (*theta.shape[:-1], x.shape[1])
            ).copy()
            for parameter, row in slopes:
                part -= theta[..., parameter, None] * x[row]
            parts.append(part)
        return np.stack(parts, axis=-2)

    def log_loss(self, theta: Array, x: Array) -> Array:
        return np.logaddexp.reduce(self._logs(theta, x), axis=-2)

    def evaluate(self, theta: Array, x: Array) -> tuple[Array, Array, Any]:
        logs = self._logs(theta, x)
        value = np.logaddexp.reduce(logs, axis=-2)
        share = np.exp(logs - value[:, None])
        jacobian = np.zeros((len(theta), self.size, x.shape[1]))
        for k, (coefficient, slopes) in enumerate(self._places):
            jacobian[:, coefficient] = share[:, k]
            for parameter, row in slopes:
                jacobian[:, parameter] = -share[:, k] * x[row]
        return value, jacobian, (share, jacobian, x)

    def hessian(self, state: Any, curvature: Array, slope: Array) -> Array:
        share, jacobian, x = state
        hessian = (jacobian * (curvature - slope)[:, None]) @ jacobian.transpose(0, 2, 1)
        for k, (coefficient, slopes) in enumerate(self._places):
            index = np.array([coefficient, *(p for p, _ in slopes)])
            moved = np.concatenate([np.ones((1, x.shape[1])), -x[[r for _, r in slopes]]])
            block = ((share[:, k] * slope)[:, None] * moved) @ moved.T
            hessian[:, index[:, None], index] += block
        return hessian

    def inner(self, values: Array, held: Mapping[str, float] | None = None) -> Inner | None:
        """A N^-alpha + B D^-beta under a setting; None where a term has both N and D."""
        if not self.separable:
            return None
        found: list[Array] = []
        unit, e = np.ones(1), np.full(1, math.e)
        for term, (coefficient, slopes), at in zip(
            self.terms[1:3], self._places[1:3], ((e, unit), (unit, e)), strict=True
        ):
            here, there = (columns_at(held or {}, *place) for place in ((unit, unit), at))
            level, power = np.log(values[..., coefficient]), np.zeros(values.shape[:-1])
            for feature, (parameter, _) in zip(term.slopes.values(), slopes, strict=True):
                first = float(feature(here)[0])
                level = level - values[..., parameter] * first
                power = power + values[..., parameter] * (float(feature(there)[0]) - first)
            found += [np.exp(level), power]
        return Inner(*found)

    def floor(self, values: Array, held: Mapping[str, float] | None = None) -> Array | float:
        unit = np.ones(1)
        columns, total = columns_at(held or {}, unit, unit), self.column(values, "E")
        for term, (coefficient, slopes) in zip(self.terms[3:], self._places[3:], strict=True):
            part = np.log(values[..., coefficient])
            for feature, (parameter, _) in zip(term.slopes.values(), slopes, strict=True):
                part = part - values[..., parameter] * float(feature(columns)[0])
            total = total + np.exp(part)
        return total

    def loss_of_split(
        self, values: Array, n: Array, d: Array, held: Mapping[str, float] | None = None
    ) -> Array:
        columns = columns_at(held or {}, n, d)
        total: Array = np.zeros(())
        with np.errstate(over="ignore"):
            for term, (coefficient, slopes) in zip(self.terms, self._places, strict=True):
                part = np.log(values[..., coefficient])
                for feature, (parameter, _) in zip(term.slopes.values(), slopes, strict=True):
                    part = part - values[..., parameter] * feature(columns)
                total = total + np.exp(part)
        return total

    def starts(self, x: Array, loss: Array, weight: Array, count: int) -> Array:
        """Those of Chinchilla's law; what is added to it starts from nothing and from `signed`."""
        rows = {name: row for term, (_, slopes) in zip(self.terms, self._places, strict=True)
                for name, (_, row) in zip(term.slopes, slopes, strict=True)}  # fmt: skip
        plain = np.stack([np.zeros(x.shape[1]), x[rows["alpha"]], x[rows["beta"]]])
        base = _BASE.starts(plain, loss, weight, max(2, count // 3))
        others = max(len(values) for values in self._signed.values())
        found: list[Array] = []
        for step in range(others):
            start = np.zeros((len(base), self.size))
            for name in ("E", "A", "alpha", "B", "beta"):
                start[:, self.parameters.index(name)] = base[:, _BASE.parameters.index(name)]
            for name, values in self._signed.items():
                if not values:
                    continue
                start[:, self.parameters.index(name)] = values[step % len(values)]
            if self._level:
                for name in ("E", self._level):
                    i = self.parameters.index(name)
                    start[:, i] = base[:, 0] - math.log(2.0)
            found.append(start)
        # The best of each kind first.
        return np.stack(found, axis=1).reshape(-1, self.size)[:count]

    def natural(self, theta: Array, centres: Array) -> Array:
        out = np.array(theta, dtype=float)
        for coefficient, slopes in self._places:
            for parameter, row in slopes:
                out[..., coefficient] += theta[..., parameter] * centres[row]
            out[..., coefficient] = np.exp(out[..., coefficient])
        return out

    def internal(self, values: Array, centres: Array) -> Array:
        out = np.array(values, dtype=float)
        for coefficient, slopes in self._places:
            out[..., coefficient] = np.log(values[..., coefficient])
            for parameter, row in slopes:
                out[..., coefficient] -= values[..., parameter] * centres[row]
        return out

    def bounds(self, loss: Array) -> tuple[Array, Array]:
        lower, upper = super().bounds(loss)
        for i, name in enumerate(self.parameters):
            if name in self._signed:
                lower[i], upper[i] = SLOPE_BOUNDS
            elif name in self.exponents:
                lower[i], upper[i] = EXPONENT_BOUNDS
        if self._level:
            i = self.parameters.index(self._level)
            lower[i] = math.log(1e-3 * float(loss.min()))
        return lower, upper


def _log(role: str) -> Feature:
    return lambda columns: np.log(columns[role])


def _ratio(columns: Columns) -> Array:
    return np.log(columns["t"] / columns["n"])


def _times(first: Feature, second: Feature) -> Feature:
    return lambda columns: first(columns) * second(columns)


_N, _D = _log("n"), _log("d")
SIZE_EXPONENT = LogLinear(
    "size_exponent", "L = E + A N^-alpha + B N^-eta D^-(beta + kappa ln N)", ("n", "d"),
    [
        Monomial("E", {}),
        Monomial("A", {"alpha": _N}),
        Monomial("B", {"beta": _D, "eta": _N, "kappa": _times(_N, _D)}),
    ],
    signed={"eta": (0.0,), "kappa": (0.0,), "beta": ()}, separable=False,
)  # fmt: skip
EXPERTS = LogLinear(
    "experts",
    "L = E + A R^-delta N^-(alpha + gamma ln R) + B R^-omega D^-(beta + zeta ln R), "
    "R = total / active parameters",
    ("n", "d", "t"),
    [
        Monomial("E", {}),
        Monomial("A", {"alpha": _N, "delta": _ratio, "gamma": _times(_ratio, _N)}),
        Monomial("B", {"beta": _D, "omega": _ratio, "zeta": _times(_ratio, _D)}),
    ],
    signed={"delta": (0.0, 0.2), "gamma": (0.0,), "omega": (0.0,), "zeta": (0.0,)},
)
MIXTURE = LogLinear(
    "mixture", "L = E + K e^(-t s) + A N^-alpha + B D^-beta, s = share of a source",
    ("n", "d", "s"),
    [
        Monomial("E", {}),
        Monomial("A", {"alpha": _N}),
        Monomial("B", {"beta": _D}),
        Monomial("K", {"t": lambda columns: columns["s"]}),
    ],
    signed={"t": (1.0, -1.0, 4.0, -4.0)}, level="K",
)  # fmt: skip

"""What a law must offer a fit, and the family most laws belong to: sums of power laws.

Data flow of a fit:
    1. `Law.features`    columns N, D, C -> centred logarithms x (k, n) and their centres (k,)
    2. `Law.starts`      variable projection: a grid over the exponents only, the coefficients of
                         each grid point in closed form (weighted least squares on relative error)
    3. `Law.evaluate`, `Law.hessian`   for the batched Newton of solver.py
    4. `Law.natural`     internal vector -> parameters as papers print them (E, A, alpha, ...)

Internal parameters: logarithms of coefficients taken at the centre of the data, exponents as they
are. At the centre log A and alpha are nearly uncorrelated; in raw form their correlation is .999.

A sum of power laws (this module) is a log-sum-exp of monomials linear in the internal parameters:
    log L = log sum_k exp(a_k - alpha_k x_k),  x_k = log of the column of term k
so gradient and Hessian are closed: J = sum_k s_k M_k, H = sum_k s_k M_k M_k^T - J J^T, with s the
softmax over terms.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.units import Array

Columns = Mapping[str, Array]
"""Arrays by role: "n" parameters, "d" tokens, "c" FLOPs, "u" unique tokens, "t" total parameters
(of experts; "n" are then the active ones), "p" bits of the weights, "s" share of a source. All are
positive, but for the share, which may be 0."""

EXPONENT_BOUNDS = (1e-3, 5.0)
E_FLOOR = 1e-3
"""The irreducible loss is kept above this fraction of the smallest loss: below, it is zero."""
_RESTART_SHARE = 0.05
_SAFE = 600.0
"""Monomials below this in size are exponentiated as they are: exp overflows at 709."""
_GRID = np.geomspace(0.03, 1.5, 16)


@dataclass(frozen=True)
class Term:
    """coefficient * exp(shift + factor * log column) ** -exponent, or a constant."""

    coefficient: str
    exponent: str | None = None
    column: str | None = None
    factor: float = 1.0
    shift: float = 0.0


@dataclass(frozen=True)
class Inner:
    """A / N^alpha + B / D^beta, the part of a law in N and D that decides their optimal split."""

    A: Array
    alpha: Array
    B: Array
    beta: Array


class Law(ABC):
    """One form: names, derivatives and conversions. Batched over leading axes throughout."""

    name: str
    formula: str
    columns: tuple[str, ...]
    """Which of "n", "d", "c", "u", "t", "p", "s" it needs."""
    parameters: tuple[str, ...]
    """Names of the natural parameters, in the order of the internal vector."""
    exponents: tuple[str, ...]
    """Parameters that are their own internal coordinate (the ones variable projection searches)."""
    slow: bool = False
    """Whether a start takes many steps, for want of the law's own curvature."""
    scales: tuple[str, ...] = ()
    """Positive parameters, by their logarithm inside, that say where something begins: a warning
    tells which the data leave open."""

    @property
    def size(self) -> int:
        """Number of parameters."""
        return len(self.parameters)

    @property
    def has_floor(self) -> bool:
        """Whether the form has an irreducible loss E."""
        return "E" in self.parameters

    @abstractmethod
    def features(self, columns: Columns, centres: Array | None = None) -> tuple[Array, Array]:
        """Centred log features (k, n) and the centres (k,); given centres are used as they are."""

    @abstractmethod
    def log_loss(self, theta: Array, x: Array) -> Array:
        """log of the predicted loss: theta (..., p), x (k, n) -> (..., n)."""

    @abstractmethod
    def evaluate(self, theta: Array, x: Array) -> tuple[Array, Array, Any]:
        """theta (b, p) -> log loss (b, n), Jacobian (b, p, n), and what `hessian` wants."""

    @abstractmethod
    def hessian(self, state: Any, curvature: Array, slope: Array) -> Array:
        """sum_i curvature_i J_i J_i^T + slope_i H_i, (b, n) each -> (b, p, p)."""

    @abstractmethod
    def starts(self, x: Array, loss: Array, weight: Array, count: int) -> Array:
        """Up to `count` internal vectors (s, p) to start from, best first."""

    @abstractmethod
    def natural(self, theta: Array, centres: Array) -> Array:
        """Internal (..., p) -> natural parameters (..., p)."""

    @abstractmethod
    def internal(self, values: Array, centres: Array) -> Array:
        """Natural parameters (..., p) -> internal (..., p)."""

    def bounds(self, loss: Array) -> tuple[Array, Array]:
        """Default lower and upper bounds (p,) of the internal vector."""
        lower, upper = np.full(self.size, -np.inf), np.full(self.size, np.inf)
        for i, name in enumerate(self.parameters):
            if name in self.exponents:
                lower[i], upper[i] = EXPONENT_BOUNDS
            elif name == "E":
                lower[i] = math.log(E_FLOOR * float(loss.min()))
        return lower, upper

    def inner(self, values: Array, held: Mapping[str, float] | None = None) -> Inner | None:
        """The N-D part of natural parameters (..., p) under a setting (held.py); None when the form
        has none, or none of that kind."""
        del values, held
        return None

    def floor(self, values: Array, held: Mapping[str, float] | None = None) -> Array | float:
        """What neither N nor D lowers."""
        del held
        return self.column(values, "E") if self.has_floor else 0.0

    def outer(self, values: Array) -> Array | float:
        """Power that the N-D part is raised to: L = E + inner^outer."""
        del values
        return 1.0

    def loss_of_split(
        self, values: Array, n: Array, d: Array, held: Mapping[str, float] | None = None
    ) -> Array:
        """Loss at fresh data for values (..., p) and n, d that broadcast with (...): one each."""
        inner = self.inner(values, held)
        assert inner is not None
        floor = self.floor(values, held)
        with np.errstate(divide="ignore", over="ignore"):  # at a split without bounds
            reducible = inner.A * n**-inner.alpha + inner.B * d**-inner.beta
        return floor + reducible ** self.outer(values)

    def predict(self, values: Array, columns: Columns) -> Array:
        """Loss from natural parameters (..., p) at columns (n,) -> (..., n)."""
        zero = np.zeros(len(self.features(columns)[1]))
        x, _ = self.features(columns, zero)
        return np.exp(self.log_loss(self.internal(np.asarray(values, dtype=float), zero), x))

    def column(self, values: Array, name: str) -> Array:
        """One natural parameter out of (..., p)."""
        return values[..., self.parameters.index(name)]


class PowerSum(Law):
    """A sum of power laws; terms may share an exponent."""

    def __init__(self, name: str, formula: str, terms: Sequence[Term]) -> None:
        self.name, self.formula, self.terms = name, formula, tuple(terms)
        names: list[str] = []
        for term in terms:
            for each in (term.coefficient, term.exponent):
                if each is not None and each not in names:
                    names.append(each)
        self.parameters = tuple(names)
        self.exponents = tuple(dict.fromkeys(t.exponent for t in terms if t.exponent))
        self.columns = tuple(dict.fromkeys(t.column for t in terms if t.column))

    @cached_property
    def _slots(self) -> list[tuple[int, int | None]]:
        """Positions of each term's coefficient and exponent in the parameter vector."""
        position = self.parameters.index
        return [
            (position(t.coefficient), None if t.exponent is None else position(t.exponent))
            for t in self.terms
        ]

    def features(self, columns: Columns, centres: Array | None = None) -> tuple[Array, Array]:
        length = len(next(iter(columns.values())))
        x = np.zeros((len(self.terms), length))
        for k, term in enumerate(self.terms):
            if term.column is not None:
                x[k] = term.shift + term.factor * np.log(columns[term.column])
        middle: Array = x.mean(axis=1) if centres is None else centres
        return x - middle[:, None], middle

    def _powers(self, theta: Array, x: Array) -> tuple[Array, Array | None]:
        """Terms exp(a_k - alpha_k x_k - top) (..., k, n) and top (..., 1, n), which keeps the
        largest at 1; None where no term is near overflow anyway, as in centred logarithms."""
        out = np.empty((*theta.shape[:-1], len(self.terms), x.shape[1]))
        for k, (coefficient, exponent) in enumerate(self._slots):
            if exponent is None:
                out[..., k, :] = theta[..., coefficient, None]
            else:
                np.multiply(theta[..., exponent, None], -x[k], out=out[..., k, :])
                out[..., k, :] += theta[..., coefficient, None]
        if float(np.abs(theta).max()) * (1.0 + float(np.abs(x).max())) < _SAFE:
            for k, (coefficient, exponent) in enumerate(self._slots):
                if exponent is None:
                    out[..., k, :] = np.exp(theta[..., coefficient, None])
                else:
                    np.exp(out[..., k, :], out=out[..., k, :])
            return out, None
        top = out.max(axis=-2, keepdims=True)
        out -= top
        return np.exp(out, out=out), top

    def log_loss(self, theta: Array, x: Array) -> Array:
        powers, top = self._powers(theta, x)
        total = np.log(powers.sum(axis=-2))
        return total if top is None else total + top[..., 0, :]

    def evaluate(self, theta: Array, x: Array) -> tuple[Array, Array, Any]:
        share, top = self._powers(theta, x)
        total = share.sum(axis=1)
        share /= total[:, None]
        jacobian = np.empty((len(theta), self.size, x.shape[1]))
        seen: set[int] = set()
        for k, (coefficient, exponent) in enumerate(self._slots):
            jacobian[:, coefficient] = share[:, k]  # no two terms have the same coefficient
            if exponent is None:
                continue
            if exponent in seen:
                jacobian[:, exponent] -= share[:, k] * x[k]
            else:
                np.multiply(share[:, k], -x[k], out=jacobian[:, exponent])
            seen.add(exponent)
        log_loss = np.log(total, out=total)
        if top is not None:
            log_loss += top[:, 0]
        return log_loss, jacobian, (share, jacobian, x)

    def hessian(self, state: Any, curvature: Array, slope: Array) -> Array:
        share, jacobian, x = state
        hessian = (jacobian * (curvature - slope)[:, None]) @ jacobian.transpose(0, 2, 1)
        for k, (i, j) in enumerate(self._slots):
            moment = share[:, k] * slope
            hessian[:, i, i] += moment.sum(axis=1)
            if j is not None:
                cross = -(moment @ x[k])
                hessian[:, i, j] += cross
                hessian[:, j, i] += cross
                hessian[:, j, j] += moment @ x[k] ** 2
        return hessian

    def starts(self, x: Array, loss: Array, weight: Array, count: int) -> Array:
        grids = np.meshgrid(*[_GRID] * len(self.exponents), indexing="ij")
        nodes = np.stack([g.ravel() for g in grids], axis=1)  # (s, q)
        values, cost = self.project(nodes, x, loss, weight)
        shape = grids[0].shape
        order = np.argsort(cost, kind="stable")
        basins = order[_local_minima(cost.reshape(shape)).ravel()[order]]
        better = order[: max(count, len(order) // 4)]
        others = better[:: max(1, len(better) // max(1, count))]
        chosen = list(dict.fromkeys([*basins.tolist(), *others.tolist()]))[:count]
        return values[chosen]

    def project(
        self, exponents: Array, x: Array, loss: Array, weight: Array
    ) -> tuple[Array, Array]:
        """Variable projection: the best coefficients for given exponents (s, q), in closed form.

        Minimises sum w ((L_hat - L) / L)^2 over coefficients >= 0 by active sets: a coefficient
        that comes out negative is set to (nearly) zero and the rest solved again. Returns the
        internal vectors (s, p) and that cost (s,).
        """
        count, terms = len(exponents), len(self.terms)
        features = np.empty((count, terms, x.shape[1]))
        for k, term in enumerate(self.terms):
            if term.exponent is None:
                features[:, k] = 1.0 / loss
            else:
                power = exponents[:, self.exponents.index(term.exponent), None]
                features[:, k] = np.exp(-power * x[k]) / loss
        weighted = features * weight
        normal = weighted @ features.transpose(0, 2, 1)
        target = weighted.sum(axis=2)
        coefficients = _non_negative(normal, target)
        cost = (
            weight.sum()
            - 2 * (coefficients * target).sum(axis=1)
            + np.einsum("sk,skl,sl->s", coefficients, normal, coefficients)
        )
        # What projection sets to zero starts far enough from zero for Newton to find its way back
        middle = float(np.median(loss))
        coefficients = np.where(coefficients > 1e-6 * middle, coefficients, _RESTART_SHARE * middle)
        values = np.empty((count, self.size))
        for k, (i, j) in enumerate(self._slots):
            values[:, i] = np.log(coefficients[:, k])
            if j is not None:
                values[:, j] = exponents[:, self.exponents.index(self.parameters[j])]
        return values, cost

    def natural(self, theta: Array, centres: Array) -> Array:
        out = np.array(theta, dtype=float)
        for k, (i, j) in enumerate(self._slots):
            shift = 0.0 if j is None else theta[..., j] * centres[k]
            out[..., i] = np.exp(theta[..., i] + shift)
        return out

    def internal(self, values: Array, centres: Array) -> Array:
        out = np.array(values, dtype=float)
        for k, (i, j) in enumerate(self._slots):
            shift = 0.0 if j is None else values[..., j] * centres[k]
            out[..., i] = np.log(values[..., i]) - shift
        return out

    def inner(self, values: Array, held: Mapping[str, float] | None = None) -> Inner | None:
        del held
        by_column = {t.column: t for t in self.terms if t.column}
        if set(by_column) != {"n", "d"}:
            return None
        found: list[Array] = []
        for name in ("n", "d"):
            term = by_column[name]
            power = self.column(values, term.exponent or "")
            found += [
                self.column(values, term.coefficient) * np.exp(-power * term.shift),
                power * term.factor,
            ]
        return Inner(*found)


def _local_minima(cost: Array) -> NDArray[np.bool_]:
    """Grid points not above any neighbour along an axis."""
    lowest = np.ones(cost.shape, dtype=bool)
    for axis in range(cost.ndim):
        padded = np.pad(cost, [(1, 1) if a == axis else (0, 0) for a in range(cost.ndim)],
                        constant_values=np.inf)  # fmt: skip
        length = cost.shape[axis]
        for offset in (0, 2):
            lowest &= cost <= np.take(padded, range(offset, offset + length), axis=axis)
    return lowest


def _non_negative(normal: Array, target: Array) -> Array:
    """Batched small non-negative least squares from normal equations (s, k, k), (s, k)."""
    size = target.shape[1]
    active = np.ones(target.shape, dtype=bool)
    result = np.zeros_like(target)
    ridge = 1e-12 * np.trace(normal, axis1=1, axis2=2)[:, None, None] * np.eye(size)
    for _ in range(size):
        mask = active[:, :, None] & active[:, None, :]
        system = np.where(mask, normal + ridge, np.eye(size) * (~active)[:, :, None])
        result = np.linalg.solve(system, np.where(active, target, 0.0)[:, :, None])[:, :, 0]
        negative = active & (result < 0)
        if not negative.any():
            break
        worst = np.where(negative, result, np.inf).argmin(axis=1)
        rows = np.flatnonzero(negative.any(axis=1))
        active[rows, worst[rows]] = False
    return np.maximum(result, 0.0)

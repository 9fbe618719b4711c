"""Forms that are not a plain sum of power laws.

    kaplan            L = ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D      2001.08361 equation 1.5
    gamma             L = E + (A N^-alpha + B D^-beta)^gamma
    data_constrained  L = E + A N'^-alpha + B D'^-beta with the effective sizes of repeated data,
                      D' = U + U R_D (1 - exp(-(D/U - 1)/R_D)), and N' likewise over
                      U_N = min(N, N that is compute-optimal for U)      2305.16264 equations 5, 6
    broken_c          L = E + A C^-alpha (1 + (C/C_b)^(1/width))^(-step width)   2210.14891, 1 break

Kaplan and gamma have closed derivatives (a log-sum-exp inside another), data_constrained has a
closed Jacobian. broken_c takes complex numbers, too: its Jacobian is the complex step, exact to
rounding. The Hessians of these two leave out the curvature of the law (Gauss-Newton).
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.laws.power_sum import Columns, Inner, Law, PowerSum, Term
from analysis.units import Array

_BASE = PowerSum("base", "", [Term("E"), Term("A", "alpha", "n"), Term("B", "beta", "d")])
_CURVE = PowerSum("curve", "", [Term("E"), Term("A", "alpha", "c")])
_GAMMA_BOUNDS = (0.02, 20.0)


def _softmax_pair(first: Array, second: Array) -> tuple[Array, Array]:
    """log(exp(first) + exp(second)) and the share of `first`."""
    total = np.logaddexp(first, second)
    return total, np.exp(first - total)


class GammaLaw(Law):
    """E + (A N^-alpha + B D^-beta)^gamma; gamma = 1 is Chinchilla."""

    name = "gamma"
    formula = "L = E + (A N^-alpha + B D^-beta)^gamma"
    columns = ("n", "d")
    parameters = ("E", "A", "alpha", "B", "beta", "gamma")
    exponents = ("alpha", "beta", "gamma")

    def features(self, columns: Columns, centres: Array | None = None) -> tuple[Array, Array]:
        x = np.log(np.stack([columns["n"], columns["d"]]))
        middle: Array = x.mean(axis=1) if centres is None else centres
        return x - middle[:, None], middle

    def _split(self, theta: Array) -> tuple[Array, ...]:
        """e, a, alpha, b, beta, gamma, each with a trailing axis for points."""
        return tuple(theta[..., i, None] for i in range(6))

    def log_loss(self, theta: Array, x: Array) -> Array:
        e, a, alpha, b, beta, gamma = self._split(theta)
        return np.logaddexp(e, gamma * np.logaddexp(a - alpha * x[0], b - beta * x[1]))

    def evaluate(self, theta: Array, x: Array) -> tuple[Array, Array, Any]:
        e, a, alpha, b, beta, gamma = self._split(theta)
        inner, share = _softmax_pair(a - alpha * x[0], b - beta * x[1])
        value, floor = _softmax_pair(np.broadcast_to(e, inner.shape), gamma * inner)
        gradient = np.stack([share, -share * x[0], 1 - share, -(1 - share) * x[1]], axis=1)
        jacobian = np.empty((len(theta), 6, x.shape[1]))
        jacobian[:, 0] = floor
        jacobian[:, 1:5] = ((1 - floor) * gamma)[:, None] * gradient
        jacobian[:, 5] = (1 - floor) * inner
        return value, jacobian, (gamma, inner, share, floor, gradient, jacobian, x)

    def hessian(self, state: Any, curvature: Array, slope: Array) -> Array:
        gamma, inner, share, floor, gradient, jacobian, x = state
        hessian = (jacobian * curvature[:, None]) @ jacobian.transpose(0, 2, 1)
        # outer log-sum-exp: s (1 - s) (grad e - grad h)(grad e - grad h)^T
        gap = np.empty_like(jacobian)
        gap[:, 0] = 1.0
        gap[:, 1:5] = -gamma[:, None] * gradient
        gap[:, 5] = -inner
        hessian += (gap * (slope * floor * (1 - floor))[:, None]) @ gap.transpose(0, 2, 1)
        # h = gamma k: gamma H_k + the cross derivative in gamma
        weight = slope * (1 - floor)
        cross = (gradient * weight[:, None]).sum(axis=2)
        hessian[:, 1:5, 5] += cross
        hessian[:, 5, 1:5] += cross
        # inner log-sum-exp: share (1 - share) d d^T with d = grad of the difference of its terms
        one = np.ones_like(share)
        gap = np.stack([one, -one * x[0], -one, one * x[1]], axis=1)
        spread = (weight * gamma * share * (1 - share))[:, None]
        hessian[:, 1:5, 1:5] += (gap * spread) @ gap.transpose(0, 2, 1)
        return hessian

    def starts(self, x: Array, loss: Array, weight: Array, count: int) -> Array:
        rows = np.stack([np.zeros(x.shape[1]), x[0], x[1]])
        base = _BASE.starts(rows, loss, weight, max(1, count // 4))
        found: list[Array] = []
        for gamma in (1.0, 0.6, 1.6, 0.35):
            scaled = np.column_stack([base, np.full(len(base), gamma)])
            scaled[:, 1:5] /= gamma
            found.append(scaled)
        return np.concatenate(found)[:count]

    def natural(self, theta: Array, centres: Array) -> Array:
        out = np.array(theta, dtype=float)
        out[..., 0] = np.exp(theta[..., 0])
        out[..., 1] = np.exp(theta[..., 1] + theta[..., 2] * centres[0])
        out[..., 3] = np.exp(theta[..., 3] + theta[..., 4] * centres[1])
        return out

    def internal(self, values: Array, centres: Array) -> Array:
        out = np.array(values, dtype=float)
        out[..., 0] = np.log(values[..., 0])
        out[..., 1] = np.log(values[..., 1]) - values[..., 2] * centres[0]
        out[..., 3] = np.log(values[..., 3]) - values[..., 4] * centres[1]
        return out

    def bounds(self, loss: Array) -> tuple[Array, Array]:
        lower, upper = super().bounds(loss)
        lower[5], upper[5] = _GAMMA_BOUNDS
        return lower, upper

    def inner(self, values: Array, held: Mapping[str, float] | None = None) -> Inner | None:
        return Inner(*(self.column(values, name) for name in ("A", "alpha", "B", "beta")))

    def outer(self, values: Array) -> Array | float:
        return self.column(values, "gamma")


class KaplanLaw(Law):
    """Kaplan's joint form: gamma without floor and with the inner exponent of D fixed to one.

    Internal vector: (a, u, b, gamma) with u = alpha_N / alpha_D, gamma = alpha_D.
    """

    name = "kaplan"
    formula = "L = ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D"
    columns = ("n", "d")
    parameters = ("N_c", "alpha_N", "D_c", "alpha_D")
    exponents = ("alpha_D",)
    _gamma = GammaLaw()
    _free = (1, 2, 3, 5)

    def _lift(self, theta: Array) -> Array:
        """The same law as a vector of the gamma form: no floor, beta = 1."""
        lifted = np.empty((*theta.shape[:-1], 6))
        lifted[..., 0], lifted[..., 4] = -700.0, 1.0
        lifted[..., self._free] = theta
        return lifted

    def features(self, columns: Columns, centres: Array | None = None) -> tuple[Array, Array]:
        return self._gamma.features(columns, centres)

    def log_loss(self, theta: Array, x: Array) -> Array:
        return self._gamma.log_loss(self._lift(theta), x)

    def evaluate(self, theta: Array, x: Array) -> tuple[Array, Array, Any]:
        value, jacobian, state = self._gamma.evaluate(self._lift(theta), x)
        return value, jacobian[:, self._free], state

    def hessian(self, state: Any, curvature: Array, slope: Array) -> Array:
        full = self._gamma.hessian(state, curvature, slope)
        return full[:, self._free][:, :, self._free]

    def starts(self, x: Array, loss: Array, weight: Array, count: int) -> Array:
        """L^(1/gamma) = A N^-u + B / D is linear in A and B: variable projection once more."""
        found: list[Array] = []
        costs: list[float] = []
        for gamma in np.geomspace(0.03, 0.6, 8):
            target = loss ** (1 / gamma)
            for u in np.geomspace(0.2, 5.0, 8):
                features = np.stack([np.exp(-u * x[0]), np.exp(-x[1])]) / target
                root = np.sqrt(weight)
                solution = np.linalg.lstsq((features * root).T, root, rcond=None)[0]
                solution = np.maximum(solution, 1e-3 * float(np.median(target)))
                found.append(np.array([math.log(solution[0]), u, math.log(solution[1]), gamma]))
                error = gamma * np.log(np.maximum(solution @ features, 1e-300))
                costs.append(float(weight @ np.abs(error)))
        return np.stack([found[i] for i in np.argsort(costs)[:count]])

    def natural(self, theta: Array, centres: Array) -> Array:
        a, u, b, gamma = (theta[..., i] for i in range(4))
        return np.stack(
            [np.exp(a / u + centres[0]), u * gamma, np.exp(b + centres[1]), gamma], axis=-1
        )

    def internal(self, values: Array, centres: Array) -> Array:
        n_c, alpha_n, d_c, alpha_d = (values[..., i] for i in range(4))
        u = alpha_n / alpha_d
        a = u * (np.log(n_c) - centres[0])
        return np.stack([a, u, np.log(d_c) - centres[1], alpha_d], axis=-1)

    def bounds(self, loss: Array) -> tuple[Array, Array]:
        lower, upper = np.full(4, -np.inf), np.full(4, np.inf)
        lower[1], upper[1] = 0.02, 50.0
        lower[3], upper[3] = 1e-3, 5.0
        return lower, upper

    def inner(self, values: Array, held: Mapping[str, float] | None = None) -> Inner | None:
        n_c, alpha_n, d_c, alpha_d = (values[..., i] for i in range(4))
        u = alpha_n / alpha_d
        return Inner(n_c**u, u, d_c, np.ones_like(u))

    def outer(self, values: Array) -> Array | float:
        return self.column(values, "alpha_D")


class _GaussNewton(Law):
    """A form whose state is its Jacobian, and whose own curvature is left out."""

    slow = True

    def hessian(self, state: Any, curvature: Array, slope: Array) -> Array:
        del slope
        return (state * curvature[:, None]) @ state.transpose(0, 2, 1)


class Stepped(_GaussNewton):
    """A form given by `complex_log_loss` alone; Jacobians by complex step."""

    _STEP = 1e-30

    @abstractmethod
    def complex_log_loss(self, theta: Any, x: Array) -> Any:
        """`log_loss` for real or complex theta (b, p)."""

    def log_loss(self, theta: Array, x: Array) -> Array:
        flat = theta.reshape(-1, theta.shape[-1])
        return self.complex_log_loss(flat, x).reshape(*theta.shape[:-1], x.shape[1])

    def _jacobian(self, theta: Array, x: Array) -> Array:
        columns: list[Array] = []
        for j in range(self.size):
            moved = theta.astype(complex)
            moved[:, j] += 1j * self._STEP
            columns.append(self.complex_log_loss(moved, x).imag / self._STEP)
        return np.stack(columns, axis=1)

    def evaluate(self, theta: Array, x: Array) -> tuple[Array, Array, Any]:
        jacobian = self._jacobian(theta, x)
        return self.log_loss(theta, x), jacobian, jacobian


def complex_lse(*terms: Any) -> Any:
    """log of a sum of exponentials; the shift is real, so it also differentiates."""
    top = functools.reduce(np.maximum, [np.real(t) for t in terms])
    return top + np.log(sum(np.exp(t - top) for t in terms))


class DataConstrained(_GaussNewton):
    """Muennighoff et al.: repeated tokens and excess parameters are worth less and less.

    R_D: after about that many repetitions further epochs add little; R_N the same for parameters
    beyond those that are compute-optimal for the unique tokens.
    """

    name = "data_constrained"
    formula = "L = E + A N'^-alpha + B D'^-beta, N' and D' saturating with repetition"
    columns = ("n", "d", "u")
    parameters = ("E", "A", "alpha", "B", "beta", "R_D", "R_N")
    exponents = ("alpha", "beta")
    scales = ("R_D", "R_N")

    def features(self, columns: Columns, centres: Array | None = None) -> tuple[Array, Array]:
        """log N, log D, log U; all centred, U by the centre of D so that D / U survives."""
        x = np.log(np.stack([columns["n"], columns["d"], columns["u"]]))
        middle: Array = (
            np.array([x[0].mean(), x[1].mean(), x[1].mean()]) if centres is None else centres
        )
        return x - middle[:, None], middle

    def log_loss(self, theta: Array, x: Array) -> Array:
        e, a, alpha, b, beta, log_rd, log_rn = (theta[..., i, None] for i in range(7))
        _, unique_n = self._unique(theta, x)
        n = _saturate(x[0] - unique_n, log_rn)[0] + unique_n
        d = _saturate(np.maximum(x[1] - x[2], 0.0), log_rd)[0] + np.minimum(x[1], x[2])
        return np.logaddexp(e, np.logaddexp(a - alpha * n, b - beta * d))

    def _unique(self, theta: Array, x: Array) -> tuple[Array, Array]:
        """log of the N that is compute-optimal for U unique tokens, alpha A N^-alpha = beta B
        U^-beta, and of the smaller of it and N."""
        a, alpha, b, beta = (theta[..., i, None] for i in (1, 2, 3, 4))
        enough = (np.log(alpha) + a - np.log(beta) - b + beta * x[2]) / alpha
        return enough, np.minimum(enough, x[0])

    def evaluate(self, theta: Array, x: Array) -> tuple[Array, Array, Any]:
        e, a, alpha, b, beta, log_rd, log_rn = (theta[:, i, None] for i in range(7))
        enough, unique_n = self._unique(theta, x)
        more_n, n_by_ratio, n_by_r = _saturate(x[0] - unique_n, log_rn)
        more_d, _, d_by_r = _saturate(np.maximum(x[1] - x[2], 0.0), log_rd)
        n, d = more_n + unique_n, more_d + np.minimum(x[1], x[2])
        first, second = a - alpha * n, b - beta * d
        value = np.logaddexp(e, np.logaddexp(first, second))
        share_n, share_d = np.exp(first - value), np.exp(second - value)
        by_enough = np.where(enough < x[0], 1.0 - n_by_ratio, 0.0)  # d log N' / d enough
        through = -share_n * by_enough  # d value / d enough, over alpha
        jacobian = np.empty((len(theta), 7, x.shape[1]))
        jacobian[:, 0] = np.exp(e - value)
        jacobian[:, 1] = share_n + through
        jacobian[:, 2] = -share_n * n + through * (1.0 / alpha - enough)
        jacobian[:, 3] = share_d - through
        jacobian[:, 4] = -share_d * d + through * (x[2] - 1.0 / beta)
        jacobian[:, 5] = -share_d * beta * d_by_r
        jacobian[:, 6] = -share_n * alpha * n_by_r
        return value, jacobian, jacobian

    def starts(self, x: Array, loss: Array, weight: Array, count: int) -> Array:
        rows = np.stack([np.zeros(x.shape[1]), x[0], np.minimum(x[1], x[2])])
        base = _BASE.starts(rows, loss, weight, max(2, count // 4))
        found = [
            np.column_stack([base, np.full(len(base), math.log(rd)), np.full(len(base), rn)])
            for rd in (15.0, 4.0)
            for rn in (math.log(5.0), math.log(50.0))
        ]
        return np.concatenate(found)[:count]

    def natural(self, theta: Array, centres: Array) -> Array:
        out = np.array(theta, dtype=float)
        out[..., 0] = np.exp(theta[..., 0])
        out[..., 1] = np.exp(theta[..., 1] + theta[..., 2] * centres[0])
        out[..., 3] = np.exp(theta[..., 3] + theta[..., 4] * centres[1])
        out[..., 5:] = np.exp(theta[..., 5:])
        return out

    def internal(self, values: Array, centres: Array) -> Array:
        out = np.array(values, dtype=float)
        out[..., 0] = np.log(values[..., 0])
        out[..., 1] = np.log(values[..., 1]) - values[..., 2] * centres[0]
        out[..., 3] = np.log(values[..., 3]) - values[..., 4] * centres[1]
        out[..., 5:] = np.log(values[..., 5:])
        return out

    def bounds(self, loss: Array) -> tuple[Array, Array]:
        lower, upper = super().bounds(loss)
        lower[5:], upper[5:] = math.log(0.05), math.log(1e4)
        return lower, upper

    def inner(self, values: Array, held: Mapping[str, float] | None = None) -> Inner | None:
        """The split for fresh data (no repetition)."""
        return Inner(*(self.column(values, name) for name in ("A", "alpha", "B", "beta")))


def _saturate(log_ratio: Array, log_r: Array) -> tuple[Array, Array, Array]:
    """log(1 + R (1 - exp(-(ratio - 1) / R))), what `ratio` passes are worth, in passes; and its
    derivatives by log ratio and by log R."""
    extra = np.expm1(np.minimum(log_ratio, 50.0))
    r = np.exp(log_r)
    left, gone = np.exp(-extra / r), -np.expm1(-extra / r)
    worth = 1.0 + r * gone
    by_r = (r * gone - extra * left) / worth
    return np.log(worth), left * (1.0 + extra) / worth, by_r


class BrokenPower(Stepped):
    """Smoothly broken power law in compute, one break (Caballero et al. 2210.14891)."""

    name = "broken_c"
    formula = "L = E + A C^-alpha (1 + (C/C_b)^(1/width))^(-step width)"
    columns = ("c",)
    parameters = ("E", "A", "alpha", "C_b", "step", "width")
    exponents = ("alpha", "step", "width")

    def features(self, columns: Columns, centres: Array | None = None) -> tuple[Array, Array]:
        x = np.log(columns["c"])[None, :]
        middle: Array = x.mean(axis=1) if centres is None else centres
        return x - middle[:, None], middle

    def complex_log_loss(self, theta: Any, x: Array) -> Any:
        e, a, alpha, place, step, width = (theta[:, i, None] for i in range(6))
        bend = complex_lse(np.zeros_like(x[0]), (x[0] - place) / width)
        return complex_lse(e + 0 * bend, a - alpha * x[0] - step * width * bend)

    def starts(self, x: Array, loss: Array, weight: Array, count: int) -> Array:
        base = _CURVE.starts(np.stack([np.zeros(x.shape[1]), x[0]]), loss, weight, 2)
        found = [
            np.column_stack([base, np.tile([place, step, width], (len(base), 1))])
            for place in np.quantile(x[0], [0.5, 0.25, 0.75])
            for step in (0.05, -0.05)
            for width in (0.5, 1.5)
        ]
        return np.concatenate(found)[:count]

    def natural(self, theta: Array, centres: Array) -> Array:
        out = np.array(theta, dtype=float)
        out[..., 0] = np.exp(theta[..., 0])
        out[..., 1] = np.exp(theta[..., 1] + theta[..., 2] * centres[0])
        out[..., 3] = np.exp(theta[..., 3] + centres[0])
        return out

    def internal(self, values: Array, centres: Array) -> Array:
        out = np.array(values, dtype=float)
        out[..., 0] = np.log(values[..., 0])
        out[..., 1] = np.log(values[..., 1]) - values[..., 2] * centres[0]
        out[..., 3] = np.log(values[..., 3]) - centres[0]
        return out

    def bounds(self, loss: Array) -> tuple[Array, Array]:
        lower, upper = super().bounds(loss)
        lower[4], upper[4] = -3.0, 3.0
        lower[5], upper[5] = 0.02, 10.0
        return lower, upper

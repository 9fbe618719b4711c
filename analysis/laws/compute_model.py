"""What a token costs: training FLOPs C = f(N) D with f a smooth function of the size N.

    SIX_ND                            f = 6 N
    fit_compute_model(n, per_token)   f through FLOPs per token at known sizes
        1. 6 N, where every row says so
        2. c_3 N + c_2 N^(2/3) + c_1 N^(1/3), coefficients >= 0: width grows as about N^(1/3), so
           matrices cost ~ N, attention over a context ~ N^(2/3), an output head ~ N^(1/3)
        3. where these miss it by over 1 % (N that counts embeddings, say): the same with any sign,
           or log f quadratic in log N; both straight in log-log beyond the sizes known
    optimum(inner, compute, model)    N*, D* that minimise A / N^alpha + B / D^beta at C = f(N) D
    optimum_by_search(loss, ...)      the same where the terms hold N and D together

The optimal exponents depend on f: with e = d log f / d log N, N* ~ C^(beta / (alpha + e beta))
where e is constant, and no power law where it is not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from analysis.laws.power_sum import Inner
from analysis.units import Array

Source = Literal["6ND", "accounting", "column"]
Shape = Literal["widths", "signed", "curve"]
_WORDS: dict[Source, str] = {
    "6ND": "C = 6 N D (assumed)",
    "accounting": "C = f(N) D, f from the accounting of the runs",
    "column": "C = f(N) D, f fitted to",
}
_SAME = 1e-3
"""Log FLOPs per token nearer to 6 N than this are 6 N."""
_MISS = 0.01
"""Widths that leave more than this of log FLOPs per token may give way to the others."""
_STEEPEST, _FLATTEST = 3.0, 0.1
"""Elasticities outside these follow noise in C rather than the size."""
_ITERATIONS, _DONE, _STRIDE = 60, 1e-12, 3.0
_GRID, _ROUNDS = 65, 8
"""Sizes of a round, and rounds, of a search: each narrows it 32 times."""


@dataclass(frozen=True)
class ComputeModel:
    """f(N) of C = f(N) D."""

    source: Source
    """Where f comes from."""
    coefficients: tuple[float, ...]
    """Of N, N^(2/3), N^(1/3) in units of `scale`; of a `curve` those of log f, lowest power of
    log(N / scale) first."""
    scale: float = 1.0
    shape: Shape = "widths"
    span: tuple[float, float] = (0.0, 0.0)
    """Of log(N / scale): other shapes than `widths` are straight outside."""
    scatter: float = 0.0
    """Root mean square of log C - log f(N) D over the rows."""
    column: str = ""
    """Column of C that f was fitted to."""

    def __call__(self, n: Array) -> Array:
        """FLOPs per token at sizes n."""
        return np.exp(self.log_cost(np.log(np.asarray(n, dtype=float)))[0])

    def log_cost(self, log_n: Array) -> tuple[Array, Array, Array]:
        """log f, its elasticity e = d log f / d log N, and d e / d log N, at log N of any shape."""
        x = log_n - np.log(self.scale)
        if self.power is not None:
            value = np.log(self.coefficients[0]) + x
            return value, np.ones_like(x), np.zeros_like(x)
        if self.shape == "widths":
            return self._widths(x)
        inside = np.clip(x, *self.span)
        value, slope, bend = (
            self._polynomial(inside) if self.shape == "curve" else self._widths(inside)
        )
        return value + slope * (x - inside), slope, np.where(inside == x, bend, 0.0)

    def _widths(self, x: Array) -> tuple[Array, Array, Array]:
        wide = np.exp(x / 3)
        matrices, context, head = self.coefficients
        parts = (matrices * wide**3, context * wide**2, head * wide)
        total = parts[0] + parts[1] + parts[2]
        slope = (parts[0] + 2 / 3 * parts[1] + parts[2] / 3) / total
        square = (parts[0] + 4 / 9 * parts[1] + parts[2] / 9) / total
        return np.log(total), slope, square - slope**2

    def _polynomial(self, x: Array) -> tuple[Array, Array, Array]:
        level, slope, bend = self.coefficients
        return level + x * (slope + x * bend), slope + 2 * bend * x, np.full_like(x, 2 * bend)

    @property
    def power(self) -> float | None:
        """k of f = k N, where f is that; None elsewhere."""
        if self.shape == "widths" and not any(self.coefficients[1:]):
            return self.coefficients[0] / self.scale
        return None

    def describe(self) -> str:
        """Where f comes from, in words."""
        text = _WORDS[self.source]
        if self.source == "column":
            text += f" column {self.column!r}"
        if self.source != "6ND" and self.scatter > _SAME:
            text += f" (rows scatter by {self.scatter:.1%} about it)"
        return text

    def as_dict(self) -> dict[str, Any]:
        """JSON types, with the words."""
        return {**asdict(self), "words": self.describe()}

    @staticmethod
    def from_dict(record: dict[str, Any]) -> ComputeModel:
        """Inverse of `as_dict`."""
        fields = {k: v for k, v in record.items() if k != "words"}
        pairs = {k: tuple(fields[k]) for k in ("coefficients", "span")}
        return ComputeModel(**{**fields, **pairs})


SIX_ND = ComputeModel("6ND", (6.0,))
"""C = 6 N D: matrix products alone, without attention over a context and the output head."""


def fit_compute_model(
    n: Array, per_token: Array, *, source: Source = "column", column: str = ""
) -> ComputeModel:
    """f(N) through FLOPs per token `per_token` (m,) at sizes `n` (m,), all positive.

    Args:
        n, per_token: one value a run, or a checkpoint.
        source: `accounting` for exact counts of a run's record, `column` for a table's C / D.
        column: name of that column.
    """
    log_n, log_f = np.log(n), np.log(per_token)
    off = np.abs(log_f - log_n - np.log(6.0))
    if off.max() < _SAME:
        return ComputeModel(source, (6.0,), scatter=float(off.max()), column=column)
    scale = float(np.exp(log_n.mean()))
    x = log_n - np.log(scale)
    wide = np.exp(x / 3)
    basis = np.stack([wide**3, wide**2, wide], axis=1) / per_token[:, None]
    one = np.ones(len(n))
    best = _scattered(
        ComputeModel(source, _numbers(_non_negative(basis, one)), scale, column=column),
        log_n,
        log_f,
    )
    if len(np.unique(np.round(x, 6))) < 4:
        return best
    others: dict[Shape, Array] = {
        "signed": np.linalg.lstsq(basis, one, rcond=None)[0].astype(np.float64),
        "curve": np.polynomial.polynomial.polyfit(x, log_f, 2).astype(np.float64),
    }
    span = (float(x.min()), float(x.max()))
    for shape, found in others.items():
        if best.scatter < _MISS:
            break
        if shape == "signed" and (basis @ found).min() <= 0:
            continue
        other = _scattered(
            ComputeModel(source, _numbers(found), scale, shape, span, column=column), log_n, log_f
        )
        slopes = other.log_cost(np.linspace(log_n.min(), log_n.max(), 50))[1]
        sane = np.isfinite(slopes).all() and _FLATTEST < slopes.min() <= slopes.max() < _STEEPEST
        if sane and other.scatter < 0.5 * best.scatter:
            best = other
    return best


def _non_negative(basis: Array, target: Array) -> Array:
    """Least squares with coefficients >= 0: the best of all subsets of the few columns, whose own
    least-squares coefficients are positive."""
    columns = range(basis.shape[1])
    best, least = np.zeros(basis.shape[1]), float(target @ target)
    for size in range(1, basis.shape[1] + 1):
        for chosen in itertools.combinations(columns, size):
            part = basis[:, chosen]
            found = np.linalg.lstsq(part, target, rcond=None)[0]
            left = target - part @ found
            if found.min() >= 0 and float(left @ left) < least:
                best = np.zeros(basis.shape[1])
                best[list(chosen)] = found
                least = float(left @ left)
    return best


def _numbers(values: Array) -> tuple[float, ...]:
    return tuple(float(v) for v in values)


def _scattered(model: ComputeModel, log_n: Array, log_f: Array) -> ComputeModel:
    """The model with its scatter over the rows."""
    error = log_f - model.log_cost(log_n)[0]
    return ComputeModel(**{**model.__dict__, "scatter": float(np.sqrt(np.mean(error**2)))})


def optimum(inner: Inner, compute: Array, model: ComputeModel = SIX_ND) -> tuple[Array, Array]:
    """N*, D* that minimise A / N^alpha + B / D^beta within a compute budget; broadcasts over draws.

    With f = k N in closed form (Hoffmann et al. 2203.15556 equation 4): N* = G (C/k)^a,
    D* = (C/k)^b / G, a = beta / (alpha + beta), b = 1 - a,
    G = (alpha A / (beta B))^(1 / (alpha + beta)). Else the minimum is where
    alpha A N^-alpha = e(N) beta B D^-beta: Newton in log N from the closed form.
    """
    total = inner.alpha + inner.beta
    log_g = (np.log(inner.alpha * inner.A) - np.log(inner.beta * inner.B)) / total
    budget = np.log(compute / (6.0 if model.power is None else model.power))
    log_n = log_g + inner.beta / total * budget
    if model.power is not None:
        with np.errstate(over="ignore"):  # a refit without a term in N or D splits without bounds
            return np.exp(log_n), np.exp(budget - log_n)
    log_c = np.log(compute)
    constant = np.log(inner.beta * inner.B) - np.log(inner.alpha * inner.A)
    for _ in range(_ITERATIONS):
        log_f, slope, bend = model.log_cost(log_n)
        excess = constant + np.log(slope) - inner.beta * (log_c - log_f) + inner.alpha * log_n
        steep = inner.alpha + inner.beta * slope
        step = excess / np.maximum(steep + bend / slope, 0.5 * steep)
        log_n = log_n - np.clip(step, -_STRIDE, _STRIDE)
        if np.abs(step).max() < _DONE:
            break
    with np.errstate(over="ignore"):
        return np.exp(log_n), np.exp(log_c - model.log_cost(log_n)[0])


def optimum_by_search(
    loss: Callable[[Array, Array], Array], compute: Array, model: ComputeModel,
    sizes: tuple[float, float],
) -> tuple[Array, Array]:  # fmt: skip
    """N*, D* of a law whose terms hold N and D together: the lowest of a grid of sizes, refined.

    Args:
        loss: of n, d (..., m, g), one value each.
        compute: budgets (m,).
        sizes: smallest and largest N looked at; an optimum at either is none.
    """
    low, high = (np.log(size) * np.ones(compute.shape) for size in sizes)
    log_c = np.log(compute)[..., None]
    step = np.linspace(0.0, 1.0, _GRID)
    log_n = low
    for _ in range(_ROUNDS):
        grid = low[..., None] + (high - low)[..., None] * step
        log_d = log_c - model.log_cost(grid)[0]
        with np.errstate(over="ignore", invalid="ignore"):
            found = loss(np.exp(grid), np.exp(log_d))
        best = np.where(np.isfinite(found), found, np.inf).argmin(axis=-1)[..., None]
        wide = np.broadcast_to(grid, found.shape)
        low, log_n, high = (
            np.take_along_axis(wide, np.clip(best + k, 0, _GRID - 1), axis=-1)[..., 0]
            for k in (-1, 0, 1)
        )
    with np.errstate(over="ignore"):
        return np.exp(log_n), np.exp(log_c[..., 0] - model.log_cost(log_n)[0])


def optimal_exponents(
    inner: Inner, low: float, high: float, model: ComputeModel = SIX_ND
) -> tuple[Array, Array]:
    """a and b of N* ~ C^a, D* ~ C^b between two budgets; exact where f is a power of N.

    Elsewhere N*(C) bends, and a and b are its mean slopes from `low` to `high`.
    """
    total = inner.alpha + inner.beta
    if model.power is not None:
        return inner.beta / total, inner.alpha / total
    n_low, d_low = optimum(inner, np.asarray(low), model)
    n_high, d_high = optimum(inner, np.asarray(high), model)
    span = np.log(high / low)
    return np.log(n_high / n_low) / span, np.log(d_high / d_low) / span

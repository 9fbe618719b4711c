"""Covariance of what a law misses: smooth misfit of the form, effects of runs, noise of points.

    C = diag(noise) + rho^2 K + r G

K is a kernel over the logarithms of N and D (or of the one variable), G is 1 within a group. Few
rows are factored as they are. Many are not: K is smooth, so a pivoted Cholesky factor of a
hundred columns holds it, what that leaves out goes to the diagonal, and G is one row a group; then
C^-1 and det C follow from Woodbury's identity in time linear in the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.sparse import csr_array

from analysis.laws.power_sum import Array

Groups = NDArray[np.int64]
"""Index (n,) of each row's group, from 0; -1 for a further row that is in none of them."""

DENSE_UP_TO = 300
"""Rows up to which covariances are factored whole."""
_LARGEST_RANK, _RESIDUAL = 128, 1e-5


@dataclass(frozen=True)
class Kernel:
    """A stationary kernel of unit variance with one length per coordinate."""

    kind: str
    """matern32 or rbf."""
    lengths: tuple[float, ...]

    def __call__(self, left: Array, right: Array) -> Array:
        """Values (a, b) between points (k, a) and (k, b)."""
        square = np.zeros((left.shape[1], right.shape[1]))
        for one, other, length in zip(left, right, self.lengths, strict=True):
            square += ((one[:, None] - other) / length) ** 2
        if self.kind == "rbf":
            return np.exp(-0.5 * square)
        distance = np.sqrt(3.0 * square)
        return (1.0 + distance) * np.exp(-distance)


class Covariance(Protocol):
    """What a fit needs of C."""

    logdet: float

    def solve(self, right: Array) -> Array:
        """C^-1 times right (n, m)."""
        ...


class Dense:
    """C factored whole."""

    def __init__(self, noise: Array, smooth: Array, rho: float, groups: Groups, r: float) -> None:
        matrix = rho**2 * smooth
        matrix[np.diag_indices_from(matrix)] += noise
        if r > 0:
            matrix += r * same(groups, groups)
        self._factor = cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False)
        self.logdet = 2.0 * float(np.log(np.diag(self._factor[0])).sum())

    def solve(self, right: Array) -> Array:
        return cho_solve(self._factor, right, check_finite=False)


class LowRank:
    """C as a diagonal, groups and a thin factor."""

    def __init__(self, noise: Array, thin: Array, rho: float, groups: Groups, r: float) -> None:
        self._thin, self._rho, self._r, self._groups = thin, rho, r, groups
        left_out = np.maximum(1.0 - (thin**2).sum(axis=1), 0.0)
        self._inverse = 1.0 / (noise + rho**2 * left_out)
        self.logdet = -float(np.log(self._inverse).sum())
        if r > 0:
            ones = np.ones(len(groups))
            self._member = csr_array((ones, (groups, np.arange(len(groups)))))
            weight = self._member @ self._inverse
            self._shrink = r / (1.0 + r * weight)
            self.logdet += float(np.log1p(r * weight).sum())
        if rho > 0:
            self._base_thin = self._base(thin)
            inner = thin.T @ self._base_thin
            inner[np.diag_indices_from(inner)] += rho**-2
            self._factor = cho_factor(inner, lower=True, overwrite_a=True, check_finite=False)
            self.logdet += 2.0 * float(np.log(rho * np.diag(self._factor[0])).sum())

    def _base(self, right: Array) -> Array:
        """(diagonal + r G)^-1 times right, group by group (Sherman and Morrison)."""
        scaled = right * self._inverse[:, None]
        if self._r == 0:
            return scaled
        sums = self._shrink[:, None] * (self._member @ scaled)
        return scaled - self._inverse[:, None] * sums[self._groups]

    def solve(self, right: Array) -> Array:
        base = self._base(right)
        if self._rho == 0:
            return base
        inside = cho_solve(self._factor, self._thin.T @ base, check_finite=False)
        return base - self._base_thin @ inside


class Smooth:
    """One kernel over the training points, and its values at further points."""

    def __init__(self, kernel: Kernel, x: Array) -> None:
        self.kernel, self.x = kernel, x
        self.dense = x.shape[1] <= DENSE_UP_TO
        if self.dense:
            self.matrix = kernel(x, x)
        else:
            self._pivots, self.matrix = pivoted(kernel, x)
            corner = self.matrix[self._pivots]
            self._corner = np.tril(corner)

    def covariance(self, noise: Array, rho: float, groups: Groups, r: float) -> Covariance:
        """C for these sizes of misfit and group effect, both relative to the noise."""
        kind = Dense if self.dense else LowRank
        return kind(noise, self.matrix, rho, groups, r)

    def between(self, targets: Array) -> Array:
        """K (t, n) between targets (k, t) and the training points."""
        if self.dense:
            return self.kernel(targets, self.x)
        across = self.kernel(self.x[:, self._pivots], targets)
        return solve_triangular(self._corner, across, lower=True).T @ self.matrix.T


def pivoted(kernel: Kernel, x: Array) -> tuple[list[int], Array]:
    """Partial Cholesky factor (n, m) of the kernel matrix, pivoted; and the m pivots.

    Stops where no diagonal entry of the rest exceeds 1e-5 of the variance, or at 128 columns.
    """
    n = x.shape[1]
    rest = np.ones(n)
    factor = np.zeros((n, min(n, _LARGEST_RANK)))
    pivots: list[int] = []
    for j in range(factor.shape[1]):
        at = int(rest.argmax())
        if rest[at] < _RESIDUAL:
            return pivots, factor[:, :j]
        pivots.append(at)
        column = kernel(x, x[:, at : at + 1])[:, 0] - factor[:, :j] @ factor[at, :j]
        factor[:, j] = column / np.sqrt(rest[at])
        rest = np.maximum(rest - factor[:, j] ** 2, 0.0)
        rest[pivots] = 0.0
    return pivots, factor


def same(left: Groups, right: Groups) -> Array:
    """1 where two rows are of one group (a, b); a further row in none of them matches nothing."""
    return ((left[:, None] == right) & (left[:, None] >= 0)).astype(float)

"""A law with weak priors, a Gaussian process for what its form misses, an effect of run or size.

    calibrate(mean, columns, loss, groups) -> CalibratedLaw
        1. robust weights: the law alone, reweighted, so that outliers count as noisier rows
        2. cells: every pairing of a kernel, a size rho of the misfit and a size r of the group
           effect, both relative to the noise
        3. in each cell the mode of the parameters and of the noise, and Laplace's approximation of
           the cell's share of the posterior
    CalibratedLaw.draw(targets) -> draws of the loss of one further run (or of the law alone)

The intervals so hold the parameters, the noise of runs, the misfit of the form and its extent, the
effect of a new run or size, and heavy tails: every draw is divided by one sqrt(chi2_4 / 4). The
grid, the lengths and the priors were chosen on public sets (docs/forecast.md says what they cover
there); none depends on the user's data beyond its medians.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from analysis.forecast.cells import MISFITS, Cell, settle
from analysis.forecast.gaussian_process import DENSE_UP_TO, Groups, Kernel, Smooth, same
from analysis.forecast.mean_law import MeanLaw
from analysis.forecast.robust_start import robust_start
from analysis.laws.power_sum import Array

KERNELS = {
    2: (Kernel("matern32", (6.0, 6.0)), Kernel("rbf", (3.0, 5.0)), Kernel("rbf", (5.0, 3.0))),
    1: (Kernel("matern32", (8.5,)), Kernel("rbf", (5.0,))),
}
"""By the number of variables; lengths in logarithms. In C alone N and D each move half as far."""
EFFECTS = (1.0, 10.0, 100.0)
"""r: variance of a group's effect in units of the noise's."""
_FREEDOM = 4.0
_LEAST_SHARE = 0.01


@dataclass(frozen=True)
class CalibratedLaw:
    """The posterior: cells with their shares."""

    mean: MeanLaw
    x: Array
    """Centred logarithms (k, n) of the training rows."""
    y: Array
    """Log losses (n,)."""
    groups: Groups
    cells: list[Cell]
    noise: Array
    """1 / omega (n,): how much noisier than usual each row was taken to be."""

    def draw(
        self,
        columns: Mapping[str, Array],
        *,
        groups: Groups | None = None,
        law_alone: bool = False,
        draws: int = 4000,
        seed: int = 0,
    ) -> Array:
        """Draws (draws, t) of the loss at targets, from the posterior.

        Args:
            columns: N and D, or the one variable, of each target (t,).
            groups: of each target, among the training rows' groups; -1, the default, is a run or
                size that was not measured, and has an effect of its own.
            law_alone: leave out the noise of a run and the effect of a new group.
            draws: how many.
            seed: of the draws.
        """
        targets = self.mean.features(columns)
        known = np.full(targets.shape[1], -1) if groups is None else groups
        rng = np.random.default_rng(seed)
        parts = [
            self._draw_cell(cell, targets, known, law_alone, count, rng)
            for cell, count in zip(self.cells, self._counts(draws), strict=True)
            if count
        ]
        return np.exp(rng.permutation(np.concatenate(parts)))

    def draw_parameters(self, *, draws: int = 4000, seed: int = 0) -> Array:
        """Draws (draws, p) of the free coordinates of the law, in `draw`'s order of cells."""
        rng = np.random.default_rng(seed)
        return np.concatenate([
            self._thetas(cell, count, rng)[0]
            for cell, count in zip(self.cells, self._counts(draws), strict=True) if count
        ])  # fmt: skip

    @cached_property
    def misfit(self) -> float:
        """Posterior mean of the standard deviation of the form's misfit, in log loss."""
        return sum(c.weight * c.rho * c.sigma for c in self.cells)

    @cached_property
    def sigma(self) -> float:
        """Posterior mean of the noise of one point, in log loss."""
        return sum(c.weight * c.sigma for c in self.cells)

    def _counts(self, draws: int) -> list[int]:
        """Draws of each cell, in proportion to its share (largest remainders)."""
        exact = np.array([c.weight for c in self.cells]) * draws
        counts = np.floor(exact).astype(int)
        order = np.argsort(-(exact - counts), kind="stable")
        counts[order[: draws - int(counts.sum())]] += 1
        return counts.tolist()

    @staticmethod
    def _thetas(cell: Cell, count: int, rng: np.random.Generator) -> tuple[Array, Array]:
        kappa = np.sqrt(rng.chisquare(_FREEDOM, count) / _FREEDOM)
        normal = rng.standard_normal((count, len(cell.theta)))
        return cell.theta + normal @ cell.spread.T / kappa[:, None], kappa

    def _draw_cell(
        self, cell: Cell, targets: Array, groups: Groups, law_alone: bool, count: int,
        rng: np.random.Generator,
    ) -> Array:  # fmt: skip
        theta, kappa = self._thetas(cell, count, rng)
        across = cell.rho**2 * cell.smooth.between(targets)
        if cell.r > 0:
            across = across + cell.r * same(groups, self.groups)
        gain = cell.covariance.solve(across.T)  # (n, t)
        centre = self.mean.log_loss(theta, targets) + self._missed(cell, theta, gain)
        own = cell.rho**2 + cell.r * (groups >= 0 if law_alone else 1.0) + (not law_alone)
        variance = np.maximum(own - (across * gain.T).sum(axis=1), 0.0)
        noise = rng.standard_normal(centre.shape) * cell.sigma * np.sqrt(variance)
        return centre + noise / kappa[:, None]

    def _missed(self, cell: Cell, theta: Array, gain: Array) -> Array:
        """What targets take over from the training residuals: (y - m(theta)) gain, (b, t).

        Many rows hold theta closely, and m is then linear in it.
        """
        if len(self.y) <= DENSE_UP_TO:
            return (self.y - self.mean.log_loss(theta, self.x)) @ gain
        value, jacobian = self.mean.evaluate(cell.theta, self.x)
        return (self.y - value) @ gain - (theta - cell.theta) @ (jacobian @ gain)


def calibrate(
    mean: MeanLaw, columns: Mapping[str, Array], loss: Array, groups: Groups | None
) -> CalibratedLaw:
    """The posterior given rows.

    Args:
        mean: the law, placed at these data.
        columns: N and D, or the one variable, by role (n,).
        loss: measured losses (n,).
        groups: index (n,) of the run or size whose effect rows share; None for no such effect.
    """
    x, y = mean.features(columns), np.log(loss)
    start, noise = robust_start(mean, x, y)
    index = np.full(len(y), -1) if groups is None else groups
    found: list[tuple[float, Cell]] = []
    kernels = KERNELS[len(x)]
    smooths = [Smooth(kernel, x) for kernel in kernels]
    for rho in MISFITS:
        for smooth in smooths if rho > 0 else smooths[:1]:
            for r in (0.0,) if groups is None else EFFECTS:
                covariance = smooth.covariance(noise, rho, index, r)
                share = 0.0 if rho == 0 else -math.log(len(kernels))
                found.append(settle(mean, x, y, start, smooth, covariance, rho, r, share))
    logs = np.array([each[0] for each in found])
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    kept = weights >= _LEAST_SHARE
    cells = [
        replace(cell, weight=float(w / weights[kept].sum()))
        for (_, cell), w, keep in zip(found, weights, kept, strict=True)
        if keep
    ]
    return CalibratedLaw(mean, x, y, index, cells, noise)

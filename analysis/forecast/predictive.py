"""Draws of the loss of runs not yet made: which method, for how many rows.

    predict_from(rows, pinned) -> Predictive
        enough rows                the calibrated law (calibrated_law.py)
        few rows, E pinned, one    a line through ln(L - E), with Student's t and the misfit a form
        variable                   usually has
        few rows otherwise         the law's mode, and no interval

Every method answers in draws, so that intervals, scores and mixtures are taken in one way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy.stats import t

from analysis.errors import AnalysisError
from analysis.forecast.calibrated_law import KERNELS, CalibratedLaw, calibrate
from analysis.forecast.cells import MISFIT_PRIOR, NOISE_PRIOR
from analysis.forecast.mean_law import PHI_PRIOR, MeanLaw
from analysis.forecast.rows import Rows
from analysis.laws.power_sum import Array

DRAWS = 4000


class Predictive(Protocol):
    """What every method offers."""

    @property
    def rows(self) -> Rows:
        """What it was made from."""
        ...

    @property
    def mean(self) -> MeanLaw:
        """The law in its middle."""
        ...

    @property
    def no_interval(self) -> str | None:
        """Why its draws say nothing about spread; None where they do."""
        ...

    def draw(
        self,
        columns: Mapping[str, Array],
        runs: list[str],
        *,
        law_alone: bool = False,
        seed: int = 0,
        draws: int = DRAWS,
    ) -> Array:
        """Draws (draws, t) of the loss at targets (t,) of the named runs; draws in fours."""
        ...

    def describe(self) -> dict[str, Any]:
        """Parameters and method as JSON types."""
        ...

    def thetas(self, seed: int = 0) -> Array:
        """Draws (DRAWS, p) of the law's free coordinates."""
        ...


@dataclass(frozen=True)
class Calibrated:
    """The posterior of calibrated_law.py."""

    rows: Rows
    mean: MeanLaw
    law: CalibratedLaw
    no_interval: str | None = None

    def draw(
        self,
        columns: Mapping[str, Array],
        runs: list[str],
        *,
        law_alone: bool = False,
        seed: int = 0,
        draws: int = DRAWS,
    ) -> Array:
        groups = self.rows.groups_of(columns, runs)
        drawn = self.law.draw(columns, groups=groups, law_alone=law_alone, draws=draws, seed=seed)
        if self.no_interval is None:
            return drawn
        return np.repeat(np.median(drawn, axis=0, keepdims=True), draws, axis=0)

    def thetas(self, seed: int = 0) -> Array:
        return self.law.draw_parameters(draws=DRAWS, seed=seed)

    def describe(self) -> dict[str, Any]:
        drawn = self.mean.natural(self.thetas())
        told: dict[str, Any] = {
            "method": "law with weak priors, Gaussian process for the misfit, effect of "
                      f"{self.rows.shared}",
            "parameters": {k: _summary(v, self.no_interval is None) for k, v in drawn.items()},
            "noise": self.law.sigma,
            "misfit": self.law.misfit,
        }  # fmt: skip
        if "phi" in self.mean.names:
            at = self.mean.names.index("phi")
            told["floor_from_prior"] = bool(self.thetas()[:, at].std() > 0.5 * PHI_PRIOR[1])
        return told


@dataclass(frozen=True)
class PinnedLine:
    """A line through ln(L - E) against the logarithm of one variable, by least squares."""

    rows: Rows
    mean: MeanLaw
    no_interval: str | None = None

    def _line(self) -> tuple[Array, Array, float, Array, float]:
        """x (n,), coefficients (2,), residual standard deviation, (X'X)^-1, the floor."""
        x = self.mean.features(self.rows.columns)[0]
        floor = self.mean.pinned["E"]
        design = np.column_stack([np.ones_like(x), x])
        target = np.log(self.rows.loss - floor)
        inverse = np.linalg.inv(design.T @ design)
        fitted = inverse @ design.T @ target
        residual = target - design @ fitted
        return x, fitted, float(np.sqrt(residual @ residual / (len(x) - 2))), inverse, floor

    def draw(
        self,
        columns: Mapping[str, Array],
        runs: list[str],
        *,
        law_alone: bool = False,
        seed: int = 0,
        draws: int = DRAWS,
    ) -> Array:
        del runs
        rng = np.random.default_rng(seed)
        x, fitted, spread, inverse, floor = self._line()
        target = self.mean.features(columns)[0]
        design = np.column_stack([np.ones_like(target), target])
        variance = np.einsum("ti,ij,tj->t", design, inverse, design) + (not law_alone)
        # Both parts are mirrored, so that the median is the line's own.
        quarter = draws // 4
        steps = 0.5 + (np.arange(quarter) + 0.5) / (2 * quarter)
        away = t.ppf(steps, len(x) - 2)[:, None] * spread * np.sqrt(variance)
        size = np.exp(MISFIT_PRIOR[1][0] + MISFIT_PRIOR[1][1] * rng.standard_normal(quarter))
        bend = (size * rng.standard_normal(quarter))[:, None] * self._unseen(x, target)
        away = np.concatenate([away, away, -away, -away])
        bend = np.concatenate([bend, -bend, bend, -bend])
        return rng.permutation((floor + np.exp(design @ fitted + away)) * np.exp(bend))

    @staticmethod
    def _unseen(x: Array, target: Array) -> Array:
        """Standard deviation (t,) of a misfit of unit variance, given that none is seen at x."""
        kernel = KERNELS[1][0]
        ratio = math.exp(2 * (NOISE_PRIOR[0] - MISFIT_PRIOR[1][0]))
        inside = kernel(x[None], x[None]) + ratio * np.eye(len(x))
        across = kernel(target[None], x[None])
        held = np.einsum("tn,tn->t", across, np.linalg.solve(inside, across.T).T)
        return np.sqrt(np.maximum(1.0 - held, 0.0))

    def thetas(self, seed: int = 0) -> Array:
        rng = np.random.default_rng(seed)
        x, fitted, spread, inverse, _ = self._line()
        root = np.linalg.cholesky(inverse) * spread
        drawn = fitted + rng.standard_t(len(x) - 2, (DRAWS, 2)) @ root.T
        return np.column_stack([drawn[:, 0], np.log(np.maximum(-drawn[:, 1], 1e-6))])

    def describe(self) -> dict[str, Any]:
        _, fitted, spread, _, floor = self._line()
        drawn = self.mean.natural(self.thetas())
        told = {k: _summary(v, True) for k, v in drawn.items()}
        told["alpha"]["value"] = float(-fitted[1])
        return {
            "method": f"line through ln(L - {floor:g}) with Student's t of "
                      f"{len(self.rows.loss) - 2} degrees of freedom and a form's usual misfit",
            "parameters": told,
            "noise": spread,
            "misfit": math.exp(MISFIT_PRIOR[1][0]),
        }  # fmt: skip


def predict_from(rows: Rows, pinned: Mapping[str, float]) -> Predictive:
    """The method that these rows allow.

    Raises:
        AnalysisError: a parameter that the form cannot pin.
    """
    mean = MeanLaw.place(rows.form, pinned, rows.columns, rows.loss)
    few = rows.too_few
    if few and set(pinned) == {"E"} and len(mean.form.columns) == 1:
        if len(rows.loss) < 3:
            raise AnalysisError(f"{len(rows.loss)} rows: a law with E pinned needs at least 3")
        return PinnedLine(rows, mean)
    law = calibrate(mean, rows.columns, rows.loss, rows.groups)
    return Calibrated(rows, mean, law, few)


def _summary(values: Array, interval: bool) -> dict[str, Any]:
    """Median and 90 % interval of draws, or a value that is held."""
    if float(np.ptp(values)) == 0:
        return {"value": float(values[0]), "lo": None, "hi": None}
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95]).tolist()
    return {"value": middle, "lo": low if interval else None, "hi": high if interval else None}

"""The result of a fit: parameters, predictions, the optimum, intervals.

Everything with an interval comes from the same draws, so that correlated parameters (A with alpha,
B with beta) carry their correlation into predictions, optima and comparisons.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError, FitWarning
from analysis.fit import best_split
from analysis.fit.diagnostics import OF_DRAWS, Evidence, diagnose_draws
from analysis.fit.drawing import figure_of
from analysis.fit.law_record import read, written
from analysis.fit.observations import AXES, Observations
from analysis.fit.problem import Problem
from analysis.fit.uncertainty import (
    Draws,
    Method,
    Progress,
    bootstrap,
    inflated_residuals,
    jackknife,
    profile,
    quantiles,
)
from analysis.laws.compute_model import SIX_ND, ComputeModel
from analysis.laws.held import Held
from analysis.laws.power_sum import Law
from analysis.units import LEVEL, Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXTRAPOLATION_LIMIT = 10.0
"""Default factor in compute beyond the largest run up to which a forecast is given."""


@dataclass(frozen=True)
class LawFit:
    """One fitted law."""

    problem: Problem
    """Law, clean points, loss and bounds."""
    theta: Array
    """Internal parameters (p,), full precision."""
    objective: float
    """Weighted sum of losses of log residuals at the optimum."""
    evidence: Evidence
    """Convergence."""
    warnings: list[FitWarning]
    """What limits the result."""
    draws: Draws | None = None
    """Bootstrap refits; None without a bootstrap."""
    compute_model: ComputeModel = SIX_ND
    """C = f(N) D, under which optima are taken."""
    held: Held = field(default_factory=dict[str, float])
    """Of a form with further columns: the setting at which optima are taken (laws/held.py)."""

    @property
    def law(self) -> Law:
        """The form."""
        return self.problem.law

    @property
    def form(self) -> str:
        """Name of the form."""
        return self.law.name

    @property
    def observations(self) -> Observations:
        """The points fitted and the rows excluded."""
        return self.problem.observations

    @property
    def values(self) -> Array:
        """Natural parameters (p,)."""
        return self.problem.natural(self.theta)

    @property
    def params(self) -> dict[str, float]:
        """Natural parameters by name, then the a and b of N* ~ C^a and D* ~ C^b.

        Under `compute_model`; where its f(N) is no power law a and b are the mean slopes over the
        compute of the points.
        """
        named = dict(zip(self.law.parameters, self.values.tolist(), strict=True))
        return named | {k: float(v) for k, v in self.exponents_at(self.values).items()}

    def exponents_at(self, values: Array) -> dict[str, Array]:
        """a and b for given natural parameters (..., p); none without a best N and D."""
        return best_split.exponents(self, values, self._span())

    @cached_property
    def has_optimum(self) -> bool:
        """Whether a budget has a best N and D: not for a form without both, nor where the loss of a
        budget falls up to a size far outside of the data."""
        return best_split.exists(self, self._span())

    def holding(self, **setting: float) -> LawFit:
        """The same law with its optima at another setting: ratio, bits or share.

        Raises:
            AnalysisError: the form has no such setting, or the value is none.
        """
        for name, value in setting.items():
            if name not in self.held:
                has = ", ".join(self.held) or "no setting"
                raise AnalysisError(f"{self.form} has no {name!r} to hold; it has {has}")
            if not (np.isfinite(value) and value >= (1 if name == "ratio" else 0)):
                raise AnalysisError(f"{name} = {value:g} is no setting: ratios are 1 or more, bits "
                                    "and shares 0 or more")  # fmt: skip
        return dataclasses.replace(self, held={**self.held, **setting})

    def _span(self) -> tuple[float, float]:
        """Smallest and largest compute of the points, at least a tenth apart."""
        compute = self.observations.compute
        low, high = float(np.nanmin(compute)), float(np.nanmax(compute))
        return (low, high) if high > 1.1 * low else (low / 1.05, high * 1.05)

    # ---- predictions -------------------------------------------------------------------------

    def predict(self, *, extrapolate: bool = False, **columns: Any) -> np.ndarray:
        """Loss at given n, d, c (whatever the form needs; u, the unique tokens, are d where they
        are not given; t, the total parameters, n; p are bits of the weights, s the share).

        Raises:
            AnalysisError: a point with more than `EXTRAPOLATION_LIMIT` times the largest compute
                fitted, unless `extrapolate`; a column that the form needs and was not given.
        """
        given, shape = self._columns(columns)
        if not extrapolate:
            self._refuse_far(float(np.max(self.leap(given), initial=0.0)))
        return self.law.predict(self.values, given).reshape(shape)

    def leap(self, columns: Mapping[str, Array]) -> Array:
        """Factor in compute (or in the form's only variable) beyond the largest point fitted."""
        obs = self.observations
        if "c" in columns:
            return columns["c"] / np.nanmax(obs.compute)
        if {"n", "d"} <= columns.keys():
            return columns["n"] * columns["d"] / np.max(obs.columns["n"] * obs.columns["d"])
        (name,) = [k for k in columns if k in obs.columns][:1] or ["n"]
        return columns[name] / obs.columns[name].max()

    def _refuse_far(self, leap: float) -> None:
        """Raises AnalysisError beyond the limit of extrapolation."""
        if leap > EXTRAPOLATION_LIMIT:
            raise AnalysisError(
                f"{leap:.3g} times the largest compute that was fitted: beyond "
                f"{EXTRAPOLATION_LIMIT:g} times the law has not been tested. Pass extrapolate=True "
                "to insist, or use `linscale forecast`, whose intervals hold the misfit of the form"
            )

    def predict_draws(self, **columns: Any) -> np.ndarray:
        """The same for every bootstrap refit: (draws, points), without a limit."""
        return self.law.predict(self._need_draws().values, self._columns(columns)[0])

    def _columns(self, columns: Mapping[str, Any]) -> tuple[dict[str, Array], tuple[int, ...]]:
        if unknown := sorted(columns.keys() - AXES.keys()):
            raise AnalysisError(f"{unknown[0]!r} is no column of a law: {', '.join(AXES)}")
        known = {k: v for k, v in columns.items() if v is not None}
        given = {"u": known.get("d"), "t": known.get("n"), **known}
        missing = [k for k in self.law.columns if given.get(k) is None]
        if missing:
            raise AnalysisError(f"{self.form} predicts from {', '.join(self.law.columns)}; "
                                f"{', '.join(missing)} not given")  # fmt: skip
        arrays = np.broadcast_arrays(*[np.asarray(given[k], float) for k in self.law.columns])
        found = dict(zip(self.law.columns, arrays, strict=True))
        if any((~np.isfinite(a) | (a < 0) | ((a == 0) & (k != "s"))).any()
               for k, a in found.items()):  # fmt: skip
            raise AnalysisError("N, D and C must be positive numbers to predict a loss")
        return {k: a.ravel() for k, a in found.items()}, arrays[0].shape

    def band(
        self, *, level: float = LEVEL, kind: Literal["mean", "run"] = "mean", seed: int = 0,
        extrapolate: bool = False, **columns: Any,
    ) -> pd.DataFrame:  # fmt: skip
        """Loss with an interval at given points, within the limit of `predict`; columns loss, lo,
        hi.

        `mean` bounds the law itself; `run` also holds the noise of one further run (jackknife
        residuals of the fit, drawn at random and added to the refits).
        """
        loss = self.predict(**columns, extrapolate=extrapolate).ravel()
        draws = self.predict_draws(**columns)
        if kind == "run":
            noise = inflated_residuals(self.problem, self.theta)
            rng = np.random.default_rng(seed)
            draws = draws * np.exp(rng.choice(noise - np.median(noise), draws.shape))
        low, high = quantiles(draws, level)
        return pd.DataFrame({"loss": loss, "lo": low, "hi": high})

    def frontier(self, compute: Any) -> np.ndarray:
        """Lowest loss within a budget: L(C), or L(N*, D*) for laws in N and D."""
        return self.frontier_at(self.values, np.asarray(compute, dtype=float))

    def frontier_draws(self, compute: Any) -> np.ndarray:
        """The same for every bootstrap refit: (draws, points)."""
        values = self._need_draws().values[:, None, :]
        return self.frontier_at(values, np.asarray(compute, float).ravel())

    def frontier_at(self, values: Array, compute: Array) -> Array:
        """Frontier loss for given natural parameters: (p,), or (draws, 1, p)."""
        if self.law.columns == ("c",):
            flat = values if values.ndim == 1 else values[:, 0]
            return self.law.predict(flat, {"c": compute.ravel()}).reshape(
                compute.shape if values.ndim == 1 else (len(flat), compute.size)
            )
        n, d = self.optimum_at(values, compute)
        return self.law.loss_of_split(values, n, d, self.held)

    # ---- optimum -----------------------------------------------------------------------------

    def under(self, model: ComputeModel) -> LawFit:
        """The same law with its optima under another C = f(N) D."""
        return dataclasses.replace(self, compute_model=model)

    def optimal(
        self, compute: Any, *, level: float = LEVEL, extrapolate: bool = False
    ) -> pd.DataFrame:
        """Compute-optimal split of each budget under `compute_model`.

        Args:
            compute: FLOPs, a number or an array.
            level: of the intervals (columns *_lo, *_hi; only with a bootstrap).
            extrapolate: answer beyond `EXTRAPOLATION_LIMIT` times the largest compute fitted.

        Returns:
            Columns c, n, d, tokens_per_param, loss, and intervals.

        Raises:
            AnalysisError: the form has no N and D, or a budget beyond the limit.
        """
        budget = np.atleast_1d(np.asarray(compute, dtype=float)).ravel()
        largest = float(np.nanmax(self.observations.compute))
        if not extrapolate and np.isfinite(budget).all():
            self._refuse_far(float(budget.max(initial=0.0)) / largest)
        n, d = self.optimum_at(self.values, budget)
        frame = pd.DataFrame({
            "c": budget, "n": n, "d": d, "tokens_per_param": d / n,
            "loss": self.law.loss_of_split(self.values, n, d, self.held),
        })  # fmt: skip
        if self.draws is None:
            return frame
        n, d = self.optimum_at(self.draws.values[:, None, :], budget)
        losses = self.frontier_draws(budget)
        for name, draw in (("n", n), ("d", d), ("tokens_per_param", d / n), ("loss", losses)):
            frame[f"{name}_lo"], frame[f"{name}_hi"] = quantiles(draw, level)
        return frame

    def optimum_at(self, values: Array, compute: Array) -> tuple[Array, Array]:
        """N*, D* for given natural parameters: (p,), or (draws, 1, p)."""
        return best_split.optimum_at(self, values, compute)

    # ---- intervals ---------------------------------------------------------------------------

    def bootstrap(
        self, samples: int, *, method: Method = "auto", seed: int = 0,
        progress: Progress | None = None,
    ) -> LawFit:  # fmt: skip
        """This fit with `samples` bootstrap refits over runs."""
        draws = bootstrap(
            self.problem, self.theta, samples=samples, method=method, seed=seed, progress=progress
        )
        kept = [w for w in self.warnings if w.code not in OF_DRAWS]
        added = diagnose_draws(self.problem, self.theta, draws)
        return dataclasses.replace(self, draws=draws, warnings=[*kept, *added])

    def _need_draws(self) -> Draws:
        if self.draws is None:
            raise AnalysisError("this fit has no bootstrap: pass bootstrap=4000 to fit_law, or "
                                "call .bootstrap(4000), to get intervals")  # fmt: skip
        return self.draws

    def draws_of(self, name: str) -> Array:
        """Bootstrap refits (b,) of a parameter, or of a or b."""
        values = self._need_draws().values
        if name in self.law.parameters:
            return self.law.column(values, name)
        derived = self.exponents_at(values)
        if name not in derived:
            raise AnalysisError(f"{self.form} has no parameter {name!r}; it has "
                                f"{', '.join(self.params)}")  # fmt: skip
        return derived[name]

    def interval(self, name: str, level: float = LEVEL) -> tuple[float, float]:
        """Percentile interval of a parameter, or of a or b."""
        low, high = quantiles(self.draws_of(name), level)
        return float(low), float(high)

    def table(self, level: float = LEVEL) -> pd.DataFrame:
        """Columns parameter, value, and with a bootstrap se, lo, hi."""
        frame = pd.DataFrame({"parameter": list(self.params), "value": list(self.params.values())})
        if self.draws is not None:
            frame["se"] = [float(self.draws_of(p).std(ddof=1)) for p in self.params]
            bounds = [self.interval(p, level) for p in self.params]
            frame["lo"], frame["hi"] = [b[0] for b in bounds], [b[1] for b in bounds]
        return frame

    # ---- quality -----------------------------------------------------------------------------

    def residuals(self) -> pd.DataFrame:
        """Columns of the points, predicted, and residual = log measured - log predicted."""
        obs = self.observations
        residual = -self.problem.residuals(self.theta)
        frame = pd.DataFrame({"row": obs.rows, **obs.columns, "loss": obs.loss})
        frame["predicted"] = obs.loss * np.exp(-residual)
        frame["residual"] = residual
        frame["cluster"] = [obs.labels[i] for i in obs.cluster]
        return frame

    def criteria(self) -> dict[str, float]:
        """Root mean square of log residuals, AIC, AICc and BIC under log-normal noise.

        Comparable between forms fitted to the same points; constants of the likelihood are left
        out, and the noise scale counts as a parameter.
        """
        residual = self.problem.residuals(self.theta)
        free = int((self.problem.lower < self.problem.upper).sum())
        m, k = len(residual), free + 1
        mean = float((self.observations.weight * residual**2).mean())
        aic = m * np.log(max(mean, 1e-300)) + 2 * k
        correction = 2 * k * (k + 1) / (m - k - 1) if m > k + 1 else np.inf
        bic = m * np.log(max(mean, 1e-300)) + k * np.log(m)
        return {"rms": float(np.sqrt(mean)), "aic": float(aic), "aicc": float(aic + correction),
                "bic": float(bic)}  # fmt: skip

    def influence(self) -> pd.DataFrame:
        """Leave each run out once: left_out, parameters, largest_shift and the parameter it is of.

        Shifts are in bootstrap standard errors, or relative to the parameter without draws.
        """
        labels, values = jackknife(self.problem, self.theta)
        full = self.values
        scale = np.abs(full) if self.draws is None else self.draws.values.std(axis=0, ddof=1)
        frame = pd.DataFrame(values, columns=list(self.law.parameters))
        frame.insert(0, "left_out", labels)
        for name, value in self.exponents_at(values).items():
            frame[name] = value
        shift = np.abs(values - full) / np.maximum(scale, 1e-300)
        frame["largest_shift"] = shift.max(axis=1)
        frame["of"] = [self.law.parameters[int(k)] for k in shift.argmax(axis=1)]
        return frame.sort_values("largest_shift", ascending=False, ignore_index=True)

    def profile(self, name: str, values: Any) -> pd.DataFrame:
        """Objective over all other parameters, with E or an exponent held at each value."""
        grid = np.asarray(values, dtype=float)
        return pd.DataFrame(
            {name: grid, "objective": profile(self.problem, self.theta, name, grid)}
        )

    # ---- records -----------------------------------------------------------------------------

    def to_json(self) -> str:
        """Everything at full precision: parameters, points, draws, evidence, warnings."""
        return written(self)

    @staticmethod
    def from_json(text: str) -> LawFit:
        """Inverse of `to_json`: predicts, optimises and bootstraps exactly as the original.

        Raises:
            AnalysisError: the text is not what `to_json` wrote; a missing field is named.
        """
        return LawFit(**read(text))

    def plot(self, *, level: float = LEVEL, name: str = "all", style: str = "house") -> Figure:
        """Contours over (N, D) with the optimal line, or loss against the form's one variable."""
        return figure_of(self, level=level, name=name, style=style)

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{w}</li>" for w in self.warnings)
        return (
            f"<p><b>{self.form}</b>: {self.law.formula}; {len(self.observations.loss)} points, "
            f"{self.problem.robust.describe()} = {self.objective:.6g}</p>"
            f"{self.table().to_html(index=False, float_format=lambda v: f'{v:.5g}')}"
            f"<ul>{notes}</ul>"
        )

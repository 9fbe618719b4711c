"""Approach 2: IsoFLOP profiles. For each budget the loss-minimal size, then a line through them.

    isoflop(points) -> IsoflopFit
        1. group points by budget (a column, or compute within a few per cent)
        2. per budget a parabola (or cubic) of loss in log N, and another in log D; a budget with
           too few points or without an interior minimum is refused, with its reason
        3. N*(C) and D*(C) as log-log lines through the minima
        4. intervals: residuals of every budget are redrawn (wild, Webb), all budgets at once
        5. the bias of this very grid, measured by synthetic recovery: an L(N, D) law is fitted to
           the same points, noise-free losses are computed from it on the same (N, D), and steps
           1-3 run on them; what comes out differs from that law's own optimum by the bias

A parabola in log N is biased even without noise, because the true profile is not symmetric: for
Chinchilla's exponents +0.3 % in N* extrapolated by four decades on narrow grids, +5 % on wide ones,
tens of per cent where the grid drifts off centre (arXiv 2603.22339).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError, FitWarning
from analysis.fit.drawing import figure_of
from analysis.fit.fitting import fit_law
from analysis.fit.isoflop_profiles import (
    DEGREES,
    Shape,
    budget_table,
    lowest,
    minima_of,
    without_outlying,
)
from analysis.fit.law_fit import LawFit
from analysis.fit.lines import Line, batched_lines, fit_line, line_bands
from analysis.fit.profile_summary import interval_of, summary
from analysis.io.frames import numbers
from analysis.io.saved import array, saved
from analysis.laws.polynomials import vertex
from analysis.units import LEVEL, Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WEBB = np.sqrt([0.5, 1.0, 1.5])
_BIAS_EXPONENT, _BIAS_SIZE = 0.005, 0.02


@dataclass(frozen=True)
class IsoflopFit:
    """Minima of the profiles and the lines through them."""

    shape: Shape
    points: pd.DataFrame
    """Columns budget, c, n, d, loss."""
    minima: pd.DataFrame
    """One row per accepted budget: budget, n, d, loss, n_se_log, d_se_log, points."""
    refused: pd.DataFrame
    """Columns budget, reason."""
    n_line: Line
    d_line: Line
    bias: dict[str, float] = field(default_factory=dict[str, float])
    """Measured on this grid: a, b (exponent minus truth), n, d (relative, at `at` FLOPs)."""
    draws: dict[str, Array] = field(default_factory=dict[str, Array])
    warnings: list[FitWarning] = field(default_factory=list[FitWarning])

    @property
    def params(self) -> dict[str, float]:
        """n_coefficient and a of N* = n_coefficient C^a; d_coefficient and b of D*."""
        return {
            "n_coefficient": self.n_line.coefficient,
            "a": self.n_line.exponent,
            "d_coefficient": self.d_line.coefficient,
            "b": self.d_line.exponent,
        }

    def optimal(self, c: Array | float, *, level: float = LEVEL) -> pd.DataFrame:
        """N*, D* of the lines at C, with intervals when there are draws."""
        budget = np.atleast_1d(np.asarray(c, dtype=float))
        n, d = self.n_line.predict(budget), self.d_line.predict(budget)
        frame = pd.DataFrame({"c": budget, "n": n, "d": d, "tokens_per_param": d / n})
        return frame.assign(**line_bands(self.draws, budget, level))

    def interval(self, name: str, level: float = LEVEL) -> tuple[float, float]:
        """Percentile interval of a parameter."""
        return interval_of(self.draws, self.params, name, level, "isoflop(..., bootstrap=2000)")

    def table(self, level: float = LEVEL) -> pd.DataFrame:
        """Columns parameter, value, and with a bootstrap se, lo, hi."""
        return summary(self.draws, self.params, level)

    def profiles(self, places: int = 60) -> pd.DataFrame:
        """The fitted polynomial of every accepted budget: columns budget, n, loss."""
        degree = DEGREES[self.shape]
        parts: list[pd.DataFrame] = []
        for budget, count in zip(numbers(self.minima, "budget"), numbers(self.minima, "points"),
                                 strict=True):  # fmt: skip
            part = lowest(self.points, float(budget), int(count))
            log_n = np.log(part["n"])
            centre = log_n.mean()
            fitted = np.polyfit(log_n - centre, part["loss"], degree)
            x = np.linspace(log_n.min(), log_n.max(), places)
            parts.append(pd.DataFrame({"budget": budget, "n": np.exp(x),
                                       "loss": np.polyval(fitted, x - centre)}))  # fmt: skip
        return pd.concat(parts, ignore_index=True)

    def to_json(self) -> str:
        """Minima, lines, bias, draws and warnings at full precision."""
        return json.dumps({
            "schema": 1, "approach": 2, "shape": self.shape, "parameters": self.params,
            "points": self.points.to_dict("list"), "minima": self.minima.to_dict("list"),
            "refused": self.refused.to_dict("list"), "n_line": asdict(self.n_line),
            "d_line": asdict(self.d_line), "bias": self.bias,
            "draws": {k: v.tolist() for k, v in self.draws.items()},
            "warnings": [w.as_dict() for w in self.warnings],
        })  # fmt: skip

    @staticmethod
    def from_json(text: str) -> IsoflopFit:
        """Inverse of `to_json`."""
        with saved(text, "IsoflopFit") as record:
            return IsoflopFit(
                shape=record["shape"],
                points=pd.DataFrame(record["points"]),
                minima=pd.DataFrame(record["minima"]),
                refused=pd.DataFrame(record["refused"], columns=["budget", "reason"]),
                n_line=Line(**record["n_line"]),
                d_line=Line(**record["d_line"]),
                bias=record["bias"],
                draws={name: array(record["draws"], name) for name in record["draws"]},
                warnings=[FitWarning.from_dict(w) for w in record["warnings"]],
            )

    def plot(self, *, name: str = "all", style: str = "house") -> Figure:
        """The valleys and their minima."""
        return figure_of(self, name=name, style=style)

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{w}</li>" for w in self.warnings)
        return f"<p><b>IsoFLOP</b></p>{self.table().to_html(index=False)}<ul>{notes}</ul>"


MOST_LISTED = 3
"""Budgets of one reason are listed one by one up to here."""


def isoflop(
    data: pd.DataFrame,
    *,
    budget: str | None = None,
    c: str = "flops",
    n: str = "n_params",
    d: str = "tokens",
    loss: str = "loss",
    shape: Shape = "parabola",
    best: int | None = None,
    bootstrap: int = 0,
    seed: int = 0,
    law: LawFit | None = None,
) -> IsoflopFit:
    """Fits IsoFLOP profiles.

    Args:
        data: one row per finished run.
        budget: column naming the budget of each run; default: runs of nearly equal compute.
        shape: of loss against log size.
        best: fit only this many points of lowest loss per budget (contiguous around the minimum).
        bootstrap: redraws for intervals, 0 for none.
        law: L(N, D) used to measure the bias; default: Chinchilla's form fitted to the same points.

    Raises:
        AnalysisError: an unknown shape, columns absent, or fewer than two budgets with a minimum.
    """
    if shape not in DEGREES:
        raise AnalysisError(f"no profile of shape {shape!r}; choose {' or '.join(DEGREES)}")
    table, unusable = budget_table(data, budget, c=c, n=n, d=d, loss=loss)
    table, outlying = without_outlying(table, shape)
    if not len(table):
        raise AnalysisError(f"none of {len(data)} rows has positive numbers for N, loss and the "
                            "budget: IsoFLOP profiles need them")  # fmt: skip
    minima, refused = minima_of(table, shape, best)
    if len(minima) < 2:
        reasons = "; ".join(_refusal_texts(refused))
        raise AnalysisError(
            f"{len(minima)} of {table['budget'].nunique()} budgets have an interior minimum, two "
            f"are needed ({reasons}). Add sizes on both sides of the minimum at each budget"
        )
    n_line = fit_line(numbers(minima, "budget"), numbers(minima, "n"))
    d_line = fit_line(numbers(minima, "budget"), numbers(minima, "d"))
    warnings = [
        *_warn_excluded(unusable, len(data)),
        *_warn_outlying(outlying),
        *_refusals(refused, table),
    ]
    bias: dict[str, float] = {}
    try:
        truth = law or fit_law("chinchilla", table, n="n", d="d", c="c", loss="loss")
        bias = measure_bias(table, truth, shape=shape, best=best)
    except AnalysisError as error:
        warnings.append(FitWarning("isoflop_bias", f"The bias of this grid could not be measured: "
                                   f"{error}.", {}))  # fmt: skip
    else:
        warnings += _bias_warning(bias)
    draws = _bootstrap(table, minima, shape, best, bootstrap, seed) if bootstrap else {}
    return IsoflopFit(shape, table, minima, refused, n_line, d_line, bias, draws, warnings)


def measure_bias(
    table: pd.DataFrame, truth: LawFit, *, shape: Shape = "parabola", best: int | None = None,
    at: float | None = None,
) -> dict[str, float]:  # fmt: skip
    """Synthetic recovery on the grid of `table` (columns budget, c, n, d).

    Returns the exponent errors a and b against a line through the true optima of the same budgets,
    the relative errors n and d against that line, and bend_n and bend_d, by which the line itself
    leaves the true optimum where FLOPs per token do not grow like a power of N; both at `at` FLOPs
    (default: 100 times the largest budget), all without noise and under the C = f(N) D of `truth`.
    """
    synthetic = table.copy()
    n, d = numbers(table, "n"), numbers(table, "d")
    synthetic["loss"] = truth.predict(n=n, d=d, extrapolate=True)
    minima, _ = minima_of(synthetic, shape, best)
    if len(minima) < 2:
        raise AnalysisError("on noise-free losses of the fitted law fewer than two budgets have an "
                            "interior minimum")  # fmt: skip
    place = float(numbers(table, "budget").max()) * 100 if at is None else at
    budgets = numbers(minima, "budget")
    optima = truth.optimal(np.append(budgets, place), extrapolate=True)
    true = {axis: np.asarray(optima[axis], dtype=float) for axis in ("n", "d")}
    n_line = fit_line(budgets, numbers(minima, "n"))
    d_line = fit_line(budgets, numbers(minima, "d"))
    lines = {axis: fit_line(budgets, values[:-1]) for axis, values in true.items()}
    straight = {axis: float(line.predict(place)) for axis, line in lines.items()}
    return {
        "a": n_line.exponent - lines["n"].exponent,
        "b": d_line.exponent - lines["d"].exponent,
        "n": float(n_line.predict(place)) / straight["n"] - 1,
        "d": float(d_line.predict(place)) / straight["d"] - 1,
        "bend_n": straight["n"] / float(true["n"][-1]) - 1,
        "bend_d": straight["d"] / float(true["d"][-1]) - 1,
        "at": place,
    }


def _bootstrap(
    table: pd.DataFrame, minima: pd.DataFrame, shape: Shape, best: int | None, samples: int,
    seed: int,
) -> dict[str, Array]:  # fmt: skip
    """Wild bootstrap within each accepted budget; refits without a minimum are dropped."""
    rng = np.random.default_rng(seed)
    degree = DEGREES[shape]
    places = {axis: np.empty((samples, len(minima))) for axis in ("n", "d")}
    for column, value in enumerate(numbers(minima, "budget")):
        part = lowest(table, float(value), best)
        sign = rng.choice([-1.0, 1.0], (samples, len(part["n"])))
        factor = sign * rng.choice(_WEBB, sign.shape)
        for axis in ("n", "d"):
            x, y = np.log(part[axis]), part["loss"]
            design = np.vander(x - x.mean(), degree + 1)
            inverse = np.linalg.pinv(design)
            fitted = design @ (inverse @ y)
            hat = np.clip((design * inverse.T).sum(axis=1), 0, 0.9)
            redrawn = fitted + factor * (y - fitted) / (1 - hat)
            places[axis][:, column] = vertex(redrawn @ inverse.T) + x.mean()
    log_c = np.log(numbers(minima, "budget"))
    draws: dict[str, Array] = {}
    good = np.ones(samples, dtype=bool)
    for axis, key in (("n", "a"), ("d", "b")):
        weight = np.isfinite(places[axis]).astype(float)
        slope, intercept = batched_lines(log_c, np.nan_to_num(places[axis]), weight)
        good &= (weight.sum(axis=1) >= 2) & np.isfinite(slope) & (np.abs(intercept) < 600)
        draws[key], draws[f"{axis}_coefficient"] = slope, intercept
    if good.mean() < 0.5:
        raise AnalysisError("most redrawn profiles have no minimum: the noise is as large as the "
                            "curvature; widen the range of sizes at each budget")  # fmt: skip
    draws = {k: v[good] for k, v in draws.items()}
    for axis in ("n", "d"):
        draws[f"{axis}_coefficient"] = np.exp(draws[f"{axis}_coefficient"])
    return draws


def _refusal_texts(refused: pd.DataFrame) -> list[str]:
    """Every reason once, with the budgets that it holds for."""
    texts: list[str] = []
    for reason, budgets in refused.groupby("reason", sort=False)["budget"]:
        listed = ", ".join(f"{budget:.3g}" for budget in budgets)
        if len(budgets) > MOST_LISTED:
            low, high = budgets.min(), budgets.max()
            listed = f"{len(budgets)} budgets from {low:.3g} to {high:.3g}"
        texts.append(f"{listed} FLOPs: {reason}")
    return texts


def _warn_excluded(count: int, rows: int) -> list[FitWarning]:
    if not count:
        return []
    text = f"{count} of {rows} rows were left out: a value is no positive number."
    return [FitWarning("rows_excluded", text, {"count": count})]


def _warn_outlying(outlying: pd.DataFrame) -> list[FitWarning]:
    if not len(outlying):
        return []
    listed = [f"{r['name']} with loss {r['loss']:.4g} ({r['reason']})"
              for r in outlying.to_dict("records")]  # fmt: skip
    return [
        FitWarning(
            "rows_excluded",
            f"{len(outlying)} row(s) were left out: {'; '.join(listed)}.",
            {"count": len(outlying), "names": [str(v) for v in outlying["name"]]},
        )
    ]


def _refusals(refused: pd.DataFrame, table: pd.DataFrame) -> list[FitWarning]:
    if not len(refused):
        return []
    text = "; ".join(_refusal_texts(refused))
    return [
        FitWarning(
            "budget_refused",
            f"{len(refused)} of {table['budget'].nunique()} budgets were left out. {text}.",
            {"budgets": [float(v) for v in refused["budget"]]},
        )
    ]


def _bias_warning(bias: dict[str, float]) -> list[FitWarning]:
    found: list[FitWarning] = []
    if abs(bias["a"]) > _BIAS_EXPONENT or max(abs(bias["n"]), abs(bias["d"])) > _BIAS_SIZE:
        found.append(
            FitWarning(
                "isoflop_bias",
                f"On this grid the method itself is off by {bias['a']:+.4f} in a, and at "
                f"{bias['at']:.2g} FLOPs by {bias['n']:+.1%} in N* and {bias['d']:+.1%} in D*, "
                "without any noise (synthetic recovery). Prefer approach 3, or narrower, centred "
                "grids.",
                dict(bias),
            )
        )
    if max(abs(bias["bend_n"]), abs(bias["bend_d"])) > _BIAS_SIZE:
        found.append(
            FitWarning(
                "optimum_bends",
                "FLOPs per token do not grow like a power of N, so N*(C) and D*(C) bend: a "
                f"straight line through these budgets is off by {bias['bend_n']:+.1%} in N* and "
                f"{bias['bend_d']:+.1%} in D* at {bias['at']:.2g} FLOPs. Within the budgets it "
                "holds; beyond them take N* and D* from approach 3.",
                dict(bias),
            )
        )
    return found

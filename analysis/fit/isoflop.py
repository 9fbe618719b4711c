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
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError, FitWarning
from analysis.fit.checks import name_rows
from analysis.fit.divergence import find_diverged
from analysis.fit.drawing import figure_of
from analysis.fit.fitting import fit_law
from analysis.fit.law_fit import LawFit
from analysis.fit.lines import Line, batched_lines, fit_line, line_bands
from analysis.fit.profile_summary import interval_of, summary
from analysis.io.frames import rows
from analysis.io.saved import array, saved
from analysis.laws.polynomials import find_outlying, polynomial_minimum, vertex
from analysis.units import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Shape = Literal["parabola", "cubic"]
_SAME_BUDGET = 0.12
"""Points whose log compute is within this of their neighbour share a budget."""
_WEBB = np.sqrt([0.5, 1.0, 1.5])
_BIAS_EXPONENT, _BIAS_SIZE = 0.005, 0.02
_FLOOR, _NOISE = 0.25, 3.0
"""A floor below the lowest loss by more than this share of half the profile's rise, and by more
than so many standard deviations, was not measured."""


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

    def optimal(self, c: Array | float, *, level: float = 0.9) -> pd.DataFrame:
        """N*, D* of the lines at C, with intervals when there are draws."""
        budget = np.atleast_1d(np.asarray(c, dtype=float))
        n, d = self.n_line.predict(budget), self.d_line.predict(budget)
        frame = pd.DataFrame({"c": budget, "n": n, "d": d, "tokens_per_param": d / n})
        return frame.assign(**line_bands(self.draws, budget, level))

    def interval(self, name: str, level: float = 0.9) -> tuple[float, float]:
        """Percentile interval of a parameter."""
        return interval_of(self.draws, self.params, name, level, "isoflop(..., bootstrap=2000)")

    def table(self, level: float = 0.9) -> pd.DataFrame:
        """Columns parameter, value, and with a bootstrap se, lo, hi."""
        return summary(self.draws, self.params, level)

    def profiles(self, places: int = 60) -> pd.DataFrame:
        """The fitted polynomial of every accepted budget: columns budget, n, loss."""
        degree = 2 if self.shape == "parabola" else 3
        parts: list[pd.DataFrame] = []
        for budget, count in zip(_column(self.minima, "budget"), _column(self.minima, "points"),
                                 strict=True):  # fmt: skip
            part = _lowest(self.points, float(budget), int(count))
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

    def plot(self, *, name: str = "all") -> Figure:
        """The valleys and their minima."""
        return figure_of(self, name=name)

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{w}</li>" for w in self.warnings)
        return f"<p><b>IsoFLOP</b></p>{self.table().to_html(index=False)}<ul>{notes}</ul>"


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
        AnalysisError: columns absent or fewer than two budgets with a minimum.
    """
    table, unusable = _table(data, budget, c=c, n=n, d=d, loss=loss)
    table, outlying = _without_outlying(table, shape)
    if not len(table):
        raise AnalysisError(f"none of {len(data)} rows has positive numbers for N, loss and the "
                            "budget: IsoFLOP profiles need them")  # fmt: skip
    minima, refused = _minima(table, shape, best)
    if len(minima) < 2:
        reasons = "; ".join(_refusal_texts(refused))
        raise AnalysisError(
            f"{len(minima)} of {table['budget'].nunique()} budgets have an interior minimum, two "
            f"are needed ({reasons}). Add sizes on both sides of the minimum at each budget"
        )
    n_line = fit_line(_column(minima, "budget"), _column(minima, "n"))
    d_line = fit_line(_column(minima, "budget"), _column(minima, "d"))
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
    n, d = _column(table, "n"), _column(table, "d")
    synthetic["loss"] = truth.predict(n=n, d=d)
    minima, _ = _minima(synthetic, shape, best)
    if len(minima) < 2:
        raise AnalysisError("on noise-free losses of the fitted law fewer than two budgets have an "
                            "interior minimum")  # fmt: skip
    place = float(_column(table, "budget").max()) * 100 if at is None else at
    budgets = _column(minima, "budget")
    optima = truth.optimal(np.append(budgets, place))
    true = {axis: np.asarray(optima[axis], dtype=float) for axis in ("n", "d")}
    n_line = fit_line(budgets, _column(minima, "n"))
    d_line = fit_line(budgets, _column(minima, "d"))
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


def _table(
    data: pd.DataFrame, budget: str | None, *, c: str, n: str, d: str, loss: str
) -> tuple[pd.DataFrame, int]:
    """Columns budget, c, n, d, loss, sorted; and how many unusable rows were left out."""
    columns: dict[str, Array] = {}
    for key, name in (("c", c), ("n", n), ("d", d), ("loss", loss), ("budget", budget)):
        if name is not None and name in data.columns:
            given = pd.to_numeric(data[name], errors="coerce")
            columns[key] = np.asarray(given, dtype=np.float64)
    if budget is not None and "budget" not in columns:
        raise AnalysisError(f"no column {budget!r} for the budget")
    if "loss" not in columns or "n" not in columns or not columns.keys() & {"c", "d", "budget"}:
        raise AnalysisError(f"IsoFLOP profiles need N, loss and C or D; the table has "
                            f"{', '.join(map(str, data.columns))}")  # fmt: skip
    if "c" not in columns:
        columns["c"] = (
            6 * columns["n"] * columns["d"] if "d" in columns else columns["budget"].copy()
        )
    if "d" not in columns:
        columns["d"] = columns["c"] / (6 * columns["n"])
    good = np.ones(len(data), dtype=bool)
    for values in columns.values():
        good &= np.isfinite(values) & (values > 0)
    columns = {k: v[good] for k, v in columns.items()}
    called = np.array(name_rows(data), dtype=object)[good]
    if budget is None:
        order = np.argsort(columns["c"], kind="stable")
        columns, called = {k: v[order] for k, v in columns.items()}, called[order]
        log_c = np.log(columns["c"])
        label = np.cumsum(np.diff(log_c, prepend=-np.inf) > _SAME_BUDGET) - 1
        if len(label):
            mean = np.bincount(label, weights=log_c) / np.bincount(label)
            columns["budget"] = np.exp(mean[label])
        else:
            columns["budget"] = columns["c"]
    named = pd.DataFrame(columns).assign(name=called)
    table = rows(named, ~named.duplicated(list(columns)))
    return table.sort_values(["budget", "n"], ignore_index=True), int((~good).sum())


def _without_outlying(table: pd.DataFrame, shape: Shape) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table without rows far above their neighbours, and those rows with a `reason`.

    Rows far above all others in N and D diverged; rows far above the profile of their budget would
    bend it.
    """
    if not len(table):
        return table, table.assign(reason=[])
    loss = _column(table, "loss")
    far, usual = find_diverged([_column(table, "n"), _column(table, "d")], loss)
    reason = np.where(far, [f"diverged: its neighbours have {u:.4g}" for u in usual], "").astype(
        object
    )
    degree = 2 if shape == "parabola" else 3
    for value in np.unique(_column(table, "budget")):
        at = np.flatnonzero((_column(table, "budget") == value) & ~far)
        above = find_outlying(np.log(_column(table, "n")[at]), loss[at], degree)
        reason[at[above]] = f"far above the profile of {value:.3g} FLOPs"
    out = reason != ""
    return rows(table, ~out).reset_index(drop=True), rows(table, out).assign(reason=reason[out])


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


def _minima(
    table: pd.DataFrame, shape: Shape, best: int | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Minimum of each budget, and the budgets without one."""
    rows: list[dict[str, float]] = []
    refused: list[dict[str, float | str]] = []
    degree = 2 if shape == "parabola" else 3
    for value in np.unique(_column(table, "budget")):
        part = _lowest(table, float(value), best)
        sizes = len(np.unique(part["n"]))
        reason = ""
        if sizes < degree + 2:
            reason = f"{sizes} sizes; a {shape} needs {degree + 2}"
        row: dict[str, float] = {"budget": float(value), "points": float(len(part["n"]))}
        for axis in () if reason else ("n", "d"):
            x, y = np.log(part[axis]), part["loss"]
            place, height, se = polynomial_minimum(x, y, degree)
            rest = _rest(x, y, degree)
            if not np.isfinite(place):
                reason = "the profile has no minimum (it does not curve upwards)"
            elif not x.min() < place < x.max():
                reason = "the minimum lies outside the sizes trained"
            elif y.min() - height > max(_FLOOR * float(np.median(y) - y.min()), _NOISE * rest):
                reason = (
                    f"the floor of the {shape}, {height:.4g}, lies far below the lowest loss "
                    f"measured, {y.min():.4g}"
                )
            elif int(y.argmin()) in (int(x.argmin()), int(x.argmax())):
                reason = "the lowest loss is at an end of the sizes trained"
            if reason:
                break
            row[axis], row[f"{axis}_se_log"] = float(np.exp(place)), se
            row.setdefault("loss", height)
        if reason:
            refused.append({"budget": row["budget"], "reason": reason})
        else:
            rows.append(row)
    return pd.DataFrame(rows), pd.DataFrame(refused, columns=["budget", "reason"])


def _rest(x: Array, y: Array, degree: int) -> float:
    """Standard deviation of y about its polynomial."""
    residual = y - np.polyval(np.polyfit(x - x.mean(), y, degree), x - x.mean())
    return float(np.sqrt(residual @ residual / max(1, len(y) - degree - 1)))


def _column(table: pd.DataFrame, name: str) -> Array:
    return np.asarray(table[name], dtype=np.float64)


def _lowest(table: pd.DataFrame, budget: float, best: int | None) -> dict[str, Array]:
    """The points of one budget by rising loss, at most `best` of them."""
    rows = np.flatnonzero(_column(table, "budget") == budget)
    rows = rows[np.argsort(_column(table, "loss")[rows], kind="stable")][:best]
    return {k: _column(table, k)[rows] for k in ("n", "d", "loss")}


def _bootstrap(
    table: pd.DataFrame, minima: pd.DataFrame, shape: Shape, best: int | None, samples: int,
    seed: int,
) -> dict[str, Array]:  # fmt: skip
    """Wild bootstrap within each accepted budget; refits without a minimum are dropped."""
    rng = np.random.default_rng(seed)
    degree = 2 if shape == "parabola" else 3
    places = {axis: np.empty((samples, len(minima))) for axis in ("n", "d")}
    for column, value in enumerate(_column(minima, "budget")):
        part = _lowest(table, float(value), best)
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
    log_c = np.log(_column(minima, "budget"))
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
    pairs = zip(refused["budget"], refused["reason"], strict=True)
    return [f"{budget:.3g} FLOPs: {reason}" for budget, reason in pairs]


def _warn_excluded(count: int, rows: int) -> list[FitWarning]:
    if not count:
        return []
    text = f"{count} of {rows} rows were left out: a value is no positive number."
    return [FitWarning("rows_excluded", text, {"count": count})]


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

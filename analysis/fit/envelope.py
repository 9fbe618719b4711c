"""Approach 1: the lower envelope of training curves in compute.

    envelope(curves, options, bootstrap=...) -> EnvelopeFit
        1. each run's curve: warm-up dropped, smoothed
        2. frontier: for each of many log-spaced budgets the run with the lowest (interpolated)
           loss (`grid`, Hoffmann et al. 2203.15556), or the lower convex hull of all points in
           log-log space (`hull`, McLeish et al. 2502.06857)
        3. points whose best run is the smallest or largest model, or at the end of its curve, are
           not minima but edges of the design: dropped when `interior`. Where a curve begins is no
           edge: one from step 1 starts far above the envelope, and of a few decayed checkpoints
           a run nothing would be left
        4. L(C) by the chosen form; N*(C) and D*(C) as separate log-log lines
        5. intervals: the runs (whole curves) are drawn with replacement, and 2-4 repeated

Losses in the middle of a learning-rate schedule are not those of finished runs: give curves of
constant or decayed rates, or one curve per horizon.

`PAPER` is the convention of arXiv 2406.16690: training loss, every point of the envelope, a pure
power law, compute in PFLOP/s-days, N and D regressed independently.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.errors import AnalysisError, FitWarning
from analysis.fit.drawing import figure_of
from analysis.fit.fitting import fit_law
from analysis.fit.lines import Line, fit_line, line_bands
from analysis.fit.profile_summary import interval_of, summary
from analysis.io.saved import array, saved
from analysis.units import LEVEL, PFLOP_S_DAY, Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class EnvelopeOptions:
    """How the envelope is taken."""

    method: Literal["grid", "hull"] = "grid"
    """`grid`: lowest curve at log-spaced budgets. `hull`: lower convex hull in log-log space."""
    points: int = 1500
    """Budgets of the grid (Hoffmann et al. used 1500)."""
    interior: bool = True
    """Leave out frontier points on the smallest or largest model or at the end of a curve."""
    form: Literal["power_c", "power_c_e"] = "power_c_e"
    """L(C) without or with an irreducible loss."""
    unit: float = 1.0
    """FLOPs in one unit of the reported C: 1, or `PFLOP_S_DAY`."""
    skip: float = 0.0
    """Share of each run's largest token count dropped at its beginning (warm-up)."""
    smooth: int = 1
    """Points of a centred moving average of log loss along each run; 1 for none."""


FIELD = EnvelopeOptions(skip=0.02)
"""What the field does today: interior of the envelope, irreducible loss."""
PAPER = EnvelopeOptions(interior=False, form="power_c", unit=PFLOP_S_DAY)
"""arXiv 2406.16690, Table 3."""
HULL = EnvelopeOptions(method="hull", interior=False, form="power_c")
"""Gemstones (2502.06857): all hull points."""


@dataclass(frozen=True)
class EnvelopeFit:
    """L(C), N*(C) and D*(C) along the envelope."""

    options: EnvelopeOptions
    frontier: pd.DataFrame
    """Columns c (in the unit), loss, n, d, run, interior."""
    params: dict[str, float]
    """E (with a floor), A, alpha of L = E + A C^-alpha; n_coefficient, a; d_coefficient, b."""
    n_line: Line
    d_line: Line
    draws: dict[str, Array] = field(default_factory=dict[str, Array])
    """Bootstrap values by parameter."""
    warnings: list[FitWarning] = field(default_factory=list[FitWarning])

    def predict(self, c: Array | float) -> Array:
        """Envelope loss at C (in the unit)."""
        p = self.params
        return p.get("E", 0.0) + p["A"] * np.asarray(c, dtype=float) ** -p["alpha"]

    def optimal(self, c: Array | float, *, level: float = LEVEL) -> pd.DataFrame:
        """N*, D*, loss at C (in the unit), from separate regressions: C = f(N) D need not hold.

        With draws also their intervals, as in `IsoflopFit.optimal`.
        """
        budget = np.atleast_1d(np.asarray(c, dtype=float))
        n, d = self.n_line.predict(budget), self.d_line.predict(budget)
        frame = pd.DataFrame(
            {"c": budget, "n": n, "d": d, "tokens_per_param": d / n, "loss": self.predict(budget)}
        )
        return frame.assign(**line_bands(self.draws, budget, level))

    def interval(self, name: str, level: float = LEVEL) -> tuple[float, float]:
        """Percentile interval of a parameter."""
        return interval_of(self.draws, self.params, name, level, "envelope(..., bootstrap=1000)")

    def table(self, level: float = LEVEL) -> pd.DataFrame:
        """Columns parameter, value, and with a bootstrap se, lo, hi."""
        return summary(self.draws, self.params, level)

    def to_json(self) -> str:
        """Options, parameters, frontier, draws and warnings at full precision."""
        return json.dumps({
            "schema": 1, "approach": 1, "options": asdict(self.options), "parameters": self.params,
            "frontier": self.frontier.to_dict("list"),
            "n_line": asdict(self.n_line), "d_line": asdict(self.d_line),
            "draws": {k: v.tolist() for k, v in self.draws.items()},
            "warnings": [w.as_dict() for w in self.warnings],
        })  # fmt: skip

    @staticmethod
    def from_json(text: str) -> EnvelopeFit:
        """Inverse of `to_json`."""
        with saved(text, "EnvelopeFit") as record:
            return EnvelopeFit(
                options=EnvelopeOptions(**record["options"]),
                frontier=pd.DataFrame(record["frontier"]),
                params=record["parameters"],
                n_line=Line(**record["n_line"]),
                d_line=Line(**record["d_line"]),
                draws={name: array(record["draws"], name) for name in record["draws"]},
                warnings=[FitWarning.from_dict(w) for w in record["warnings"]],
            )

    def plot(self, *, level: float = LEVEL, name: str = "all", style: str = "house") -> Figure:
        """Loss against compute along the envelope."""
        return figure_of(self, level=level, name=name, style=style)

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{w}</li>" for w in self.warnings)
        return f"<p><b>envelope</b></p>{self.table().to_html(index=False)}<ul>{notes}</ul>"


def envelope(
    curves: pd.DataFrame,
    options: EnvelopeOptions = FIELD,
    *,
    c: str = "flops",
    n: str = "n_params",
    d: str = "tokens",
    loss: str = "loss",
    run: str = "run_id",
    bootstrap: int = 0,
    seed: int = 0,
) -> EnvelopeFit:
    """Fits the envelope of curves (one row per logged point of each run).

    A column `schedule` that says `cosine` for some run is warned of (`cut_schedule`).

    Raises:
        AnalysisError: columns absent, fewer than three models, or no interior envelope.
    """
    table, dropped = _curves(curves, options, {"c": c, "n": n, "d": d, "loss": loss}, run)
    models = len(np.unique(table.n))
    if models < 3:
        raise AnalysisError(f"an envelope needs curves of at least 3 model sizes, got {models}")
    frontier = _frontier(table, options)
    used = frontier.take(frontier.interior) if options.interior else frontier
    if not _regressable(used):
        raise AnalysisError(
            f"the envelope has {len(used.c)} usable points on {len(np.unique(used.n))} model "
            "size(s): the best model is the smallest or the largest almost everywhere. Train more "
            "sizes or longer, or pass interior=False to regress on the edges as well"
        )
    params, n_line, d_line = _regress(used, options.form)
    cosine = "schedule" in curves.columns and "cosine" in set(curves["schedule"].astype(str))
    warnings = _warnings(frontier, used, params, options, dropped, len(curves), cosine)
    draws = _bootstrap(table, options, list(params), bootstrap, seed) if bootstrap else {}
    frame = pd.DataFrame({
        "c": frontier.c, "loss": frontier.loss, "n": frontier.n, "d": frontier.d,
        "run": [table.names[k] for k in frontier.run], "interior": frontier.interior,
    })  # fmt: skip
    return EnvelopeFit(options, frame, params, n_line, d_line, draws, warnings)


@dataclass(frozen=True)
class _Points:
    """Points of curves or of their frontier, arrays of one length."""

    c: Array
    n: Array
    d: Array
    loss: Array
    run: NDArray[np.intp]
    """Index into `names`."""
    interior: NDArray[np.bool_]
    names: list[str]

    def take(self, index: NDArray[np.bool_] | NDArray[np.intp]) -> _Points:
        """Selected points."""
        return _Points(self.c[index], self.n[index], self.d[index], self.loss[index],
                       self.run[index], self.interior[index], self.names)  # fmt: skip


def _curves(
    curves: pd.DataFrame, options: EnvelopeOptions, columns: dict[str, str], run: str
) -> tuple[_Points, int]:
    """Usable points sorted by run and compute, warm-up dropped, smoothed; and rows dropped."""
    for name in (*columns.values(), run):
        if name not in curves.columns:
            raise AnalysisError(f"curves have no column {name!r}; they have "
                                f"{', '.join(map(str, curves.columns))}")  # fmt: skip
    values = {k: np.asarray(pd.to_numeric(curves[name], errors="coerce"), dtype=np.float64)
              for k, name in columns.items()}  # fmt: skip
    values["c"] = values["c"] / options.unit
    names, code = np.unique(np.asarray(curves[run].astype(str), dtype=str), return_inverse=True)
    good = np.ones(len(curves), dtype=bool)
    for each in values.values():
        good &= np.isfinite(each) & (each > 0)
    longest = np.zeros(len(names))
    np.maximum.at(longest, code[good], values["d"][good])
    late = good & (values["d"] >= options.skip * longest[code])
    order = np.flatnonzero(late)
    order = order[np.lexsort((values["c"][order], code[order]))]
    loss, which = values["loss"][order], code[order]
    if options.smooth > 1:
        loss = np.concatenate([
            _smooth(loss[which == k], options.smooth) for k in np.unique(which)
        ])  # fmt: skip
    points = _Points(values["c"][order], values["n"][order], values["d"][order], loss, which,
                     np.ones(len(order), dtype=bool), [str(v) for v in names])  # fmt: skip
    return points, int((~good).sum())


def _smooth(loss: Array, width: int) -> Array:
    """Centred moving average of log loss; the window shrinks at the ends."""
    total = np.concatenate([[0.0], np.cumsum(np.log(loss))])
    at = np.arange(len(loss))
    low = np.maximum(at - (width - 1) // 2, 0)
    high = np.minimum(at + width // 2 + 1, len(loss))
    return np.exp((total[high] - total[low]) / (high - low))


def _frontier(table: _Points, options: EnvelopeOptions) -> _Points:
    """The lowest points in compute, marked `interior` unless on an edge of the design."""
    found = _hull(table) if options.method == "hull" else _grid(table, options.points)
    edge = (found.n == table.n.min()) | (found.n == table.n.max())
    return dataclasses.replace(found, interior=found.interior & ~edge)


def _grid(table: _Points, points: int) -> _Points:
    """The lowest curve at log-spaced budgets; curves are interpolated in log C, log loss."""
    at = np.linspace(np.log(table.c.min()), np.log(table.c.max()), points)
    runs = np.unique(table.run)
    losses = np.full((len(runs), points), np.inf)
    tokens, last = np.empty_like(losses), np.empty(losses.shape, dtype=bool)
    sizes = np.empty(len(runs))
    for k, run in enumerate(runs):
        rows = np.flatnonzero(table.run == run)
        x, start = np.unique(np.log(table.c[rows]), return_index=True)
        inside = (at >= x[0] - 1e-12) & (at <= x[-1] + 1e-12)
        losses[k, inside] = np.interp(at, x, np.log(table.loss[rows[start]]))[inside]
        tokens[k] = np.interp(at, x, np.log(table.d[rows[start]]))
        last[k] = at > x[max(0, len(x) - 2)]
        sizes[k] = table.n[rows[0]]
    best = losses.argmin(axis=0)
    column = np.arange(points)
    found = _Points(np.exp(at), sizes[best], np.exp(tokens[best, column]),
                    np.exp(losses[best, column]), runs[best], ~last[best, column],
                    table.names)  # fmt: skip
    return found.take(np.isfinite(losses[best, column]))


def _hull(table: _Points) -> _Points:
    """Lower convex hull in (log C, log loss), from the left end to the lowest point."""
    order = np.lexsort((table.loss, table.c))
    x, y = np.log(table.c[order]), np.log(table.loss[order])
    chain: list[int] = []
    for i in range(len(x)):  # Andrew's monotone chain
        while len(chain) >= 2:
            a, b = chain[-2], chain[-1]
            if (x[b] - x[a]) * (y[i] - y[a]) - (y[b] - y[a]) * (x[i] - x[a]) > 0:
                break
            chain.pop()
        chain.append(i)
    falling = [chain[0]]
    for i in chain[1:]:
        if y[i] < y[falling[-1]]:
            falling.append(i)
    found = table.take(order[falling])
    end = np.zeros(len(table.names))
    np.maximum.at(end, table.run, table.c)
    return dataclasses.replace(found, interior=found.c < end[found.run])


def _regressable(used: _Points) -> bool:
    return len(used.c) >= 4 and len(np.unique(used.n)) >= 2


def _regress(used: _Points, form: str) -> tuple[dict[str, float], Line, Line]:
    n_line, d_line = fit_line(used.c, used.n), fit_line(used.c, used.d)
    if form == "power_c":
        line = fit_line(used.c, used.loss)
        law = {"A": line.coefficient, "alpha": -line.exponent}
    else:
        points = pd.DataFrame({"c": used.c, "loss": used.loss})
        fit = fit_law(form, points, c="c", objective="least_squares", starts=4)
        law = {k: fit.params[k] for k in ("E", "A", "alpha")}
    split = {
        "n_coefficient": n_line.coefficient,
        "a": n_line.exponent,
        "d_coefficient": d_line.coefficient,
        "b": d_line.exponent,
    }
    return law | split, n_line, d_line


def _bootstrap(
    table: _Points, options: EnvelopeOptions, names: list[str], samples: int, seed: int
) -> dict[str, Array]:
    """Redraws whole runs; a draw whose envelope cannot be fitted is drawn again (bounded)."""
    rng = np.random.default_rng(seed)
    coarse = dataclasses.replace(options, points=min(options.points, 200))
    runs = np.unique(table.run)
    found: list[list[float]] = []
    for _ in range(20 * samples):
        part = table.take(np.isin(table.run, rng.choice(runs, len(runs))))
        if len(np.unique(part.n)) < 3:
            continue
        frontier = _frontier(part, coarse)
        used = frontier.take(frontier.interior) if coarse.interior else frontier
        if not _regressable(used):
            continue
        params, _, _ = _regress(used, coarse.form)
        found.append([params[k] for k in names])
        if len(found) == samples:
            break
    if len(found) < samples:
        raise AnalysisError(
            f"only {len(found)} of {samples} resampled sets of runs had an envelope: too few runs "
            f"({len(runs)}) for intervals of approach 1; use approach 3"
        )
    return dict(zip(names, np.array(found).T, strict=True))


def _warnings(
    frontier: _Points, used: _Points, params: dict[str, float], options: EnvelopeOptions,
    dropped: int, rows: int, cosine: bool,
) -> list[FitWarning]:  # fmt: skip
    found: list[FitWarning] = []
    if dropped:
        text = f"{dropped} of {rows} points of the curves are not positive numbers."
        found.append(FitWarning("rows_excluded", text, {"count": dropped}))
    edge = float((~frontier.interior).mean())
    if edge > 0.1:
        found.append(
            FitWarning(
                "edge_of_envelope",
                f"{edge:.0%} of the envelope lies on the smallest or largest model or at the end "
                f"of a curve, where it is not a minimum over sizes; these points were "
                f"{'left out' if options.interior else 'kept, as this convention does'}.",
                {"share": edge, "kept": not options.interior},
            )
        )
    models = len(np.unique(used.n))
    if models < 4:
        found.append(FitWarning("few_models_on_envelope", f"Only {models} model sizes reach the "
                                "envelope: a and b are slopes of a short staircase.",
                                {"models": models}))  # fmt: skip
    total = params["a"] + params["b"]
    if abs(total - 1) > 0.05:
        found.append(
            FitWarning(
                "exponents_do_not_close",
                f"a + b = {total:.3f}. If compute grew as N D it would be 1: either FLOPs per "
                "token do not grow like N (attention, embeddings), or the envelope is too short.",
                {"sum": total},
            )
        )
    if cosine:
        text = (
            "Some curves follow a cosine schedule: losses before its end are higher than those of "
            "runs that end there."
        )
        found.append(FitWarning("cut_schedule", text))
    return found

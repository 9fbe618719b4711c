"""How much compute one architecture saves over another, as a function of loss.

    compute_multiplier(x, y) -> CompareResult
        m(L) = C_y(L) / C_x(L): how many times the compute of x must y spend for the same loss
        (above 1: x is the more efficient). C(L) inverts the compute-optimal frontier of each law.
        Intervals come from the same resampled runs for both (paired) when the fits were drawn over
        clusters with equal labels; unpaired intervals are wider and are marked.
    crossing(x, y) -> Crossing
        where the frontiers cross, with an interval over draws and the share of draws that cross

Shared against separate exponents: shared.py.

The frontier of every N-D form here under C = 6 N D is itself E + K C^-s, so the inversion is
closed; with an architecture's own FLOPs per token it follows the optimal path, parametrised by N.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError, FitWarning
from analysis.law_fit import LawFit
from analysis.laws import PerToken
from analysis.power_sum import Array, Law
from analysis.uncertainty import quantiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PATH_POINTS = 1600
_NEGLIGIBLE = 0.05
"""A multiplier within 5 % of 1 is called no practical difference when its interval is as narrow."""


@dataclass(frozen=True)
class Crossing:
    """Where two frontiers cross."""

    loss: float
    """Loss at the crossing; NaN when the estimates do not cross in the range searched."""
    compute: float
    """FLOPs there."""
    lo: float
    hi: float
    """Interval of `compute` over the draws that cross; NaN without draws."""
    share: float
    """Share of draws that cross in the range searched; NaN without draws."""
    inside: bool
    """Whether the crossing lies within the compute of both fits."""


@dataclass(frozen=True)
class CompareResult:
    """Compute multiplier of x over y."""

    x: str
    y: str
    level: float
    paired: bool
    """Whether both sides of every draw come from the same resampled runs."""
    frame: pd.DataFrame
    """Columns loss, c_x, c_y, multiplier, lo, hi, inside; one row per loss, from high to low."""
    crossing: Crossing
    verdict: str
    """One sentence that says no more than the intervals allow."""
    warnings: list[FitWarning]

    def table(self) -> pd.DataFrame:
        """The frame."""
        return self.frame

    def to_json(self) -> str:
        """JSON at full precision."""
        return json.dumps({
            "schema": 1, "x": self.x, "y": self.y, "level": self.level, "paired": self.paired,
            "table": self.frame.to_dict("list"), "crossing": asdict(self.crossing),
            "verdict": self.verdict, "warnings": [w.as_dict() for w in self.warnings],
        })  # fmt: skip

    @staticmethod
    def from_json(text: str) -> CompareResult:
        """Inverse of `to_json`."""
        r = json.loads(text)
        return CompareResult(
            r["x"], r["y"], r["level"], r["paired"], pd.DataFrame(r["table"]),
            Crossing(**r["crossing"]), r["verdict"],
            [FitWarning.from_dict(w) for w in r["warnings"]],
        )  # fmt: skip

    def plot(self) -> Figure:
        """The multiplier against the compute of y."""
        from analysis.plots import of_comparison

        return of_comparison(self)

    def _repr_html_(self) -> str:
        return f"<p>{self.verdict}</p>{self.frame.to_html(index=False)}"


def frontier_power_law(law: Law, values: Array) -> tuple[Array, Array, Array] | None:
    """E, log K and s of the compute-optimal frontier E + K C^-s under C = 6 N D; None if it is not.

    For A N^-alpha + B D^-beta at its optimum both terms fall as C^-s with s = alpha beta / (alpha +
    beta), in the ratio beta : alpha.
    """
    floor = law.column(values, "E") if law.has_floor else np.zeros(values.shape[:-1])
    if law.columns == ("c",):
        if law.name == "broken_c":
            return None
        return floor, np.log(law.column(values, "A")), law.column(values, "alpha")
    inner = law.inner(values)
    if inner is None:
        return None
    total = inner.alpha + inner.beta
    log_g = (np.log(inner.alpha * inner.A) - np.log(inner.beta * inner.B)) / total
    slope = inner.alpha * inner.beta / total
    # A N*^-alpha at C: A G^-alpha (C/6)^-s; the other term is alpha/beta times as large
    log_k = np.log(inner.A) - inner.alpha * log_g + np.log1p(inner.alpha / inner.beta)
    log_k = log_k + slope * np.log(6.0)
    power = law.outer(values)
    return floor, power * log_k, power * slope


def compute_for_loss(
    fit: LawFit, losses: Array, *, draws: bool = False, flops_per_token: PerToken | None = None
) -> Array:
    """FLOPs that the frontier needs for each loss: (losses,), or (draws, losses).

    Infinite where a loss lies at or below the irreducible loss.
    """
    values = fit.values
    if draws:
        if fit.draws is None:
            raise AnalysisError("comparing with intervals needs bootstrapped fits: pass "
                                "bootstrap=4000 to fit_law")  # fmt: skip
        values = fit.draws.values[:, None, :]
    losses = np.asarray(losses, dtype=float)
    power = frontier_power_law(fit.law, values) if flops_per_token is None else None
    if power is not None:
        floor, log_k, slope = power
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            reach = losses - floor
            compute = np.exp((log_k - np.log(np.maximum(reach, 0))) / slope)
        return np.where(reach > 0, compute, np.inf)
    rows = values.reshape(-1, values.shape[-1])
    found = np.stack([_invert(fit, row, losses, flops_per_token) for row in rows])
    return found if draws else found[0]


def _invert(fit: LawFit, values: Array, losses: Array, per_token: PerToken | None) -> Array:
    """Interpolates compute against loss along the frontier of one set of parameters."""
    law = fit.law
    centre = np.log(np.nanmedian(fit.observations.compute))
    if law.columns == ("c",):
        log_c = np.linspace(centre - 25, centre + 35, _PATH_POINTS)
        log_loss = np.log(law.predict(values, {"c": np.exp(log_c)}))
    else:
        log_c, log_loss = _path(fit, values, per_token)
    # Loss falls along the path; interpolation wants rising abscissae
    return np.exp(np.interp(-np.log(losses), -log_loss, log_c, left=-np.inf, right=np.inf))


def _path(fit: LawFit, values: Array, per_token: PerToken | None) -> tuple[Array, Array]:
    """log C and log loss along the optimal path, parametrised by N.

    At the optimum alpha A N^-alpha = e(N) beta B D^-beta with e = d log f / d log N the elasticity
    of FLOPs per token f, so each N has its D in closed form.
    """
    inner = fit.law.inner(values)
    if inner is None:
        raise AnalysisError(f"{fit.form} has no N and D: FLOPs per token cannot be applied to it")
    middle = float(np.log(np.median(fit.observations.columns["n"])))
    log_n = np.linspace(middle - 14, middle + 18, _PATH_POINTS)
    n, step = np.exp(log_n), 1e-4
    f = 6 * n if per_token is None else per_token(n)
    if per_token is None:
        elasticity = np.ones_like(n)
    else:
        up, down = per_token(n * np.exp(step)), per_token(n * np.exp(-step))
        elasticity = np.log(up / down) / (2 * step)
    log_d = (
        np.log(elasticity * inner.beta * inner.B) - np.log(inner.alpha * inner.A)
        + inner.alpha * log_n
    ) / inner.beta  # fmt: skip
    d = np.exp(log_d)
    loss = fit.law.predict(values, {"n": n, "d": d, "u": d})
    return np.log(f) + log_d, np.log(loss)


def reach(fit: LawFit) -> tuple[float, float]:
    """Smallest and largest compute among the points of a fit."""
    compute = fit.observations.compute
    if not np.isfinite(compute).any():
        raise AnalysisError(f"{fit.form} was fitted without compute: give C, or N and D")
    return float(np.nanmin(compute)), float(np.nanmax(compute))


def compute_multiplier(
    x: LawFit,
    y: LawFit,
    *,
    names: tuple[str, str] = ("x", "y"),
    losses: Array | None = None,
    compute: Array | None = None,
    level: float = 0.9,
    flops_per_token: tuple[PerToken | None, PerToken | None] = (None, None),
) -> CompareResult:
    """Equal-loss compute multiplier of x over y.

    Args:
        x, y: fits of the same loss on the same data; with draws for intervals.
        names: what to call them.
        losses: where to compare; default 25 losses over the compute that both have seen.
        compute: instead of losses, budgets of x.
        level: of the intervals.
        flops_per_token: each architecture's own FLOPs per token as a function of N.

    Raises:
        AnalysisError: no common range of compute, or fits without compute.
    """
    low, high = (max(reach(x)[0], reach(y)[0]), min(reach(x)[1], reach(y)[1]))
    if losses is None:
        if compute is None:
            if not low < high:
                raise AnalysisError(
                    f"{names[0]} and {names[1]} share no range of compute ({reach(x)} and "
                    f"{reach(y)} FLOPs); pass losses to compare by extrapolation"
                )
            compute = np.geomspace(low, high, 25)
        losses = x.frontier(compute, flops_per_token=flops_per_token[0])
    losses = np.sort(np.asarray(losses, dtype=float))[::-1]
    c_x = compute_for_loss(x, losses, flops_per_token=flops_per_token[0])
    c_y = compute_for_loss(y, losses, flops_per_token=flops_per_token[1])
    frame = pd.DataFrame({"loss": losses, "c_x": c_x, "c_y": c_y})
    with np.errstate(invalid="ignore"):
        frame["multiplier"] = c_y / c_x
    paired = False
    ratio: Array | None = None
    if x.draws is not None and y.draws is not None:
        paired = x.draws.paired_with(y.draws)
        d_x = compute_for_loss(x, losses, draws=True, flops_per_token=flops_per_token[0])
        d_y = compute_for_loss(y, losses, draws=True, flops_per_token=flops_per_token[1])
        count = min(len(d_x), len(d_y))
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.nan_to_num(d_y[:count] / d_x[:count], nan=1.0, posinf=np.inf)
        frame["lo"], frame["hi"] = np.quantile(
            ratio, [(1 - level) / 2, (1 + level) / 2], axis=0, method="nearest"
        )
    inside = np.ones(len(losses), dtype=bool)
    for spent, fit in ((c_x, x), (c_y, y)):
        least, most = reach(fit)
        inside &= (spent >= 0.999 * least) & (spent <= 1.001 * most)
        # A law may promise, at a size nobody trained, losses that no run has shown.
        inside &= losses >= fit.observations.loss.min()
    frame["inside"] = inside
    cross = crossing(x, y, level=level, flops_per_token=flops_per_token)
    warnings = _warnings(frame, paired, ratio is not None, names)
    verdict = _verdict(frame, names, level, ratio is not None)
    return CompareResult(names[0], names[1], level, paired, frame, cross, verdict, warnings)


def crossing(
    x: LawFit,
    y: LawFit,
    *,
    span: float = 1e4,
    level: float = 0.9,
    flops_per_token: tuple[PerToken | None, PerToken | None] = (None, None),
) -> Crossing:
    """First crossing of the two frontiers between C_min / span and C_max * span."""
    low, high = min(reach(x)[0], reach(y)[0]), max(reach(x)[1], reach(y)[1])
    grid = np.geomspace(low / span, high * span, 400)
    gap = np.log(x.frontier(grid, flops_per_token=flops_per_token[0])) - np.log(
        y.frontier(grid, flops_per_token=flops_per_token[1])
    )
    place = _first_zero(np.log(grid), gap[None])[0]
    compute = float(np.exp(place))
    loss = float(x.frontier(np.array([compute]), flops_per_token=flops_per_token[0])[0]) if (
        np.isfinite(place)
    ) else float("nan")  # fmt: skip
    inside = max(reach(x)[0], reach(y)[0]) <= compute <= min(reach(x)[1], reach(y)[1])
    if x.draws is None or y.draws is None:
        nan = float("nan")
        return Crossing(loss, compute, nan, nan, nan, bool(inside))
    coarse = grid[::4]
    sides = [
        np.log(frontier_draws(f, coarse, per_token))
        for f, per_token in zip((x, y), flops_per_token, strict=True)
    ]
    count = min(len(s) for s in sides)
    places = _first_zero(np.log(coarse), sides[0][:count] - sides[1][:count])
    crossed = np.isfinite(places)
    lo = hi = np.array(np.nan)
    if crossed.any():
        lo, hi = quantiles(np.exp(places[crossed]), level)
    return Crossing(loss, compute, float(lo), float(hi), float(crossed.mean()), bool(inside))


def frontier_draws(fit: LawFit, compute: Array, per_token: PerToken | None) -> Array:
    """Frontier loss of every draw (draws, budgets); closed where the frontier is a power law."""
    if fit.draws is not None and per_token is None:
        power = frontier_power_law(fit.law, fit.draws.values[:, None, :])
        if power is not None:
            floor, log_k, slope = power
            return floor + np.exp(log_k - slope * np.log(compute))
    return fit.frontier_draws(compute, flops_per_token=per_token)


def _first_zero(x: Array, gap: Array) -> Array:
    """Abscissa of the first sign change of each row (b, m), linearly interpolated; NaN if none."""
    change = np.sign(gap[:, :-1]) * np.sign(gap[:, 1:]) < 0
    at = change.argmax(axis=1)
    rows = np.arange(len(gap))
    left, right = gap[rows, at], gap[rows, at + 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        place = x[at] + (x[at + 1] - x[at]) * left / (left - right)
    return np.where(change.any(axis=1), place, np.nan)


def _warnings(
    frame: pd.DataFrame, paired: bool, drawn: bool, names: tuple[str, str]
) -> list[FitWarning]:
    found: list[FitWarning] = []
    if drawn and not paired:
        found.append(
            FitWarning(
                "one_draw_source",
                f"{names[0]} and {names[1]} were resampled independently, so noise that their "
                "runs share does not cancel and intervals are wide. Name a `clusters` column with "
                "the same labels in both (a size, say) to draw them in pairs.",
            )
        )
    outside = int((~frame["inside"].to_numpy(dtype=bool)).sum())
    if outside:
        found.append(
            FitWarning(
                "extrapolation",
                f"{outside} of {len(frame)} losses lie outside the compute of one of the two.",
                {"outside": outside},
            )
        )
    return found


def _verdict(frame: pd.DataFrame, names: tuple[str, str], level: float, drawn: bool) -> str:
    x, y = names
    inside = frame["inside"].to_numpy(dtype=bool)
    index = int(np.flatnonzero(inside)[-1]) if inside.any() else len(frame) - 1
    loss, m = (float(frame[k].to_numpy()[index]) for k in ("loss", "multiplier"))
    place = f"At loss {loss:.3f}, the lowest that both have reached"
    if not inside.any():
        place = f"At loss {loss:.3f}, beyond the data of one of them"
    if not drawn:
        return (
            f"{place}, {y} needs {m:.2f} times the compute of {x} by the point estimates; without "
            "a bootstrap nothing can be said about significance."
        )
    lo, hi = (float(frame[k].to_numpy()[index]) for k in ("lo", "hi"))
    spread = f"({level:.0%} interval {lo:.2f} to {hi:.2f})"
    if lo > 1 - _NEGLIGIBLE and hi < 1 + _NEGLIGIBLE:
        end = f"{x} and {y} need the same compute within {_NEGLIGIBLE:.0%}"
        return f"{place}, {end}: the multiplier is {m:.2f} {spread}."
    if lo > 1:
        return f"{place}, {x} is more efficient: {y} needs {m:.2f} times its compute {spread}."
    if hi < 1:
        return f"{place}, {y} needs only {m:.2f} times the compute of {x} {spread}."
    return (
        f"{place}, the data do not separate {x} and {y}: {y} needs {m:.2f} times the compute of "
        f"{x}, but the interval includes 1 {spread}."
    )


def multipliers(
    fits: Mapping[str, LawFit], *, baseline: str, level: float = 0.9
) -> dict[str, CompareResult]:
    """Every other group over the baseline: m > 1 means the group is more efficient than it."""
    if baseline not in fits:
        raise AnalysisError(f"no group {baseline!r}; there are {', '.join(fits)}")
    return {
        name: compute_multiplier(fit, fits[baseline], names=(name, baseline), level=level)
        for name, fit in fits.items()
        if name != baseline
    }

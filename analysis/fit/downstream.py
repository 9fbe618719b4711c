"""Loss to task accuracy: the second step from compute to accuracy.

    fit_downstream(data, loss=, accuracy=, chance=) -> DownstreamFit
        accuracy = chance + (ceiling - chance) / (1 + exp(slope (loss - midpoint)))
        with the chance level fixed (1 / answers), the ceiling 1 unless `free_ceiling`

Both steps together are `analysis.judge.forecast.predict_task`.
The form is that of Bhagia et al. 2412.04403 (task scaling laws) and Gadre et al. 2403.08540 with a
sigmoid for their exponential. Where every model is at chance nothing can be predicted yet, and the
fit refuses.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError, FitWarning
from analysis.fit.drawing import figure_of
from analysis.fit.uncertainty import FEWEST_CLUSTERS, quantiles
from analysis.io.saved import array, saved
from analysis.units import LEVEL, Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ITERATIONS = 200
_BY_LUCK = 0.05
"""Probability that the best of all models at chance looks better than chance."""


@dataclass(frozen=True)
class DownstreamFit:
    """A sigmoid from loss to accuracy."""

    chance: float
    params: dict[str, float]
    """midpoint (loss), slope (per unit of loss), ceiling."""
    points: pd.DataFrame
    """Columns loss, accuracy, cluster."""
    residual: float
    """Root mean square residual of accuracy."""
    draws: Array | None = None
    """(b, 3) midpoint, slope, ceiling of bootstrap refits."""
    warnings: list[FitWarning] = field(default_factory=list[FitWarning])

    def predict(self, loss: Any) -> Array:
        """Accuracy at a loss."""
        return _sigmoid(np.array(list(self.params.values())), np.asarray(loss, float), self.chance)

    def predict_draws(self, loss: Array) -> Array:
        """Accuracy of every draw: loss (m,) for all draws, or (b, m) one row each -> (b, m)."""
        if self.draws is None:
            raise AnalysisError("this task fit has no draws: pass bootstrap=2000 to fit_downstream")
        return _sigmoid(self.draws[:, None, :], np.asarray(loss, dtype=float), self.chance)

    def interval(self, name: str, level: float = LEVEL) -> tuple[float, float]:
        """Percentile interval of a parameter."""
        if self.draws is None or name not in self.params:
            raise AnalysisError(f"no draws of {name!r}; parameters are {', '.join(self.params)}")
        low, high = quantiles(self.draws[:, list(self.params).index(name)], level)
        return float(low), float(high)

    def table(self, level: float = LEVEL) -> pd.DataFrame:
        """Columns parameter, value, and with draws lo, hi."""
        frame = pd.DataFrame({"parameter": list(self.params), "value": list(self.params.values())})
        if self.draws is not None:
            ends = [self.interval(p, level) for p in self.params]
            frame["lo"], frame["hi"] = [e[0] for e in ends], [e[1] for e in ends]
        return frame

    def to_json(self) -> str:
        """JSON at full precision."""
        return json.dumps({
            "schema": 1, "chance": self.chance, "parameters": self.params,
            "points": self.points.to_dict("list"), "residual": self.residual,
            "draws": None if self.draws is None else self.draws.tolist(),
            "warnings": [w.as_dict() for w in self.warnings],
        })  # fmt: skip

    @staticmethod
    def from_json(text: str) -> DownstreamFit:
        """Inverse of `to_json`."""
        with saved(text, "DownstreamFit") as r:
            draws = None if r["draws"] is None else array(r, "draws")
            return DownstreamFit(
                r["chance"], r["parameters"], pd.DataFrame(r["points"]), r["residual"],
                draws, [FitWarning.from_dict(w) for w in r["warnings"]],
            )  # fmt: skip

    def plot(self, *, level: float = LEVEL, name: str = "task", style: str = "house") -> Figure:
        """Accuracy against loss with the band of the draws."""
        return figure_of(self, level=level, name=name, style=style)

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{w}</li>" for w in self.warnings)
        return f"{self.table().to_html(index=False)}<ul>{notes}</ul>"


def fit_downstream(
    data: pd.DataFrame,
    *,
    loss: str = "loss",
    accuracy: str = "accuracy",
    chance: float,
    clusters: str | None = None,
    questions: int | None = None,
    free_ceiling: bool = False,
    bootstrap: int = 0,
    seed: int = 0,
) -> DownstreamFit:
    """Fits the sigmoid by least squares on accuracy.

    Args:
        data: one row per model or checkpoint.
        loss, accuracy: columns; accuracy in 0..1.
        chance: accuracy of guessing, 0.25 for four answers.
        clusters: unit of resampling, default `run_id`, else each row.
        questions: size of the task; decides when a model is above chance (default 1000).
        free_ceiling: also fit the accuracy that very low losses reach, up to 1.
        bootstrap: redraws of clusters.

    Raises:
        AnalysisError: columns absent, accuracies outside 0..1, too few points, all at chance, or
            fewer than four clusters to redraw.
    """
    for name in (loss, accuracy):
        if name not in data.columns:
            raise AnalysisError(f"no column {name!r}; the table has {', '.join(map(str, data))}")
    if not 0 <= chance < 1:
        raise AnalysisError(f"chance must be in [0, 1), got {chance}; it is 1 / number of answers")
    label = clusters or ("run_id" if "run_id" in data.columns else None)
    x = np.asarray(pd.to_numeric(data[loss], errors="coerce"), dtype=float)
    y = np.asarray(pd.to_numeric(data[accuracy], errors="coerce"), dtype=float)
    names = np.asarray(data[label].astype(str) if label else [str(i) for i in range(len(x))])
    good = np.isfinite(x) & np.isfinite(y)
    warnings: list[FitWarning] = []
    if not good.all():
        warnings.append(FitWarning("rows_excluded", f"{int((~good).sum())} rows without a number "
                                   "were left out.", {"count": int((~good).sum())}))  # fmt: skip
    x, y, names = x[good], y[good], names[good]
    size = 3 if free_ceiling else 2
    if len(x) <= size or len(np.unique(x)) <= size:
        raise AnalysisError(f"{len(x)} usable points; a sigmoid of {size} parameters needs more")
    if y.min() < 0 or y.max() > 1:
        raise AnalysisError(f"accuracies range from {y.min():g} to {y.max():g}; give them in 0..1 "
                            "(divide percentages by 100)")  # fmt: skip
    noise = np.sqrt(max(chance, 0.01) * (1 - max(chance, 0.01)) / (questions or 1000))
    luck = NormalDist().inv_cdf(1 - _BY_LUCK / len(y)) * noise  # the best of many guessers
    above = y > chance + luck
    if not above.any():
        raise AnalysisError(
            f"every model is at chance ({chance:.3f} +- {luck:.3f}): the task is not "
            "predictable yet. Use larger models, or a continuous metric such as bits per byte of "
            "the answer"
        )
    if above.mean() < 0.3:
        text = (
            f"Only {int(above.sum())} of {len(y)} models are above chance: the midpoint is a guess."
        )
        warnings.append(FitWarning("at_chance", text, {"above": int(above.sum())}))
    starts = _starts(x, y)
    found, cost = _levenberg(starts, x, y, np.ones((len(starts), len(x))), chance, free_ceiling)
    theta = found[int(cost.argmin())]
    draws = None
    if bootstrap:
        unique, code = np.unique(names, return_inverse=True)
        if len(unique) < FEWEST_CLUSTERS:
            raise AnalysisError(f"{len(unique)} run(s) with this task: a bootstrap over runs needs "
                                f"at least {FEWEST_CLUSTERS}")  # fmt: skip
        rng = np.random.default_rng(seed)
        counts = rng.multinomial(len(unique), np.full(len(unique), 1 / len(unique)), bootstrap)
        draws, _ = _levenberg(
            np.tile(theta, (bootstrap, 1)), x, y, counts[:, code].astype(float), chance,
            free_ceiling,
        )  # fmt: skip
        draws = _natural(draws)
    midpoint, slope, ceiling = _natural(theta).tolist()
    return DownstreamFit(
        chance=chance,
        params={"midpoint": midpoint, "slope": slope, "ceiling": ceiling},
        points=pd.DataFrame({"loss": x, "accuracy": y, "cluster": names}),
        residual=float(np.sqrt(cost.min() / len(x))),
        draws=draws,
        warnings=warnings,
    )


def _sigmoid(params: Array, loss: Array, chance: float) -> Array:
    """params (..., 3) natural, loss broadcasting with params[..., 0]."""
    midpoint, slope, ceiling = (params[..., i] for i in range(3))
    z = np.clip(slope * (loss - midpoint), -500, 500)
    return chance + (ceiling - chance) / (1 + np.exp(z))


def _natural(theta: Array) -> Array:
    """(midpoint, log slope, ceiling) -> (midpoint, slope, ceiling)."""
    out = np.array(theta)
    out[..., 1] = np.exp(theta[..., 1])
    return out


def _starts(x: Array, y: Array) -> Array:
    spread = max(float(np.ptp(x)), 1e-6)
    places = [float(np.quantile(x, q)) for q in (0.0, 0.25, 0.5, 0.75, 1.0)]
    places += [float(x.min()) - spread, float(x.max()) + spread]
    top = max(float(y.max()), 0.9)
    return np.array([[m, np.log(s / spread), top] for m in places for s in (1.0, 4.0, 16.0)])


def _levenberg(
    start: Array, x: Array, y: Array, weight: Array, chance: float, free_ceiling: bool
) -> tuple[Array, Array]:
    """Batched Levenberg-Marquardt on (midpoint, log slope, ceiling): (b, 3), costs (b,)."""
    theta = start.copy()
    if not free_ceiling:
        theta[:, 2] = 1.0
    active = np.array([True, True, free_ceiling])
    damping = np.full(len(theta), 1e-2)
    spread = max(float(np.ptp(x)), 1e-6)

    def cost_of(t: Array) -> Array:
        return (weight * (_sigmoid(_natural(t)[:, None, :], x, chance) - y) ** 2).sum(axis=1)

    cost = cost_of(theta)
    for _ in range(_ITERATIONS):
        natural = _natural(theta)
        predicted = _sigmoid(natural[:, None, :], x, chance)
        share = (predicted - chance) / np.maximum(natural[:, 2, None] - chance, 1e-9)
        drop = -(natural[:, 2, None] - chance) * share * (1 - share)
        z_slope = natural[:, 1, None]
        jacobian = np.stack(
            [-drop * z_slope, drop * z_slope * (x - natural[:, 0, None]), share], axis=1
        )
        jacobian *= active[:, None]
        force = ((jacobian * weight[:, None]) @ (predicted - y)[:, :, None])[:, :, 0]
        normal = (jacobian * weight[:, None]) @ jacobian.transpose(0, 2, 1)
        diagonal = np.einsum("bii->bi", normal) + 1e-12
        system = normal + np.einsum("bi,ij->bij", diagonal * damping[:, None] + 1e-14, np.eye(3))
        step = -np.linalg.solve(system, force[:, :, None])[:, :, 0]
        trial = theta + np.clip(step, -2 * max(1.0, spread), 2 * max(1.0, spread))
        trial[:, 1] = np.clip(trial[:, 1], np.log(1e-3 / spread), np.log(1e4 / spread))
        trial[:, 2] = np.clip(trial[:, 2], max(chance, float(y.max())), 1.0)
        reached = cost_of(trial)
        better = reached < cost
        gain = np.where(better, (cost - reached) / np.maximum(cost, 1e-300), 0.0)
        theta[better], cost = trial[better], np.where(better, reached, cost)
        damping = np.clip(np.where(better, damping * 0.3, damping * 4), 1e-9, 1e9)
        if ((gain < 1e-12) & (better | (damping > 1e8))).all():
            break
    return theta, cost

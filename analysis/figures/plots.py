"""What `.plot()` of every result draws: its numbers as frames for `analysis.figures`.

Each function registers for its kind of result (`analysis.fit.drawing`): `.plot()` finds it there.

law of N and D       contours of the loss with the runs and the compute-optimal line
law of one variable  loss against that variable with its band
envelope             loss against compute along the envelope
IsoFLOP              valleys and their minima
comparison           equal-loss compute multiplier
task                 accuracy against loss
three approaches     N*(C) and D*(C) of each
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import figures
from analysis.figures.laws_in_compute import Axis
from analysis.fit.approaches import Approaches
from analysis.fit.downstream import DownstreamFit
from analysis.fit.drawing import draws
from analysis.fit.envelope import EnvelopeFit
from analysis.fit.isoflop import IsoflopFit
from analysis.fit.law_fit import LawFit
from analysis.fit.uncertainty import quantiles
from analysis.fit.within import frontier_within, measured, within
from analysis.io.frames import numbers, rows
from analysis.judge.compare import CompareResult
from analysis.laws.held import columns_at

REACH = 3.0
"""Laws are drawn up to this factor beyond the data, dashed there."""
_GRID = 64
_AXES: dict[str, Axis] = {"c": "flops", "n": "n_params", "d": "tokens"}


@draws(LawFit)
def of_law(fit: LawFit, *, level: float, name: str) -> Figure:
    """A law's points and what it says between and beyond them."""
    obs = fit.observations
    points = pd.DataFrame({"arch": name, "loss": obs.loss, "flops": obs.compute}).assign(
        **{_AXES[k]: v for k, v in obs.columns.items() if k in _AXES}
    )
    if {"n", "d"} <= set(fit.law.columns):
        frontier = pd.DataFrame({"group": [], "n": [], "d": []})
        if fit.has_optimum:
            compute = np.geomspace(obs.compute.min() / REACH, obs.compute.max() * REACH, _GRID)
            frontier = fit.optimal(compute, extrapolate=True)[["n", "d"]].assign(
                group=name, inside=frontier_within(fit, compute)
            )
        return figures.contours(
            points,
            {name: lambda n, d: fit.predict(**columns_at(fit.held, n, d), extrapolate=True)},
            frontier,
        )
    (variable,) = fit.law.columns
    values = obs.columns[variable]
    x = np.geomspace(values.min(), values.max() * REACH, _GRID)
    inside = within(measured(fit), **{variable: x})
    law = pd.DataFrame({"group": name, "x": x, "inside": inside})
    if fit.draws is None:
        law["y"] = fit.predict(**{variable: x})
    else:
        law[["y", "lo", "hi"]] = fit.band(level=level, **{variable: x}).to_numpy()
    return figures.loss_compute(points, law, axis=_AXES[variable])


@draws(EnvelopeFit)
def of_envelope(fit: EnvelopeFit, *, level: float, name: str) -> Figure:
    """The envelope and the power law through it, in FLOPs."""
    unit = fit.options.unit
    points = pd.DataFrame({
        "arch": name, "flops": fit.frontier["c"] * unit, "n_params": fit.frontier["n"],
        "tokens": fit.frontier["d"], "loss": fit.frontier["loss"],
        "used": fit.frontier["interior"] if fit.options.interior else True,
    })  # fmt: skip
    c = numbers(fit.frontier, "c")
    x = np.geomspace(c.min(), c.max() * REACH, _GRID)
    law = pd.DataFrame({"group": name, "x": x * unit, "y": fit.predict(x),
                        "inside": within({"c": c}, c=x)})  # fmt: skip
    if fit.draws:
        floor = fit.draws.get("E", np.zeros(1))[:, None]
        draws = floor + fit.draws["A"][:, None] * x ** -fit.draws["alpha"][:, None]
        law["lo"], law["hi"] = quantiles(draws, level)
    return figures.loss_compute(points, law)


@draws(IsoflopFit)
def of_profiles(fit: IsoflopFit, *, name: str) -> Figure:
    """The profiles of one group."""
    return of_isoflop({name: fit})


def of_isoflop(fits: Mapping[str, IsoflopFit]) -> Figure:
    """Every budget's points, its polynomial and its minimum; a panel a group."""
    parts: list[tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]] = []
    for name, fit in fits.items():
        points = fit.points.rename(columns={"n": "n_params", "d": "tokens", "c": "flops"})
        used = np.isin(numbers(points, "budget"), numbers(fit.minima, "budget"))
        curves = fit.profiles().rename(columns={"n": "x", "loss": "y"})
        minima = fit.minima.rename(columns={"n": "n_params"})
        parts.append((points[used].assign(arch=name), curves.assign(arch=name),
                      minima.assign(arch=name)))  # fmt: skip
    return figures.valleys(*(pd.concat(frames, ignore_index=True)
                             for frames in zip(*parts, strict=True)))  # fmt: skip


@draws(CompareResult)
def of_comparison(result: CompareResult) -> Figure:
    """The compute multiplier of x over y against the compute of y."""
    frame = rows(result.frame, np.isfinite(numbers(result.frame, "multiplier")))
    bands = pd.DataFrame({"group": result.x, "x": frame["c_y"], "y": frame["multiplier"],
                          "inside": frame["inside"]})  # fmt: skip
    if np.isfinite(numbers(frame, "lo")).any():
        bands = bands.assign(lo=frame["lo"], hi=frame["hi"])
    return figures.multipliers(bands, baseline=result.y)


@draws(DownstreamFit)
def of_task(fit: DownstreamFit, *, level: float, name: str) -> Figure:
    """Accuracy against loss.

    Raises:
        AnalysisError: the fit has no draws, so that no band can be drawn.
    """
    loss = numbers(fit.points, "loss")
    x = np.linspace(loss.min(), loss.max(), _GRID)
    low, high = quantiles(fit.predict_draws(x), level)
    law = pd.DataFrame({"group": name, "x": x, "y": fit.predict(x), "lo": low, "hi": high})
    measured = fit.points[["loss", "accuracy"]].assign(arch="all", task=name)
    return figures.downstream(measured, law, chance={name: fit.chance})


@draws(Approaches)
def of_approaches(result: Approaches, *, level: float) -> Figure:
    """N*(C) and D*(C) of every approach that could be applied, two decades up to `result.at`."""
    compute = np.geomspace(result.at / 1e2, result.at * REACH, _GRID)
    parts: list[pd.DataFrame] = []
    for name in result.fits():
        best = result.optimum(name, compute, level=level)
        for q in ("n", "d"):
            part = pd.DataFrame({"group": name, "quantity": q, "x": compute, "y": best[q],
                                 "inside": result.within(name, compute)})  # fmt: skip
            if f"{q}_lo" in best:
                part["lo"], part["hi"] = best[f"{q}_lo"], best[f"{q}_hi"]
            parts.append(part)
    return figures.optimum(pd.concat(parts, ignore_index=True))

"""The figures of a report, drawn from a study, in the order of the page."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import figures
from analysis.errors import AnalysisError
from analysis.figures.plots import of_isoflop
from analysis.figures.surface import Surface
from analysis.fit.isoflop import IsoflopFit, isoflop
from analysis.fit.law_fit import LawFit
from analysis.io.frames import rows, where, words
from analysis.io.looks import look
from analysis.judge.frontier import unbeaten
from analysis.judge.study import Study
from analysis.units import LEVEL

DASHED = "Dashed: the optimal N, the optimal D or C lies beyond what was trained."


@dataclass(frozen=True)
class Drawn:
    """A figure of the report."""

    name: str
    figure: Figure
    caption: str
    wide: bool = False
    """Several panels: scrolls sideways on a phone instead of shrinking."""


def basis(result: Study) -> str:
    """What every figure rests on."""
    points = result.points
    recorded = result.sweep.recorded
    dates = sorted(d[:10] for d in words(result.sweep.runs, "updated") if d) if recorded else []
    return (
        f"n = {len(points)} checkpoints of {len(set(words(points, 'run_id')))} runs"
        f"{f', {dates[-1]}' if dates else ''}. {result.sweep.conventions}."
    )


def draw(result: Study) -> list[Drawn]:
    """Every figure that the records allow, in the order of the page."""
    sweep, points = result.sweep, result.points
    each = [where(points, arch=g) for g in result.groups]
    fitted = pd.concat([own.assign(used=unbeaten(own)) for own in each], ignore_index=True)
    interval = f"Bands: {LEVEL:.0%} intervals, {result.bootstrap} bootstrap refits over runs."
    drawn = [
        Drawn(
            "frontier",
            figures.loss_compute(fitted, result.loss_bands()),
            "Lowest loss within a compute budget, from each architecture's law L(N, D) at its own "
            f"optimal size. Strong markers: checkpoints that none of the same architecture beats "
            f"with less compute. {interval} {DASHED}",
        ),
        *([Drawn(
            "learning_curves",
            figures.learning_curves(sweep.curves, points),
            "Training loss of every run: medians over a twentieth of a decade. Thin: decays, from "
            "the trunk that they leave; markers: training loss at their ends. Laws are of the "
            "validation loss, which is not drawn here.",
            wide=True,
        )] if sweep.recorded else []),
        Drawn(
            "contours",
            figures.contours(
                fitted,
                {g: _surface(result, g) for g in result.groups},
                pd.concat([
                    pd.DataFrame({"group": g, "n": result.optima[g]["n"],
                                  "d": result.optima[g]["d"], "inside": result.covered(g)})
                    for g in result.groups
                ]),
            ),
            "The fitted law over model size and data, with the runs it was fitted to and the "
            f"compute-optimal line under each architecture's own FLOPs. {DASHED}",
            wide=True,
        ),
        Drawn(
            "residuals",
            figures.residuals(result.residuals()),
            "What the law leaves: relative error of every checkpoint, and its quantiles against a "
            "normal distribution.",
            wide=True,
        ),
        Drawn(
            "exponents",
            figures.bootstrap_cloud(*result.exponent_draws()),
            f"Exponents of {result.bootstrap} bootstrap refits over runs; separate clumps mean "
            "that few runs were there to draw from.",
        ),
        Drawn(
            "optimum",
            figures.optimum(result.optimum_bands()),
            f"Compute-optimal size and data. {interval} {DASHED} Dotted: published laws, "
            "extrapolated far below the compute they were fitted to.",
            wide=True,
        ),
    ]  # fmt: skip
    if result.comparisons:
        drawn.insert(
            1,
            Drawn(
                "multipliers",
                figures.multipliers(result.multiplier_bands(), baseline=result.baseline),
                f"How many times an architecture's compute {look(result.baseline).label} needs "
                f"for the same loss. {interval} {DASHED}",
            ),
        )
    profiles = isoflop_profiles(points, result.laws)
    if profiles:
        drawn.append(
            Drawn(
                "valleys",
                of_isoflop(profiles),
                "IsoFLOP profiles: loss against size at equal compute, with the minimum of each "
                "parabola. A cross-check of the law: parabolas are biased on wide or off-centre "
                "grids.",
                wide=True,
            )
        )
    if len(lowest := result.shares.lowest()):
        drawn.append(
            Drawn(
                "shares",
                figures.shares(lowest, result.shares.bands(LEVEL), result.shares.best(LEVEL)),
                "Lowest loss of the sizes at each budget against the share of softmax layers, and "
                f"the law L(C, share) at the size best by it with its {LEVEL:.0%} interval, below "
                "the points where that size was not trained; orange: the best share and its "
                "interval.",
            )
        )
    if len(result.forecast):
        drawn.append(
            Drawn(
                "holdout",
                figures.holdout(result.forecast),
                "The largest size of each architecture, forecast by a law fitted to the smaller "
                f"ones. Bars: {LEVEL:.0%} prediction intervals for one further run.",
                wide=True,
            )
        )
    if len(result.rolling):
        drawn.append(
            Drawn(
                "rolling",
                figures.rolling(result.rolling),
                "Rolling hold-out over compute: at each of several cuts the law is fitted to all "
                "cheaper checkpoints and forecasts all dearer ones. Right: the same with a pure "
                "power law in compute.",
                wide=True,
            )
        )
    drawn += _of_tasks(result)
    if not sweep.recorded:
        return drawn
    drawn += [
        Drawn(
            "collapse",
            figures.scaling_collapse(
                sweep.curves, {g: result.laws[g].params["E"] for g in result.groups}
            ),
            "Curves of all sizes on one another: a run that leaves the bundle is mistuned, or too "
            "short for its warm-up.",
            wide=True,
        ),
        Drawn(
            "throughput",
            figures.throughput(sweep.runs),
            "Median training speed over the log of each run, on the machine and with the load it "
            "had then.",
        ),
    ]
    return drawn


def _of_tasks(result: Study) -> list[Drawn]:
    """Accuracy against loss and against compute, where tasks were evaluated and fitted."""
    tasks = result.tasks
    if tasks is None or not tasks.fits:
        return []
    measured = rows(tasks.measured, np.isin(words(tasks.measured, "task"), list(tasks.fits)))
    chance = {task: fit.chance for task, fit in tasks.fits.items()}
    wide = len(tasks.fits) > 1
    return [
        Drawn(
            "downstream",
            figures.downstream(measured, tasks.loss_bands(level=LEVEL), chance=chance),
            "Accuracy of every evaluated checkpoint against its loss, with one sigmoid a task from "
            f"chance to one. Bands: {LEVEL:.0%} intervals over runs.",
            wide=wide,
        ),
        Drawn(
            "accuracy",
            figures.accuracy_compute(measured, result.accuracy_bands(), chance=chance),
            "Two steps from compute to accuracy: each architecture's law gives the loss of its "
            f"compute-optimal model, the sigmoid the accuracy. Bands: {LEVEL:.0%} prediction "
            f"intervals with the uncertainty of both steps. {DASHED}",
            wide=wide,
        ),
    ]


def isoflop_profiles(points: pd.DataFrame, laws: dict[str, LawFit]) -> dict[str, IsoflopFit]:
    """Profiles of the architectures whose runs were laid out for them; others have none."""
    found: dict[str, IsoflopFit] = {}
    for group, law in laws.items():
        try:
            found[group] = isoflop(where(points, arch=group), law=law)
        except AnalysisError:
            continue  # a ladder, not a grid of equal budgets
    return found


def _surface(result: Study, group: str) -> Surface:
    law = result.laws[group]
    return lambda n, d: law.predict(n=n, d=d, extrapolate=True)

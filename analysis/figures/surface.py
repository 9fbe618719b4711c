"""The loss over (N, D): contours with the efficient frontier, and IsoFLOP valleys."""

from __future__ import annotations

import math
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import style
from analysis.figures.common import LOSS, PARAMS, TOKENS, groups_of
from analysis.figures.curves import hover_texts
from analysis.figures.hover import points, tag
from analysis.style import look

Surface = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Loss predicted at (N, D), arrays of one shape."""


def contours(
    milestones: pd.DataFrame, surfaces: dict[str, Surface], frontier: pd.DataFrame
) -> Figure:
    """Predicted loss over (N, D) for each architecture, its runs and its efficient frontier.

    Args:
        milestones: arch, n_params, tokens, flops, loss.
        surfaces: loss predicted by each architecture's law.
        frontier: by `group`: n, d along the compute-optimal line.
    """
    groups = [g for g in groups_of(milestones) if g in surfaces]
    columns = min(2, len(groups))
    rows = math.ceil(len(groups) / columns)
    n_range = _stretched(milestones["n_params"])
    d_range = _stretched(milestones["tokens"])
    n, d = np.meshgrid(np.geomspace(*n_range, 90), np.geomspace(*d_range, 90))
    with style.context():
        figure, grid = style.panels(
            rows, columns, width=style.DOUBLE if columns > 1 else style.SINGLE,
            height=0.4 + 2.6 * rows, sharex=True, sharey=True,
        )  # fmt: skip
        losses = {g: surfaces[g](n, d) for g in groups}
        low = min(float(v.min()) for v in losses.values())
        high = max(float(v.max()) for v in losses.values())
        levels = np.geomspace(low, high, 15)
        for axes, group in zip(grid.flat, groups, strict=False):
            kind = look(group, groups)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.contourf(n, d, losses[group], levels=levels, cmap="Greys_r", alpha=0.55,
                          norm=mpl.colors.LogNorm(low, high))  # fmt: skip
            lines = axes.contour(n, d, losses[group], levels=levels[1:-1:2], colors="#5a5a5a",
                                 linewidths=0.6)  # fmt: skip
            axes.clabel(lines, fmt="%.2f", fontsize=6.5, inline_spacing=2)
            line = frontier[frontier["group"] == group]
            axes.plot(line["n"], line["d"], color=kind.color, linewidth=1.8, gid=tag(group))
            own = milestones[milestones["arch"] == group]
            points(axes, own["n_params"], own["tokens"], group=group, texts=hover_texts(own),
                   edgecolors="white", s=22)  # fmt: skip
            axes.set_xlim(*n_range)
            axes.set_ylim(*d_range)
            axes.set_title(kind.label, color=kind.color)
            axes.grid(False)
            style.log_axis(axes, "x", si=True)
            style.log_axis(axes, "y", si=True)
        for axes in list(grid.flat)[len(groups) :]:
            axes.remove()
        figure.supxlabel(PARAMS, fontsize=8.5)
        figure.supylabel(TOKENS, fontsize=8.5)
        figure.suptitle(
            f"lines of equal predicted {LOSS}; coloured: compute-optimal (N, D); markers: runs",
            fontsize=8, color="#555555",
        )  # fmt: skip
    return figure


def valleys(milestones: pd.DataFrame, parabolas: pd.DataFrame, minima: pd.DataFrame) -> Figure:
    """IsoFLOP profiles: loss against N at fixed compute, with each budget's minimum.

    Args:
        milestones: arch, size, n_params, tokens, flops, loss, budget.
        parabolas: arch, budget, x (N), y (loss): the fitted valley.
        minima: arch, budget, n_params, loss.
    """
    groups = groups_of(milestones)
    columns = min(2, len(groups))
    rows = math.ceil(len(groups) / columns)
    budgets = np.sort(milestones["budget"].unique())
    tones = mpl.colormaps[style.SEQUENTIAL](np.linspace(0.0, 0.85, len(budgets)))
    with style.context():
        figure, grid = style.panels(
            rows, columns, width=style.DOUBLE if columns > 1 else style.SINGLE,
            height=0.35 + 2.5 * rows, sharex=True, sharey=True,
        )  # fmt: skip
        for axes, group in zip(grid.flat, groups, strict=False):
            kind = look(group, groups)
            for budget, tone in zip(budgets, tones, strict=True):
                mask = (milestones["arch"] == group) & (milestones["budget"] == budget)
                own = milestones[mask].sort_values("n_params")
                if not len(own):
                    continue
                points(axes, own["n_params"], own["loss"], group=group, texts=hover_texts(own),
                       color=tone, s=16)  # fmt: skip
                curve = parabolas[
                    (parabolas["arch"] == group) & (parabolas["budget"] == budget)
                ].sort_values("x")
                axes.plot(curve["x"], curve["y"], color=tone, linewidth=1.2, gid=tag(group))
                best = minima[(minima["arch"] == group) & (minima["budget"] == budget)]
                axes.plot(best["n_params"], best["loss"], "*", color=tone, markersize=10,
                          markeredgecolor="black", markeredgewidth=0.5, zorder=4)  # fmt: skip
                right = own.iloc[-1]
                axes.annotate(
                    f"{budget:.0e}".replace("e+", "e"), (right["n_params"], right["loss"]),
                    xytext=(5, 0), textcoords="offset points", fontsize=7, color=tone, va="center",
                )  # fmt: skip
            axes.set_title(kind.label, color=kind.color)
        for axes in list(grid.flat)[len(groups) :]:
            axes.remove()
        first = grid.flat[0]
        spread = milestones["n_params"]
        first.set_xscale("log")
        first.set_xlim(spread.min() / 1.4, spread.max() * 2.2)
        for axes in list(grid.flat)[: len(groups)]:
            style.log_axis(axes, "x", si=True)
            style.log_axis(axes, "y")
        figure.suptitle(
            "labels: FLOPs of the budget; stars: minimum of each valley",
            fontsize=8,
            color="#555555",
        )
        figure.supxlabel(PARAMS, fontsize=8.5)
        figure.supylabel(LOSS, fontsize=8.5)
    return figure


def _stretched(values: pd.Series, factor: float = 1.8) -> tuple[float, float]:
    return float(values.min()) / factor, float(values.max()) * factor

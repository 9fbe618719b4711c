"""The loss over (N, D): contours with the efficient frontier, and IsoFLOP valleys."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from analysis.figures import style
from analysis.figures.common import (
    LOSS,
    PARAMS,
    TOKENS,
    band,
    extent,
    groups_of,
    label_axes,
    small_multiples,
)
from analysis.figures.curves import hover_texts
from analysis.figures.hover import points, tag
from analysis.io.frames import by, numbers, where

Surface = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Loss predicted at (N, D), arrays of one shape."""


def contours(
    milestones: pd.DataFrame, surfaces: dict[str, Surface], frontier: pd.DataFrame
) -> Figure:
    """Predicted loss over (N, D) for each architecture, its runs and its efficient frontier.

    Args:
        milestones: arch, n_params, tokens, flops, loss.
        surfaces: loss predicted by each architecture's law.
        frontier: by `group`: n, d along the compute-optimal line, and optionally `inside` (dashed
            where it is False).
    """
    groups = [g for g in groups_of(milestones) if g in surfaces]
    n_range, d_range = _stretch(milestones["n_params"]), _stretch(milestones["tokens"])
    n, d = np.meshgrid(np.geomspace(*n_range, 90), np.geomspace(*d_range, 90))
    losses = {g: surfaces[g](n, d) for g in groups}
    low, high = extent(*(v.ravel() for v in losses.values()))
    levels = np.geomspace(low, high, 15)
    with style.context():
        figure, panels = small_multiples(groups, height=2.6)
        for axes, group in zip(panels, groups, strict=True):
            axes.set(xscale="log", yscale="log", xlim=n_range, ylim=d_range)
            axes.grid(False)
            axes.contourf(
                n, d, losses[group], levels=levels, cmap="Greys_r", alpha=0.4,
                norm=LogNorm(low, high),
            )  # fmt: skip
            lines = axes.contour(
                n, d, losses[group], levels=levels[1:-1:2], colors="#5a5a5a", linewidths=0.6
            )
            axes.clabel(lines, fmt="%.2f", fontsize=style.pt(6.5), inline_spacing=2)
            line = where(frontier, group=group)
            if len(line):
                band(axes, line.rename(columns={"n": "x", "d": "y"}), group, among=groups,
                     linewidth=1.8)  # fmt: skip
            own = where(milestones, arch=group)
            points(
                axes, own["n_params"], own["tokens"], group=group, among=groups,
                texts=hover_texts(own), edgecolors="white", s=22,
            )  # fmt: skip
            style.log_axis(axes, "x", si=True)
            style.log_axis(axes, "y", si=True)
        label_axes(figure, PARAMS, TOKENS)
        figure.suptitle(
            f"lines of equal predicted {LOSS};{' ' if len(groups) > 1 else chr(10)}"
            "coloured: compute-optimal (N, D); markers: runs",
            fontsize=style.pt(8), color="#555555",
        )  # fmt: skip
        return style.finish(figure)


def valleys(milestones: pd.DataFrame, parabolas: pd.DataFrame, minima: pd.DataFrame) -> Figure:
    """IsoFLOP profiles: loss against N at fixed compute, with each budget's minimum.

    Args:
        milestones: arch, n_params, tokens, flops, loss, budget.
        parabolas: arch, budget, x (N), y (loss): the fitted valley.
        minima: arch, budget, n_params, loss.
    """
    groups = groups_of(milestones)
    budgets = np.unique(numbers(milestones, "budget"))
    tones = mpl.colormaps[style.SEQUENTIAL](np.linspace(0.0, 0.85, len(budgets)))
    with style.context():
        figure, panels = small_multiples(groups, height=2.5)
        for axes, group in zip(panels, groups, strict=True):
            for budget, tone in zip(budgets, tones, strict=True):
                own = by(where(milestones, arch=group, budget=budget), "n_params")
                if not len(own):
                    continue
                points(
                    axes, own["n_params"], own["loss"], group=group, among=groups,
                    texts=hover_texts(own), color=tone, s=16,
                )  # fmt: skip
                curve = by(where(parabolas, arch=group, budget=budget), "x")
                axes.plot(curve["x"], curve["y"], color=tone, linewidth=1.2, gid=tag(group))
                best = where(minima, arch=group, budget=budget)
                axes.plot(
                    best["n_params"], best["loss"], "*", color=tone, markersize=10,
                    markeredgecolor="black", markeredgewidth=0.5, zorder=4, gid=tag(group),
                )  # fmt: skip
                axes.annotate(
                    style.power_text(budget),
                    (numbers(own, "n_params")[-1], numbers(own, "loss")[-1]),
                    xytext=(5, 0), textcoords="offset points", fontsize=style.pt(7), color=tone,
                    va="center",
                )  # fmt: skip
        low, high = extent(milestones["n_params"])
        panels[0].set(xscale="log", xlim=(low / 1.4, high * 2.2))
        for axes in panels:
            style.log_axis(axes, "x", si=True)
            style.log_axis(axes, "y")
        label_axes(figure, PARAMS, LOSS)
        figure.suptitle(
            "labels: FLOPs of the budget; stars: minimum of each valley", fontsize=style.pt(8),
            color="#555555",
        )  # fmt: skip
        return style.finish(figure)


def _stretch(values: Iterable[float], factor: float = 1.8) -> tuple[float, float]:
    low, high = extent(values)
    return low / factor, high * factor

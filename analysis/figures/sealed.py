"""Sealed forecasts beside what came of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures import style
from analysis.figures.common import FLOPS, LOSS, groups_of, label_axes, note, small_multiples
from analysis.figures.hover import points, tag
from analysis.io.frames import numbers, rows, where, words
from analysis.io.looks import look

_SHIFT = 1.03
"""Several seals of one question stand beside each other, by this factor of compute."""


def sealed_forecasts(
    table: pd.DataFrame, scores: Mapping[str, str], fitted: pd.DataFrame | None = None
) -> Figure:
    """A panel a group: open stars with 90 % bars as sealed, filled points as measured since, and
    small ones for what the forecast was made from.

    Args:
        table: arch, seal, name, flops, loss, lo, hi (NaN without an interval) and observed (NaN
            where there is no outcome yet), as `forecast.scoring.stars` makes it.
        scores: a line of each group for its panel.
        fitted: arch, name, flops, loss of the rows that the laws were fitted to.

    Raises:
        AnalysisError: nothing to draw.
    """
    if fitted is not None and not len(fitted):
        fitted = None  # a law in N or D alone has no compute
    groups = groups_of(table)
    seals = list(dict.fromkeys(words(table, "seal")))
    with style.context():
        figure, panels = small_multiples(groups, height=2.5)
        for axes, group in zip(panels, groups, strict=True):
            color = look(group, groups).color
            if fitted is not None:
                own = where(fitted, arch=group)
                points(
                    axes, numbers(own, "flops"), numbers(own, "loss"), group=group,
                    texts=[f"{name}: fitted on" for name in words(own, "name")], among=groups,
                    marker="o", s=5, alpha=0.5, linewidths=0,
                )  # fmt: skip
            for place, seal in enumerate(seals):
                own = where(table, arch=group, seal=seal)
                x = numbers(own, "flops") * _SHIFT ** (place - (len(seals) - 1) / 2)
                loss, low, high = (numbers(own, name) for name in ("loss", "lo", "hi"))
                bars = axes.vlines(x, low, high, color=color, alpha=0.5, linewidth=1.2)
                bars.set_gid(tag(group))
                texts = [f"{name}: forecast {value:.4f}"
                         for name, value in zip(words(own, "name"), loss, strict=True)]  # fmt: skip
                points(
                    axes, x, loss, group=group, texts=texts, among=groups, marker="*", s=58,
                    color="white", edgecolors=color, linewidths=0.9, zorder=4,
                )  # fmt: skip
            found = rows(table, np.isfinite(numbers(table, "observed")))
            met = where(found, arch=group).drop_duplicates(["name", "observed"])
            texts = [f"{name}: measured {value:.4f}"
                     for name, value in zip(words(met, "name"), numbers(met, "observed"),
                                            strict=True)]  # fmt: skip
            points(
                axes, numbers(met, "flops"), numbers(met, "observed"), group=group, texts=texts,
                among=groups, marker="o", s=16, zorder=5,
            )  # fmt: skip
            note(axes, scores.get(group, ""))
        key = [] if fitted is None else [
            Line2D([], [], linestyle="", marker=".", markersize=4, color="#888888",
                   label="fitted on")
        ]  # fmt: skip
        key += [
            Line2D([], [], linestyle="", marker="*", markersize=7, markerfacecolor="white",
                   markeredgecolor="#444444", label="forecast, 90 % interval"),
            Line2D([], [], linestyle="", marker="o", markersize=4.5, color="#444444",
                   label="measured since"),
        ]  # fmt: skip
        figure.legend(handles=key, loc="outside upper center", ncols=len(key), handletextpad=0.2)
        for axes in panels:
            style.log_axis(axes, "x")
            style.log_axis(axes, "y")
        label_axes(figure, FLOPS, LOSS)
        return style.finish(figure)

"""One number of a checkpoint against what was varied between the runs: size, shape, context."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from analysis.figures import style
from analysis.figures.common import groups_of
from analysis.figures.hover import points, tag
from analysis.io.frames import by, numbers, rows, where, words
from analysis.io.looks import look
from linscale.si import si

_FEW = 6
"""Up to so many distinct values of x are the ticks themselves."""


def varied(measured: pd.DataFrame, *, x: str, chance: Mapping[str, float] | None = None) -> Figure:
    """A panel for each quantity, with the mean of every architecture over runs alike joined.

    Args:
        measured: panel (what is drawn and its unit: the label of the y axis), arch, x, value, and
            optionally stderr (NaN where there is none) and source (whose numbers these are; those
            of two sources are not joined). Panels may cover different x.
        x: label of the horizontal axis, which is logarithmic.
        chance: panel -> value of a guess, drawn dotted.
    """
    groups = groups_of(measured)
    names = [str(name) for name in dict.fromkeys(measured["panel"])]
    columns = 2 if len(names) == 4 else min(3, len(names))
    lines = -(-len(names) // columns)
    with style.context():
        figure, grid = style.panels(
            lines, columns, width=style.SINGLE if columns == 1 else 0.4 + 2.6 * columns,
            height=0.6 + 2.3 * lines,
        )  # fmt: skip
        panels = list(grid.flat)
        for spare in panels[len(names) :]:
            spare.remove()
        for axes, name in zip(panels, names, strict=False):
            shown = where(measured, panel=name)
            for group in groups:
                _line(axes, where(shown, arch=group), group, groups)
            if chance and name in chance:
                axes.axhline(chance[name], color=style.GREY, linestyle=":", linewidth=1.0)
            axes.set_ylabel(name)
            _ticks(axes, numbers(shown, "x"))
        handles = {
            label: handle
            for axes in panels[: len(names)]
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        labels = [look(group, groups).label for group in groups]
        figure.legend(
            [handles[label] for label in labels], labels, loc="outside upper center",
            ncols=len(labels), handletextpad=0.2,
        )  # fmt: skip
        figure.supxlabel(x, fontsize=style.pt(8.5))
        return style.finish(figure)


def _line(axes: Axes, own: pd.DataFrame, group: str, groups: list[str]) -> None:
    """Every run as a marker with its standard error; a line through the means."""
    if not len(own):
        return
    kind, own = look(group, groups), by(own, "x")
    sources = words(own, "source") if "source" in own else [""] * len(own)
    for source in dict.fromkeys(sources):
        joined = rows(own, [name == source for name in sources])
        x = np.unique(numbers(joined, "x"))
        means = [float(numbers(where(joined, x=at), "value").mean()) for at in x]
        axes.plot(x, means, color=kind.color, linewidth=1.0, alpha=0.7, gid=tag(group))
    known = rows(own, np.isfinite(numbers(own, "stderr"))) if "stderr" in own else own.iloc[:0]
    if len(known):
        _, _, bars = axes.errorbar(known["x"], known["value"], known["stderr"], fmt="none",
                                   ecolor=kind.color, elinewidth=0.8, alpha=0.6)  # fmt: skip
        for bar in bars:
            bar.set_gid(tag(group))
    texts = [
        f"{kind.label}: {value:.4g} at {si(at)}"
        for at, value in zip(own["x"], own["value"], strict=True)
    ]
    points(axes, own["x"], own["value"], group=group, texts=texts, label=kind.label, among=groups,
           edgecolors="white", s=24)  # fmt: skip


def _ticks(axes: Axes, x: np.ndarray) -> None:
    """A logarithmic axis whose ticks are the values themselves where they are few."""
    axes.set_xscale("log")
    values = np.unique(x)
    if len(values) > _FEW:
        axes.set_xlim(values[0] / 1.3, values[-1] * 1.3)
        style.log_axis(axes, "x", si=True)
        return
    axes.xaxis.set_major_locator(FixedLocator(list(values)))
    axes.set_xticklabels([f"{value:,.3g}" if value < 1e3 else f"{value:,.0f}" for value in values])
    axes.xaxis.set_minor_locator(NullLocator())

"""Task accuracies: against loss with the fitted sigmoid, and against compute in two steps."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import FuncFormatter

from analysis.figures import style
from analysis.figures.common import FLOPS, band, groups_of
from analysis.figures.hover import points
from analysis.io.frames import by, where
from analysis.io.looks import look

_HALO = [Stroke(linewidth=3, foreground="white"), Normal()]
"""Keeps a word readable above a crowd of markers."""


def downstream(measured: pd.DataFrame, laws: pd.DataFrame, *, chance: dict[str, float]) -> Figure:
    """Task accuracy against loss with the fitted sigmoid, one panel a task.

    Args:
        measured: arch, task, loss, accuracy.
        laws: bands by `group` (the task): x loss, y, lo, hi accuracy; tasks without one have
            points only.
        chance: accuracy of a guess for each task.
    """
    groups = groups_of(measured)
    with style.context():
        figure, panels = _panels(measured)
        for task, axes in panels.items():
            law = by(where(laws, group=task), "x")
            axes.fill_between(
                law["x"], law["lo"], law["hi"], color="#444444", alpha=0.14, linewidth=0
            )
            axes.plot(law["x"], law["y"], color="#222222", linewidth=1.0, zorder=5)
            for group in groups:
                own = where(measured, arch=group, task=task)
                _measured(axes, own, "loss", "loss {:.3f}", group, groups)
            _chance(axes, chance[task])
            axes.invert_xaxis()
        _legend(figure, panels, len(groups))
        figure.supxlabel("loss (nats/token; better to the right)", fontsize=style.pt(8.5))
        figure.supylabel("accuracy", fontsize=style.pt(8.5))
        return style.finish(figure)


def accuracy_compute(
    measured: pd.DataFrame, bands: pd.DataFrame, *, chance: dict[str, float]
) -> Figure:
    """Task accuracy against compute: law of the loss, then the task's sigmoid, a panel a task.

    Args:
        measured: arch, task, flops, accuracy.
        bands: by `group` (the architecture) and `task`: x FLOPs, y, lo, hi accuracy, inside.
        chance: accuracy of a guess for each task.
    """
    groups = groups_of(measured)
    with style.context():
        figure, panels = _panels(measured)
        for task, axes in panels.items():
            axes.set_xscale("log")
            for group in groups:
                law = where(bands, group=group, task=task)
                if len(law):
                    band(axes, law, group, among=groups, linewidth=1.2)
                own = where(measured, arch=group, task=task)
                _measured(axes, own, "flops", "{:.2e} FLOPs", group, groups)
            _chance(axes, chance[task])
            style.log_axis(axes, "x")
        _legend(figure, panels, len(groups))
        figure.supxlabel(FLOPS, fontsize=style.pt(8.5))
        figure.supylabel("accuracy", fontsize=style.pt(8.5))
        return style.finish(figure)


def _measured(
    axes: Axes, own: pd.DataFrame, x: str, words: str, group: str, groups: list[str]
) -> None:
    """The checkpoints of one architecture against column x, which `words` formats for hovering."""
    label = look(group, groups).label
    texts = [
        f"{label}: {words.format(at)}, accuracy {accuracy:.1%}"
        for at, accuracy in zip(own[x], own["accuracy"], strict=True)
    ]
    points(
        axes, own[x], own["accuracy"],
        group=group, texts=texts, label=label, s=14, among=groups,
    )  # fmt: skip


def _panels(measured: pd.DataFrame) -> tuple[Figure, dict[str, Axes]]:
    """A titled panel for each task, three a row."""
    tasks = [str(t) for t in dict.fromkeys(measured["task"])]
    columns = min(3, len(tasks))
    count = -(-len(tasks) // columns)
    figure, grid = style.panels(
        count, columns, width=style.SINGLE if columns == 1 else 2.5 * columns,
        height=0.6 + 2.3 * count,
    )  # fmt: skip
    every: Sequence[Axes] = list(grid.flat)
    for axes in every[len(tasks) :]:
        axes.remove()
    for task, axes in zip(tasks, every, strict=False):
        axes.set_title(task)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:g}%"))
    return figure, dict(zip(tasks, every, strict=False))


def _chance(axes: Axes, level: float) -> None:
    axes.axhline(level, color=style.GREY, linestyle=":", linewidth=1.0)
    axes.annotate(
        "chance", (1, level), xycoords=("axes fraction", "data"), fontsize=style.pt(7),
        color="#6b6b6b", ha="right", va="bottom", path_effects=_HALO, zorder=6,
    )  # fmt: skip


def _legend(figure: Figure, panels: dict[str, Axes], groups: int) -> None:
    """One legend for all panels, above them."""
    handles, labels = next(iter(panels.values())).get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=min(groups, 6), handletextpad=0.2
    )

"""What checkpoints can do: tasks against compute, and heat maps of needles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis.errors import AnalysisError
from analysis.figures import style
from analysis.figures.common import FLOPS, groups_of
from analysis.figures.hover import points, tag
from analysis.io.frames import by, numbers, rows, where
from analysis.io.looks import look


def tasks_compute(measured: pd.DataFrame, *, chance: Mapping[str, float]) -> Figure:
    """Every task against training compute, one panel a task, a line a run.

    Args:
        measured: arch, run_id, size, task, flops, value, and stderr (NaN where there is none).
        chance: value of a guess, for the tasks that have one.
    """
    measured = rows(measured, numbers(measured, "flops") > 0)
    groups = groups_of(measured)
    tasks = [str(task) for task in dict.fromkeys(measured["task"])]
    columns = min(3, len(tasks))
    lines = -(-len(tasks) // columns)
    with style.context():
        figure, grid = style.panels(
            lines, columns, width=style.SINGLE if columns == 1 else 2.5 * columns,
            height=0.5 + 2.1 * lines,
        )  # fmt: skip
        for axes, task in zip(grid.flat, tasks, strict=False):
            for group in groups:
                kind, own = look(group, groups), where(measured, arch=group, task=task)
                for run_id in dict.fromkeys(own["run_id"]):
                    one = by(where(own, run_id=run_id), "flops")
                    axes.plot(one["flops"], one["value"], color=kind.color, linewidth=0.7,
                              alpha=0.6, gid=tag(group))  # fmt: skip
                axes.errorbar(own["flops"], own["value"], np.nan_to_num(numbers(own, "stderr")),
                              fmt="none", ecolor=kind.color, elinewidth=0.6, alpha=0.6)  # fmt: skip
                texts = [
                    f"{kind.label} {size}: {c:.2e} FLOPs, {value:.4g}"
                    for size, c, value in zip(own["size"], own["flops"], own["value"], strict=True)
                ]
                points(axes, own["flops"], own["value"], group=group, among=groups, texts=texts,
                       label=kind.label)  # fmt: skip
            if task in chance:
                axes.axhline(chance[task], color=style.GREY, linestyle=":", linewidth=1.0)
            axes.set_title(task)
            if not np.any(where(measured, task=task)["value"]):
                axes.set_ylim(-0.05, 1)
            style.log_axis(axes, "x")
        for axes in list(grid.flat)[len(tasks) :]:
            axes.remove()
        grid.flat[0].legend(fontsize=style.pt(7), loc="best", handletextpad=0.2)
        figure.supxlabel(FLOPS, fontsize=style.pt(8.5))
        return style.finish(figure)


def needles(grids: Sequence[tuple[str, str, Mapping[str, list[float]]]]) -> Figure:
    """Heat maps of needle grids: length to the right, depth downwards, a panel a model.

    Args:
        grids: title, architecture, and `lengths`, `depths` (0..1) and `scores` (depths x lengths,
            0..1) as evals.jsonl has them.

    Raises:
        AnalysisError: no grid, or scores that do not fit lengths and depths.
    """
    if not grids:
        raise AnalysisError("there is no needle grid to draw; run linscale evaluate --tasks needle")
    columns = min(4, len(grids))
    lines = -(-len(grids) // columns)
    with style.context():
        figure, panels = style.panels(
            lines, columns, width=max(style.SINGLE, 0.6 + 2.0 * columns), height=0.7 + 1.8 * lines,
            sharey=True,
        )  # fmt: skip
        image = None
        for axes, (title, arch, cells) in zip(panels.flat, grids, strict=False):
            scores = np.asarray(cells["scores"], dtype=float)
            lengths, depths = cells["lengths"], cells["depths"]
            if scores.shape != (len(depths), len(lengths)):
                raise AnalysisError(
                    f"{title}: {scores.shape[0]} x {scores.shape[1]} scores for {len(depths)} "
                    f"depths and {len(lengths)} lengths"
                )
            # Cells of equal size: lengths and depths are names of columns and rows here.
            image = axes.imshow(scores, cmap=style.SEQUENTIAL, vmin=0, vmax=1, aspect="auto",
                                interpolation="nearest")  # fmt: skip
            axes.set_title(title, color=look(arch).color)
            axes.grid(visible=False)
            if np.nanmin(scores) == np.nanmax(scores):  # one colour says nothing without its number
                axes.text(0.5, 0.5, f"all {scores.flat[0]:.0%}", transform=axes.transAxes,
                          ha="center", va="center", fontsize=style.pt(9),
                          color="black" if scores.flat[0] > 0.5 else "white")  # fmt: skip
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.xaxis.set_major_formatter(_names([f"{n:,.0f}" for n in lengths]))
            axes.yaxis.set_major_formatter(_names([f"{100 * d:.0f}%" for d in depths]))
        for axes in list(panels.flat)[len(grids) :]:
            axes.remove()
        assert image is not None
        bar = figure.colorbar(image, ax=list(panels.flat)[: len(grids)], shrink=0.8, pad=0.02)
        bar.set_label("needle found", fontsize=style.pt(8))
        figure.supxlabel("context (tokens)", fontsize=style.pt(8.5))
        figure.supylabel("depth of the needle", fontsize=style.pt(8.5))
        return style.finish(figure)


def _names(names: Sequence[str]) -> FuncFormatter:
    """Ticks at whole numbers named by a list."""

    def name(value: float, _: int | None) -> str:
        place = round(value)
        return names[place] if 0 <= place < len(names) and abs(value - place) < 0.01 else ""

    return FuncFormatter(name)

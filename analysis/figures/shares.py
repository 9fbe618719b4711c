"""Loss, and what is recalled, against the share of softmax layers in hybrids."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from analysis.errors import AnalysisError
from analysis.figures import style
from analysis.figures.common import shades
from analysis.io.frames import by, numbers, where, words
from analysis.io.looks import look

SHARE = "share of softmax layers"
_TASKS = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#B0568E", "D"))
_NAMES = {0.125: "1/8", 0.25: "1/4", 0.5: "1/2", 0.75: "3/4"}


def shares(
    lowest: pd.DataFrame,
    bands: pd.DataFrame,
    best: pd.DataFrame,
    recall: pd.DataFrame | None = None,
) -> Figure:
    """A panel of loss for each family, and beside it one of recall where there are numbers.

    Args:
        lowest: family, ratio, budget (FLOPs), loss: the lowest loss of the sizes trained.
        bands: family, budget, ratio, loss, lo, hi: the law; may be empty.
        best: family, budget, ratio, lo, hi: the best share and its interval; may be empty.
        recall: family, ratio, task, accuracy, stderr.

    Raises:
        AnalysisError: there is no point to draw.
    """
    families = list(dict.fromkeys(words(lowest, "family")))
    if not families:
        raise AnalysisError("there is nothing to draw: no budget has a run of every share")
    beside = recall is not None and len(recall) > 0
    with style.context():
        figure, grid = style.panels(
            len(families), 1 + beside, width=style.DOUBLE if beside else style.SINGLE,
            height=0.5 + 2.6 * len(families),
        )  # fmt: skip
        for line, family in zip(grid, families, strict=True):
            own = (where(frame, family=family) for frame in (lowest, bands, best))
            _losses(line[0], *own)
            line[0].set_title(f"{look(family).label}: loss at equal compute")
            if recall is not None and beside:
                _recall(line[1], where(recall, family=family))
                line[1].set_title(f"{look(family).label}: recall")
        return style.finish(figure)


def _losses(axes: Axes, lowest: pd.DataFrame, bands: pd.DataFrame, best: pd.DataFrame) -> None:
    budgets = np.unique(numbers(lowest, "budget"))
    for tone, budget in zip(shades("#4D4D4D", len(budgets)), budgets, strict=True):
        measured = by(where(lowest, budget=budget), "ratio")
        band = by(where(bands, budget=budget), "ratio")
        label = f"{float(budget):.2g} FLOPs"
        x = np.sqrt(numbers(measured, "ratio"))
        axes.plot(x, numbers(measured, "loss"), "o", color=tone, label=label)
        if len(band):
            at = np.sqrt(numbers(band, "ratio"))
            axes.plot(at, numbers(band, "loss"), color=tone)
            axes.fill_between(
                at, numbers(band, "lo"), numbers(band, "hi"), color=tone, alpha=0.16, linewidth=0
            )
        for _, row in where(best, budget=budget).iterrows():
            height = float(np.interp(row["ratio"], numbers(band, "ratio"), numbers(band, "loss")))
            axes.plot(np.sqrt([row["lo"], row["hi"]]), [height] * 2, color="#D55E00", linewidth=3,
                      solid_capstyle="butt", zorder=3)  # fmt: skip
            axes.plot([np.sqrt(row["ratio"])], [height], "D", color="#D55E00", zorder=4)
    axes.set_ylabel("loss (nats/token)")
    _share_axis(axes, numbers(lowest, "ratio"))
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.13 * (high - low) * -(-len(budgets) // 2))  # room for the legend
    axes.legend(loc="upper center", ncols=2)


def _recall(axes: Axes, recall: pd.DataFrame) -> None:
    tasks = list(dict.fromkeys(words(recall, "task")))
    for (color, marker), task in zip(_TASKS, tasks, strict=False):
        own = by(where(recall, task=task), "ratio")
        axes.errorbar(
            np.sqrt(numbers(own, "ratio")), numbers(own, "accuracy"), 2 * numbers(own, "stderr"),
            color=color, marker=marker, label=task,
        )  # fmt: skip
    axes.set(ylim=(0, 1.03), ylabel="accuracy")
    _share_axis(axes, numbers(recall, "ratio"))
    axes.legend(loc="best")


def _share_axis(axes: Axes, ratios: np.ndarray) -> None:
    """Shares at the places of their square roots, which spreads the small ones."""
    ticks = np.unique(ratios)
    axes.set_xlim(-0.05, 1.05)
    axes.xaxis.set_major_locator(FixedLocator(list(np.sqrt(ticks))))
    axes.set_xticklabels([_NAMES.get(float(r), f"{r:.3g}") for r in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(SHARE)

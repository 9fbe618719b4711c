"""How many times less each architecture needs than the baseline, clock by clock."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.figures import style
from analysis.io.frames import groups, where
from analysis.io.looks import look
from analysis.judge.clocks import CLOCKS

_ABOVE = 4
"""Names that stand above the panel; more of them stand beside it."""


def clocks(frame: pd.DataFrame, *, baseline: str) -> Figure:
    """A row a clock, a mark an architecture; hollow where a model lies beyond those trained.

    Args:
        frame: as of `analysis.judge.clocks.clocks`, or of the file that it was written to, where
            "" is an empty cell; rows without a ratio are left out.
        baseline: architecture of ratio 1.
    """
    frame = frame.dropna(subset=["ratio"]).fillna({"outside": ""})
    names = [name for name in groups(frame, "arch") if name != baseline]
    shown = [clock for clock in CLOCKS if len(where(frame, clock=clock))]
    with style.context():
        apart = min(0.22, 0.8 / max(1, len(names)))  # of a row's marks, in rows
        high = max(0.55, 0.13 * len(names))  # of a row, in inches
        width = style.SINGLE if len(names) <= _ABOVE else style.DOUBLE
        figure, grid = style.panels(1, 1, width=width, height=0.7 + high * len(shown))
        axes = grid[0, 0]
        for j, name in enumerate(names):
            kind = look(name, names)
            own = where(frame, arch=name)
            for i, clock in enumerate(shown):
                part = where(own, clock=clock)
                if not len(part):
                    continue
                row = part.iloc[0]
                y = i + apart * (j - (len(names) - 1) / 2)
                ends = [row.get(key, np.nan) for key in ("ratio_lo", "ratio_hi")]
                if np.isfinite(ends).all():
                    axes.plot(ends, [y, y], color=kind.color, linewidth=1.1)
                axes.plot(
                    [row["ratio"]], [y], linestyle="none", marker=kind.marker, markersize=5,
                    color=kind.color, markerfacecolor="white" if row["outside"] else kind.color,
                    label=kind.label if i == 0 else None,
                )  # fmt: skip
        axes.axvline(1.0, color="black", linewidth=0.9)
        axes.set_xscale("log")
        axes.set_yticks(range(len(shown)), shown)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(f"{look(baseline).label} needs this many times as much")
        handles, labels = axes.get_legend_handles_labels()
        where_to = "outside upper center" if len(names) <= _ABOVE else "outside right upper"
        columns = len(names) if len(names) <= _ABOVE else 1
        figure.legend(handles, labels, loc=where_to, ncols=columns, handletextpad=0.2)
        style.lay_out(figure)
        return style.finish(figure)

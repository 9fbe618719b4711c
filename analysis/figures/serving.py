"""What a loss and a demand cost at each context: FLOPs over the baseline's, and bytes kept."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from analysis.figures import style
from analysis.figures.common import band, groups_of
from analysis.io.frames import take, where
from analysis.io.looks import look

_UNITS = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"))


def serving(frame: pd.DataFrame, *, baseline: str) -> Figure:
    """Two panels over the context.

    Args:
        frame: arch, context, ratio, ratio_lo, ratio_hi, kept; rows without a ratio are left out.
        baseline: architecture of ratio 1.
    """
    frame = frame.dropna(subset=["ratio"])
    groups = groups_of(frame)
    with style.context():
        figure, grid = style.panels(1, 2, width=style.DOUBLE, height=3.1)
        left, right = grid[0]
        ends: list[style.End] = []
        for group in groups:
            own = where(frame, arch=group)
            names = {"context": "x", "ratio": "y", "ratio_lo": "lo", "ratio_hi": "hi"}
            ratios = take(own, {name: new for name, new in names.items() if name in own})
            band(left, ratios, group, among=groups)
            kept = take(own, {"context": "x", "kept": "y"})
            ends.append(band(right, kept, group, among=groups))
        left.axhline(1.0, color="black", linewidth=0.9)
        for axes in (left, right):
            axes.set_xscale("log", base=2)
            axes.set_xlabel("context (tokens)")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: _context(v)))
        left.set_yscale("log")
        right.set_yscale("log", base=32)  # ticks at 1 KiB, 32 KiB, 1 MiB
        left.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        for axis in (left.yaxis, right.yaxis):
            axis.set_minor_formatter(NullFormatter())
        right.yaxis.set_minor_locator(NullLocator())
        right.yaxis.set_major_formatter(FuncFormatter(lambda v, _: _bytes(v)))
        left.set_ylabel(f"training and inference FLOPs\nover those of {look(baseline).label}")
        right.set_ylabel("state and cache of a sequence")
        style.lay_out(figure)
        style.label_ends(right, ends)
        return style.finish(figure)


def _context(value: float) -> str:
    for size, unit in ((2**20, "M"), (2**10, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _bytes(value: float) -> str:
    for size, name in _UNITS:
        if value >= 0.999 * size:
            return f"{value / size:.3g} {name}"
    return f"{value:.3g} B"

"""Architectures against one another: compute multipliers, speed."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from analysis.figures import style
from analysis.figures.common import PARAMS, band, extent, groups_of
from analysis.figures.hover import points, tag
from analysis.figures.style import End
from analysis.io.frames import by, numbers, rows, where
from analysis.io.looks import look


def multipliers(bands: pd.DataFrame, *, baseline: str) -> Figure:
    """Equal-loss compute multiplier of each architecture over the baseline.

    `bands` by `group`: x is the baseline's compute (FLOPs), y, lo, hi how many times the group's
    compute the baseline needs for the same loss. Above 1 the architecture is the more efficient; a
    band that holds 1 shows no difference.
    """
    groups = [g for g in groups_of(bands, "group") if g != baseline]
    name = look(baseline, groups).label
    with style.context():
        figure, grid = style.panels(1, 1, width=style.SINGLE + 0.6, height=3.2)
        axes = grid[0, 0]
        ends = [band(axes, where(bands, group=g), g, among=groups) for g in groups]
        axes.axhline(1.0, color="black", linewidth=0.9)
        axes.set_xscale("log")
        axes.set_yscale("log")
        low, high = extent(bands["y"])
        low = min(low, _most(numbers(bands, "lo"), 0.2), 0.95)
        high = max(high, _most(numbers(bands, "hi"), 0.8), 1.05)
        axes.set_ylim(low / 1.1, high * 1.1)
        axes.set_xlim(*extent(bands["x"]))
        axes.set_xlabel(f"compute of {name} at equal loss (FLOPs)")
        axes.set_ylabel(f"compute multiplier over {name}")
        style.log_axis(axes, "x")
        _ratio_axis(axes)
        axes.set_title(
            f"above 1: needs less compute than {name} for the same loss; below 1: more",
            fontsize=style.pt(7.5), fontweight="normal", color="#555555",
        )  # fmt: skip
        style.lay_out(figure)
        style.label_ends(axes, [*ends, End(extent(bands["x"])[1], 1.0, name, "black")], at=1.02)
        return style.finish(figure)


def _most(ends: np.ndarray, share: float) -> float:
    """Quantile of a band's ends; an open end (0, infinite) does not stretch the axis."""
    ends = ends[np.isfinite(ends) & (ends > 0)]
    return float(np.quantile(ends, share)) if len(ends) else 1.0


def throughput(runs: pd.DataFrame) -> Figure:
    """Training speed against size, with the range over runs of one size.

    `runs` has arch, size, n_params, tokens_per_second and device.
    """
    runs = rows(runs, np.isfinite(numbers(runs, "tokens_per_second")))
    groups = groups_of(runs)
    with style.context():
        figure, grid = style.panels(1, 1, width=style.SINGLE + 0.5, height=3.2)
        axes = grid[0, 0]
        axes.set_xscale("log")
        axes.set_yscale("log")
        ends: list[End] = []
        for group in groups:
            kind = look(group, groups)
            own = by(where(runs, arch=group), "n_params")
            speeds = own.groupby("n_params")["tokens_per_second"].median().to_dict()
            x, y = list(speeds), list(speeds.values())
            axes.plot(x, y, color=kind.color, linewidth=1.2, gid=tag(group))
            texts = [
                f"{kind.label} {size}: {speed:,.0f} tokens/s on {device}"
                for size, speed, device in zip(
                    own["size"], own["tokens_per_second"], own["device"], strict=True
                )
            ]
            points(
                axes, own["n_params"], own["tokens_per_second"], group=group, among=groups,
                texts=texts, edgecolors="white", s=24,
            )  # fmt: skip
            ends.append(End(x[-1], y[-1], kind.label, kind.color, tag(group)))
        axes.set_xlabel(PARAMS)
        axes.set_ylabel("training speed (tokens/s)")
        style.log_axis(axes, "x", si=True)
        style.log_axis(axes, "y", si=True)
        style.lay_out(figure)
        style.label_ends(axes, ends, at=1.02)
        return style.finish(figure)


def _ratio_axis(axes: Axes) -> None:
    """Plain ratios on a log axis: few of them, at round places."""
    low, high = axes.get_ylim()
    ladder = (
        [0.1, 0.2, 0.5, 1, 2, 5, 10]
        if high / low > 6
        else [0.25, 0.33, 0.5, 0.67, 0.8, 1, 1.25, 1.5, 2, 3, 4]
        if high / low > 1.8
        else [0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.4, 1.5]
    )
    axis = axes.yaxis
    axis.set_major_locator(FixedLocator(ladder))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}×"))
    axis.set_minor_locator(FixedLocator([]))

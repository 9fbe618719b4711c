"""Parts that several figures share: bands, group lines, captions in a panel."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.errors import AnalysisError
from analysis.figures import style
from analysis.figures.hover import tag
from analysis.figures.style import End
from analysis.io.frames import by, words
from analysis.io.looks import look, ordered

FLOPS = "training compute C (FLOPs)"
PARAMS = "parameters N"
TOKENS = "training tokens D"
LOSS = "loss (nats/token)"


def groups_of(frame: pd.DataFrame, column: str = "arch") -> list[str]:
    """Distinct groups of a frame, in drawing order.

    Raises:
        AnalysisError: the frame has no row.
    """
    if not len(frame):
        raise AnalysisError("there is nothing to draw: the table is empty")
    return ordered(words(frame, column))


def band(
    axes: Axes,
    frame: pd.DataFrame,
    group: str,
    *,
    among: Iterable[str] = (),
    color: str = "",
    linewidth: float = 1.5,
) -> End:
    """One law with its interval: solid where data support it, dashed where extrapolated.

    `frame` has x, y and optionally lo, hi, inside. `color` is the line's (default: the group's).
    Returns the right-hand end, for a label.
    """
    among = list(among)
    kind = look(group, among)
    color = color or kind.color
    faint = 0.16 * min(1.0, 5 / max(1, len(among)))  # of many, all together must not hide the lines
    frame = by(frame, "x")
    x, y = frame["x"].to_numpy(float), frame["y"].to_numpy(float)
    if "lo" in frame:
        low, high = frame["lo"].to_numpy(float), frame["hi"].to_numpy(float)
        area = axes.fill_between(x, low, high, color=kind.color, alpha=faint, linewidth=0)
        area.set_gid(tag(group))
    inside = frame["inside"].to_numpy(bool) if "inside" in frame else np.ones(len(x), dtype=bool)
    axes.plot(x, np.where(inside, y, np.nan), color=color, linewidth=linewidth, gid=tag(group))
    if not inside.all():
        # One more point on each side joins the dashed part to the solid one.
        outside = ~inside | ~np.roll(inside, 1) | ~np.roll(inside, -1)
        axes.plot(
            x, np.where(outside, y, np.nan), color=color, linestyle=(0, (4, 2)),
            linewidth=0.75 * linewidth, gid=tag(group),
        )  # fmt: skip
    return End(x[-1], y[-1], kind.label, kind.color, tag(group))


def note(axes: Axes, text: str, *, x: float = 0.03, y: float = 0.04, **options: object) -> None:
    """Small grey text inside a panel."""
    defaults = {"fontsize": style.pt(7.5), "color": "#555555", "transform": axes.transAxes}
    axes.text(x, y, text, **(defaults | options))  # pyright: ignore[reportArgumentType]


def mark_beyond(axes: Axes) -> None:
    """Points of lines that lie below or above the panel, as triangles on its edge."""
    low, high = axes.get_ylim()
    across = axes.get_xaxis_transform()
    for line in list(axes.get_lines()):
        if line.get_marker() in (None, "None", ""):
            continue
        x, y = (np.asarray(v, dtype=float) for v in line.get_data())
        for beyond, edge, marker in ((y < low, 0.0, "v"), (y > high, 1.0, "^")):
            if beyond.any():
                axes.plot(x[beyond], np.full(beyond.sum(), edge), marker, transform=across,
                          color=line.get_color(), markersize=5, clip_on=False,
                          zorder=6)  # fmt: skip


def shades(color: str, count: int) -> list[tuple[float, float, float]]:
    """`count` tones of one colour, light to full: an ordered quantity within an architecture."""
    from matplotlib.colors import to_rgb

    base = np.array(to_rgb(color))
    weights = np.linspace(0.42, 1.0, count) if count > 1 else np.ones(1)
    return [tuple(1 - w * (1 - base)) for w in weights]  # pyright: ignore[reportReturnType]


def small_multiples(groups: Sequence[str], *, height: float) -> tuple[Figure, list[Axes]]:
    """A panel a group, two a row, with shared axes and the group's name as title."""
    columns = min(2, len(groups))
    rows = math.ceil(len(groups) / columns)
    figure, grid = style.panels(
        rows, columns, width=style.DOUBLE if columns > 1 else style.SINGLE + 0.4,
        height=0.4 + height * rows, sharex=True, sharey=True,
    )  # fmt: skip
    panels = list(grid.flat)
    for spare in panels[len(groups) :]:
        spare.remove()
    for axes, group in zip(panels, groups, strict=False):
        kind = look(group, groups)
        axes.set_title(kind.label, color=kind.color)
    return figure, panels[: len(groups)]


def label_axes(figure: Figure, x: str, y: str) -> None:
    """Axis labels shared by all panels."""
    figure.supxlabel(x, fontsize=style.pt(8.5))
    figure.supylabel(y, fontsize=style.pt(8.5))


def extent(*values: Iterable[float]) -> tuple[float, float]:
    """Smallest and largest of several columns together."""
    joined = np.concatenate([np.asarray(v, dtype=np.float64) for v in values])
    return float(joined.min()), float(joined.max())

"""One look for every figure: sizes in print inches, colours safe for colour-blind readers.

Colour and marker belong to an architecture, never to its order in a table, so that a figure of two
reads like a figure of four. The palette is Okabe and Ito's (2008). Settings live in a context, not
in global state:

    with style.context():
        figure, axes = style.panels(1, 2)
    style.save(figure, "out/frontier", caption="...", runs=[...])      -> .png and .pdf
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from analysis.errors import AnalysisError
from analysis.figures import presets
from analysis.figures.presets import pt
from analysis.units import si_text

SINGLE, DOUBLE = 4.6, 7.2
"""Figure widths in inches: one panel, and the text width of a page."""


GREY = "#8a8a8a"
FORMATS = ("png", "pdf", "svg")
"""What figures can be saved as."""
MATHS = r"\mathdefault{"
"""What ticks of powers of ten are written with."""
SEQUENTIAL = "viridis"
"""Colour map for an ordered quantity (size, budget)."""


def context() -> AbstractContextManager[None]:
    """Matplotlib settings of the house, for a `with` block."""
    settings: dict[Any, Any] = {
        **presets.current().fonts(),
        "font.size": pt(8.5),
        "axes.titlesize": pt(9),
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": pt(8.5),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.7,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#e3e3e3",
        "grid.linewidth": 0.6,
        "xtick.labelsize": pt(8),
        "ytick.labelsize": pt(8),
        "lines.linewidth": 1.5,
        "lines.markersize": 4.5,
        "legend.frameon": False,
        "legend.fontsize": pt(8),
        "figure.dpi": 110,
        "savefig.dpi": 220,
        "pdf.fonttype": 42,
        "svg.fonttype": "path",
        "svg.hashsalt": "linscale",
    }
    return mpl.rc_context(settings)


def panels(rows: int, columns: int, *, width: float, height: float, **options: Any) -> Any:
    """A figure with its own canvas (no pyplot state) and a rows x columns array of axes."""
    size = presets.current().fit(width, height, columns)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes


def log_axis(axes: Axes, which: str, *, si: bool = False) -> None:
    """A logarithmic axis with few, readable ticks: counts (`si`) with suffixes, all else plain or
    in powers of ten."""
    axis = getattr(axes, f"{which}axis")
    getattr(axes, f"set_{which}scale")("log")
    low, high = getattr(axes, f"get_{which}lim")()
    decades = np.log10(high / low)
    if decades < 1.5:
        steps = (
            LogLocator(subs=(1, 2, 5))
            if decades > 0.8
            else _NiceLogLocator(5 if not si and high >= 1e4 else 9)
        )
        axis.set_major_locator(steps)
        axis.set_major_formatter(FuncFormatter(_counts if si else power_text))
        axis.set_minor_formatter(NullFormatter())
        axis.set_minor_locator(LogLocator(subs=()))
        return
    if si:
        axis.set_major_formatter(FuncFormatter(lambda v, _: si_text(v)))
    axis.set_major_locator(LogLocator(numticks=8))
    axis.set_minor_formatter(NullFormatter())


def _counts(value: float, place: int | None = None) -> str:
    """Plain below a thousand, then suffixes: 500, 2k, 100B."""
    return f"{value:.3g}" if value < 1e3 else si_text(value)


def power_text(value: float, place: int | None = None) -> str:
    """Plain below ten thousand, then powers of ten: 1.5, 2 x 10^11. FLOPs are written in one way
    whatever the range of the axis."""
    if value < 1e4:
        return f"{value:.3g}"
    digits, _, exponent = f"{value:.2e}".partition("e")
    mantissa = digits.rstrip("0").removesuffix(".")
    factor = "" if mantissa == "1" else rf"{mantissa} \times "
    return rf"${MATHS}{factor}10^{{{int(exponent)}}}}}$"


class _NiceLogLocator(MaxNLocator):
    """Round values (1, 2, 2.5, 5 x 10^k apart) on a logarithmic axis of less than 1.5 decades, at
    least a share 1 / `most` of it apart."""

    def __init__(self, most: int) -> None:
        super().__init__(nbins=6, steps=[1, 2, 2.5, 5, 10])
        self._most = most

    def tick_values(self, vmin: float, vmax: float) -> Any:
        ticks = np.asarray(super().tick_values(vmin, vmax))
        ticks = ticks[ticks > 0]
        if len(ticks) < 3:
            return ticks
        # Linear steps crowd at the upper end: leave out those too close to the next one.
        gap = np.log(max(vmax / vmin, 1.001)) / self._most
        kept = [ticks[-1]]
        for tick in ticks[-2::-1]:
            if np.log(kept[-1] / tick) >= gap:
                kept.append(tick)
        return np.array(kept[::-1])


@dataclass(frozen=True)
class End:
    """A line's end that wants a label."""

    x: float
    y: float
    text: str
    color: str
    tag: str = ""


def label_ends(axes: Axes, ends: Sequence[End], *, size: float = 8.0, at: float = 1.0) -> None:
    """Writes labels to the right of the axes at the height of their lines, spread so that none
    overlaps, with a thin leader from the line's end. `at` is the x of the labels (axes fraction).
    """
    if not ends:
        return
    size = pt(size)
    figure = axes.figure
    height = axes.get_window_extent().height
    gap = size * 1.25 * figure.dpi / 72 / height
    heights = axes.transAxes.inverted().transform(
        [axes.transData.transform((e.x, e.y)) for e in ends]
    )[:, 1]
    order = np.argsort(heights)
    placed = _spread(heights[order], gap)
    for position, index in zip(placed, order, strict=True):
        end = ends[index]
        note = axes.annotate(
            end.text, xy=(end.x, end.y), xycoords="data",
            xytext=(at, position), textcoords="axes fraction", va="center", ha="left",
            color=end.color, fontsize=size, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": end.color, "linewidth": 0.5, "alpha": 0.6,
                        "shrinkA": 1, "shrinkB": 1, "relpos": (0, 0.5)},
        )  # fmt: skip
        note.set_gid(end.tag or None)


def _spread(wanted: np.ndarray, gap: float) -> np.ndarray:
    """Sorted positions moved as little as possible so that neighbours are `gap` apart (pool
    adjacent violators on position minus rank times gap), kept inside [0, 1] where they fit."""
    offsets = np.arange(len(wanted)) * gap
    blocks: list[list[float]] = []  # [mean, count]
    for value in wanted - offsets:
        blocks.append([float(value), 1.0])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, count = blocks.pop()
            last = blocks[-1]
            last[0] = (last[0] * last[1] + mean * count) / (last[1] + count)
            last[1] += count
    levels = np.concatenate([[mean] * int(count) for mean, count in blocks])
    return np.clip(levels, 0.0, max(0.0, 1.0 - float(offsets[-1]))) + offsets


def lay_out(figure: Figure) -> None:
    """Places the axes as they will be drawn: for artists that depend on their size."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)


def finish(figure: Figure) -> Figure:
    """Lays the figure out for good, so that every format and every drawing is the same.

    No engine is left, not even the "none" placeholder, for which matplotlib draws twice. Dollars in
    names stay dollars: only the ticks that matplotlib writes are mathematics.
    """
    for text in figure.findobj(Text):
        if isinstance(text, Text) and "$" in text.get_text() and MATHS not in text.get_text():
            text.set_parse_math(False)
    lay_out(figure)
    if _fold_long(figure):
        lay_out(figure)
    figure.set_layout_engine(None)
    return figure


def _fold_long(figure: Figure) -> bool:
    """Breaks titles and labels of axes in two where they run off the figure; whether any did."""
    folded = False
    labels = [figure._suptitle, figure._supxlabel, figure._supylabel]  # pyright: ignore
    for axes in figure.axes:
        labels += [axes.xaxis.label, axes.yaxis.label, axes.title, axes._left_title]  # pyright: ignore
    for text in labels:
        if text is None or " " not in text.get_text():
            continue
        box = text.get_window_extent()
        if box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1:
            continue
        whole = text.get_text().replace("\n", " ")
        spaces = [i for i, letter in enumerate(whole) if letter == " "]
        middle = min(spaces, key=lambda i: abs(i - len(whole) / 2))
        text.set_text(f"{whole[:middle]}\n{whole[middle + 1 :]}")
        folded = True
    return folded


def save(
    figure: Figure,
    stem: str | Path,
    *,
    title: str = "",
    caption: str = "",
    runs: Sequence[str] = (),
    formats: Sequence[str] = FORMATS[:2],
    dpi: int | None = None,
) -> list[Path]:
    """Writes `<stem>.png` and `<stem>.pdf` (or other `FORMATS`), byte-identical for identical
    figures, with the caption and the run ids in their metadata; `dpi`: other than the house's."""
    check_formats(formats)
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    about: dict[str, dict[str, str | None]] = {
        "png": {"Title": title, "Description": caption, "Source": " ".join(runs), "Software": None},
        "pdf": {"Title": title, "Subject": caption, "Keywords": " ".join(runs),
                "CreationDate": None},
        "svg": {"Title": title, "Description": caption, "Source": " ".join(runs), "Date": None,
                "Creator": None},
    }  # fmt: skip
    paths = [stem.parent / f"{stem.name}.{kind}" for kind in formats]
    with context():
        for path, kind in zip(paths, formats, strict=True):
            figure.savefig(path, metadata=about[kind], dpi=dpi or mpl.rcParams["savefig.dpi"])
    return paths


def check_formats(formats: Sequence[str]) -> None:
    """Refuses formats that `save` does not write.

    Raises:
        AnalysisError: an unknown format, or none.
    """
    unknown = [kind for kind in formats if kind not in FORMATS]
    if unknown or not formats:
        raise AnalysisError(f"format {', '.join(unknown) or 'none'}: give some of "
                            f"{', '.join(FORMATS)}, joined by commas")  # fmt: skip

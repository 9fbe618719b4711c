"""What lies on what in a figure: words on words, leaders through words, words on marks.

    overlaps(figure) -> ["'LLaMA' on '10^12'", ...]      empty where a reader sees every word

Boxes are those of the drawing at its own size. Labels of contours are meant to lie on their lines,
and are looked at against other words alone.
"""

from __future__ import annotations

import itertools

import numpy as np
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

_TOUCH = 1.5
"""Points by which boxes may reach into each other: they have air around their letters."""
_COVERED = 0.15
"""Share of the marks of one scatter that may lie under one word."""


def overlaps(figure: Figure) -> list[str]:
    """Every pair that collides, in words."""
    figure.draw_without_rendering()
    shrink = _TOUCH * figure.dpi / 72
    words = [(text, _inner(_letters(text), shrink)) for text in _words(figure)]
    found: list[str] = []
    for i, (one, box) in enumerate(words):
        for other, place in words[i + 1 :]:
            if box.overlaps(place):
                found.append(f"{one.get_text()!r} on {other.get_text()!r}")
        for owner, path in _leaders(figure):
            if owner is not one and _crosses(path, box):
                found.append(f"leader of {owner.get_text()!r} through {one.get_text()!r}")
        for scatter, at in _marks(figure):
            inside = (at > box.min) & (at < box.max)
            share = inside.all(axis=1).mean() if len(at) else 0.0
            if share > _COVERED:
                found.append(f"{one.get_text()!r} on {share:.0%} of {scatter}")
        if not _within(box, figure):
            found.append(f"{one.get_text()!r} off the figure")
    return found


def _words(figure: Figure) -> list[Text]:
    """Texts that are drawn; a tick outside its axis is none."""
    ticks = {
        id(label)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        for label in (tick.label1, tick.label2)
    }
    seen: list[Text] = []
    for axes in figure.axes:
        for axis, side in ((axes.xaxis, 0), (axes.yaxis, 1)):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                near = low * (1 - 1e-9) <= tick.get_loc() <= high * (1 + 1e-9) or low < 0
                for label in (tick.label1, tick.label2):
                    if near and label.get_visible() and label.get_text() and axis.get_visible():
                        box = axes.get_window_extent()
                        at = _letters(label)
                        middle = (at.x0 + at.x1, at.y0 + at.y1)[side] / 2
                        if (box.x0, box.y0)[side] - 1 <= middle <= (box.x1, box.y1)[side] + 1:
                            seen.append(label)
    for text in figure.findobj(Text):
        if (
            isinstance(text, Text)
            and id(text) not in ticks
            and text.get_visible()
            and text.get_text().strip()
        ):
            seen.append(text)
    return seen


def _letters(text: Text) -> Bbox:
    """The box of the letters, without an annotation's leader."""
    return Text.get_window_extent(text)


def _inner(box: Bbox, by: float) -> Bbox:
    width, height = max(box.width - 2 * by, 0.1), max(box.height - 2 * by, 0.1)
    x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
    return Bbox.from_bounds(x - width / 2, y - height / 2, width, height)


def _leaders(figure: Figure) -> list[tuple[Annotation, np.ndarray]]:
    """Annotations with a line to their point, and the line's corners in pixels."""
    found: list[tuple[Annotation, np.ndarray]] = []
    for text in figure.findobj(Annotation):
        arrow = getattr(text, "arrow_patch", None)
        if isinstance(text, Annotation) and isinstance(arrow, FancyArrowPatch):
            path = arrow.get_path().transformed(arrow.get_transform())
            found.append((text, np.asarray(path.vertices, dtype=float)))
    return found


def _crosses(path: np.ndarray, box: Bbox) -> bool:
    along = np.concatenate([
        np.linspace(a, b, 200) for a, b in itertools.pairwise(path)
    ])  # fmt: skip
    return bool(((along > box.min) & (along < box.max)).all(axis=1).any())


def _marks(figure: Figure) -> list[tuple[str, np.ndarray]]:
    """Scatters, and where their marks are in pixels."""
    found: list[tuple[str, np.ndarray]] = []
    for scatter in figure.findobj(PathCollection):
        offsets = np.asarray(getattr(scatter, "get_offsets")(), dtype=float)  # noqa: B009
        if len(offsets) >= 3 and getattr(scatter, "hover_texts", None) is not None:
            at = scatter.get_offset_transform().transform(offsets)  # type: ignore[attr-defined]
            found.append((str(scatter.get_gid()), at[np.isfinite(at).all(axis=1)]))
    return found


def _within(box: Bbox, figure: Figure) -> bool:
    page = figure.bbox
    return box.x0 >= -1 and box.y0 >= -1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1

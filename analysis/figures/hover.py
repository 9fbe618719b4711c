"""Hover texts and group names on artists, and the SVG that keeps them.

    points(axes, x, y, group=..., texts=[...])      a scatter whose points know what they are
    svg(figure, prefix)                             SVG text in which each such point has a <title>
                                                    (browsers show it on hover) and each artist of a
                                                    group has class "g-<group>"

No script is needed to read a point, and one line of it can switch a group on and off.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from analysis.figures import style
from analysis.io.looks import look

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


def tag(group: str) -> str:
    """The gid of artists that belong to a group."""
    return f"g:{group}"


def points(
    axes: Axes,
    x: Any,
    y: Any,
    *,
    group: str,
    texts: Sequence[str],
    among: Sequence[str],
    **options: Any,
) -> PathCollection:
    """A scatter in the look of the group (`among` all that are drawn); `texts` has one line per
    point."""
    kind = look(group, among)
    defaults = {"s": 20, "color": kind.color, "marker": kind.marker, "linewidths": 0.6, "zorder": 3}
    drawn = axes.scatter(x, y, **(defaults | options))
    drawn.set_gid(tag(group))
    setattr(drawn, "hover_texts", list(texts))  # noqa: B010 - an attribute of our own
    return drawn


def svg(figure: Figure, prefix: str) -> str:
    """The figure as an <svg> element whose ids begin with `prefix` (several share one page)."""
    texts: dict[str, list[str]] = {}
    groups: dict[str, str] = {}
    renamed: list[tuple[Artist, str]] = []
    for i, artist in enumerate(_find_tagged(figure)):
        gid = f"artist{i}"
        original = str(artist.get_gid())
        renamed.append((artist, original))
        groups[gid] = original[2:]
        texts[gid] = getattr(artist, "hover_texts", [])
        artist.set_gid(gid)
    buffer = io.StringIO()
    with style.context():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    for artist, original in renamed:
        artist.set_gid(original)

    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    root = ET.fromstring(buffer.getvalue())
    for element in root.iter():
        gid = element.get("id", "")
        if gid in groups:
            element.set("class", group_class(groups[gid]))
            marks = _marks(element)
            if len(marks) == len(texts[gid]):  # a point outside the canvas is not drawn at all
                for mark, text in zip(marks, texts[gid], strict=True):
                    ET.SubElement(mark, f"{{{_SVG}}}title").text = text
    for element in list(root):
        if element.tag == f"{{{_SVG}}}metadata":
            root.remove(element)
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", prefix.replace("_", " "))
    body = ET.tostring(root, encoding="unicode")
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", body)


def group_class(group: str) -> str:
    """The CSS class of a group's artists."""
    return "g-" + re.sub(r"[^A-Za-z0-9]+", "-", group)


def _find_tagged(figure: Figure) -> list[Artist]:
    """Artists of a group, in drawing order; the leader line of a label is one of its own."""
    found: list[Artist] = []
    for artist in _artists(figure):
        if not str(artist.get_gid() or "").startswith("g:"):
            continue
        found.append(artist)
        if isinstance(artist, Annotation) and artist.arrow_patch is not None:
            artist.arrow_patch.set_gid(artist.get_gid())
            found.append(artist.arrow_patch)
    return found


def _artists(artist: Artist) -> Iterator[Artist]:
    """An artist and all below it but axes' ticks: looking at those makes them, which takes as long
    as drawing."""
    for child in artist.get_children():
        if not isinstance(child, Axis):
            yield from _artists(child)
    yield artist


def _marks(element: ET.Element) -> list[ET.Element]:
    """The drawn points of a scatter: <use> of a marker, or a <path> of its own, but no <defs>."""
    if element.tag == f"{{{_SVG}}}defs":
        return []
    if element.tag in (f"{{{_SVG}}}use", f"{{{_SVG}}}path"):
        return [element]
    return [mark for child in element for mark in _marks(child)]

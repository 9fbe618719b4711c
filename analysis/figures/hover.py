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
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from analysis import style

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


def tag(group: str) -> str:
    """The gid of artists that belong to a group."""
    return f"g:{group}"


def points(
    axes: Axes, x: Any, y: Any, *, group: str, texts: Sequence[str], **options: Any
) -> PathCollection:
    """A scatter in the look of the group; `texts` has one line per point."""
    kind = style.look(group)
    defaults = {"s": 20, "color": kind.color, "marker": kind.marker, "linewidths": 0.6, "zorder": 3}
    drawn = axes.scatter(x, y, **(defaults | options))
    drawn.set_gid(tag(group))
    drawn.hover_texts = list(texts)  # pyright: ignore[reportAttributeAccessIssue]
    return drawn


def svg(figure: Figure, prefix: str) -> str:
    """The figure as an <svg> element whose ids begin with `prefix` (several share one page)."""
    texts: dict[str, list[str]] = {}
    groups: dict[str, str] = {}
    renamed: list[tuple[Any, str]] = []
    for i, artist in enumerate(a for a in figure.findobj() if str(a.get_gid() or "")[:2] == "g:"):
        gid = f"artist{i}"
        renamed.append((artist, str(artist.get_gid())))
        groups[gid] = str(artist.get_gid())[2:]
        texts[gid] = getattr(artist, "hover_texts", [])
        artist.set_gid(gid)
    buffer = io.StringIO()
    with style.context():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    for artist, gid in renamed:
        artist.set_gid(gid)

    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    root = ET.fromstring(buffer.getvalue())
    for element in root.iter():
        gid = element.get("id", "")
        if gid in groups:
            element.set("class", "g-" + re.sub(r"[^A-Za-z0-9]+", "-", groups[gid]))
            uses = [e for e in element.iter() if e.tag == f"{{{_SVG}}}use"]
            for use, text in zip(uses, texts[gid], strict=False):
                ET.SubElement(use, f"{{{_SVG}}}title").text = text
    for element in list(root):
        if element.tag == f"{{{_SVG}}}metadata":
            root.remove(element)
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    body = ET.tostring(root, encoding="unicode")
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", body)

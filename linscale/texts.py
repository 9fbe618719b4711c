"""Texts from files are data: nothing in them steers a terminal, a page or a figure.

Markup is escaped where it is drawn (`analysis.report.page`, `analysis.figures.style`). Removed here
are characters that no name or message needs: control characters, direction marks, halves of
surrogate pairs, private use.
"""

from __future__ import annotations

MOST = 300
"""Characters of a text that are kept: a reason is a sentence or two."""


def clean(text: str, most: int = MOST) -> str:
    """The text as one printable line: other spaces become a space, what cannot be seen `\ufffd`."""
    if not text.isprintable():
        seen = (c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)
        text = "".join(seen)
    text = text.strip()
    return text if len(text) <= most else f"{text[: most - 1]}…"


def quote(value: object) -> str:
    """A value from a file in an error message, short and printable."""
    return clean(repr(value), 60)

"""Pieces of a self-contained HTML page: text, tables, figures. No request leaves the page.

The page works without a script, which adds two things: switches for architectures, and what a
point is, shown at once for the nearest point under a pointer or a finger (without it, the browser's
own titles on hover). Readable at phone width: rows of tables become cards, wide figures scroll
inside their own box, never the page; what lies beyond the edge is faded, and wide figures say so.
It links to itself alone, so that it can be mailed. Looks and script: page_style.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape

import pandas as pd

from analysis.figures.hover import group_class
from analysis.io.looks import look
from analysis.report.page_style import CSS, JS


@dataclass
class Page:
    """An HTML page that grows section by section."""

    title: str
    parts: list[str] = field(default_factory=list[str])
    sections: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    scripts: list[str] = field(default_factory=list[str])
    """Of sections, run after the page's own."""
    figures: int = 0

    def section(self, title: str) -> None:
        """A heading that the navigation lists."""
        anchor = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        self.sections.append((anchor, title))
        self.parts.append(f'<h2 id="{anchor}">{escape(title)}</h2>')

    def heading(self, title: str) -> None:
        """A minor heading."""
        self.parts.append(f"<h3>{escape(title)}</h3>")

    def text(self, text: str, *, soft: bool = False) -> None:
        """A paragraph; `bold` and `code` mark up parts of it."""
        self.parts.append(f'<p class="soft">{prose(text)}</p>' if soft else f"<p>{prose(text)}</p>")

    def lead(self, items: Iterable[str]) -> None:
        """What the page found, before everything else."""
        rows = "".join(f"<li>{prose(i)}</li>" for i in items)
        self.parts.append(f'<ul class="lead">{rows}</ul>')

    def bullets(self, items: Iterable[str]) -> None:
        """A list of paragraphs."""
        self.parts.append("<ul>" + "".join(f"<li>{prose(i)}</li>" for i in items) + "</ul>")

    def box(self, title: str, items: Iterable[str]) -> None:
        """A list that must not be overlooked."""
        rows = "".join(f"<li>{prose(i)}</li>" for i in items)
        self.parts.append(
            f'<div class="box"><p><strong>{escape(title)}</strong></p><ul>{rows}</ul></div>'
        )

    def figure(self, svg: str, caption: str, *, wide: bool, files: Iterable[str] = ()) -> None:
        """An inline SVG with its caption, which names it for those who do not see it, and the paths
        of its files: words, since a page that is mailed has no neighbours to link to."""
        self.figures += 1
        name = f"figure-{self.figures}"
        svg = re.sub(r'aria-label="[^"]*"', f'aria-labelledby="{name}"', svg, count=1)
        paths = " ".join(f"<code>{escape(path)}</code>" for path in files)
        kind = "wide" if wide else "single"
        self.parts.append(
            f'<figure class="{kind}"><div class="scroll" role="group" aria-labelledby="{name}">'
            f'{svg}</div><figcaption id="{name}">{prose(caption)} {paths}</figcaption></figure>'
        )

    def table(self, frame: pd.DataFrame, *, caption: str = "", folded: str = "") -> None:
        """A table; `folded` is the title of a fold that it is put into."""
        body = html_table(frame, caption)
        if folded:
            body = f"<details><summary>{escape(folded)}</summary>{body}</details>"
        self.parts.append(body)

    def switches(self, groups: Iterable[str]) -> None:
        """Check boxes that show and hide the artists of a group in every figure."""
        boxes = "".join(
            f'<label><input type="checkbox" checked value="{group_class(g)}"> '
            f'<span class="dot" style="background:{look(g).color}"></span>'
            f"{escape(look(g).label)}</label>"
            for g in groups
        )
        self.parts.append(
            f'<fieldset class="pick" aria-label="Architectures shown in figures">{boxes}</fieldset>'
        )

    def render(self) -> str:
        """The whole document."""
        links = "".join(f'<a href="#{a}">{escape(t)}</a>' for a, t in self.sections)
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            '<link rel="icon" href="data:,">'
            f"<title>{escape(self.title)}</title><style>{CSS}</style></head><body>"
            '<a class="skip" href="#content">to the content</a><main>\n'
            f'<h1>{escape(self.title)}</h1><nav aria-label="Sections">{links}</nav>\n'
            '<div id="content"></div>'
            + "\n".join(self.parts)
            + f"\n</main><script>{JS}{''.join(self.scripts)}</script></body></html>\n"
        )


_MARKS = {"\ue000": "<strong>", "\ue001": "</strong>", "\ue002": "<code>", "\ue003": "</code>"}
"""Private characters that `linscale.texts.clean` lets no file bring in."""


def bold(text: str) -> str:
    """The text in bold, for `prose`."""
    return f"\ue000{text}\ue001"


def code(text: str) -> str:
    """The text as code, for `prose`."""
    return f"\ue002{text}\ue003"


def prose(text: str) -> str:
    """Escaped text with the parts that `bold` and `code` made; nothing else is markup."""
    safe = escape(text)
    for mark, tag in _MARKS.items():
        safe = safe.replace(mark, tag)
    return safe


def html_table(frame: pd.DataFrame, caption: str = "") -> str:
    """A data frame as a table in a scroll box: numbers to the right, long text wrapped. The first
    column names the row; each cell carries its column's name, which a phone shows beside it."""
    numeric = {c for c in frame.columns if pd.api.types.is_numeric_dtype(frame[c])}
    head = "".join(
        f'<th scope="col"{" class=n" if c in numeric else ""}>{escape(str(c))}</th>'
        for c in frame.columns
    )
    rows: list[str] = []
    for record in frame.to_dict("records"):
        cells: list[str] = []
        for place, (column, value) in enumerate(record.items()):
            of = f'data-of="{escape(str(column))}"'
            if column in numeric:
                cells.append(f"<td class=n {of}>{number(float(value))}</td>")
                continue
            text = "" if value is None else str(value)
            kind = "w" if len(text) > 40 else "s"
            cell = 'th scope="row"' if place == 0 else "td"
            cells.append(f"<{cell} class={kind} {of}>{prose(text)}</{cell[:2]}>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    below = f"<caption>{prose(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{below}<thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def number(value: float) -> str:
    """Four significant digits; whole numbers with separators; exponents outside 1e-3...1e7."""
    if math.isnan(value):
        return "–"
    if math.isfinite(value) and value == int(value) and abs(value) < 1e7:
        return f"{int(value):,}"
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3e}".replace("e+", "e")
    return f"{value:.4g}"

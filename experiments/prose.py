"""Prose out of files of documentation: markup off, code and boilerplate out, nothing twice.

    file -> paragraphs (text between block tags, or between blank lines)
         -> those that read as English: 80 characters or more, 85 % of them letters and spaces
         -> those that have not been seen: less than half of their 8-word runs stood before
         -> one document a file, of 400 characters or more

HTML (also compressed), plain text, reStructuredText and POD are read; whatever else a folder holds
is passed over.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

SHORTEST_PARAGRAPH, SHORTEST_DOCUMENT = 80, 400
LETTERS = 0.85
RUN = 8
"""Words of a run by which repeats are found; every fourth run is kept, chosen by its hash."""

_BLOCKS = {
    *("p", "div", "li", "dd", "dt", "td", "th", "tr", "br", "hr", "section", "article", "table"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "blockquote", "body", "html", "title"),
}
_SILENT = {"script", "style", "pre", "nav", "head", "footer", "svg", "code-block", "button", "form"}
_TEXT = {"", ".txt", ".rst", ".pod", ".md"}
_NAMED = re.compile(
    r"changelog|copyright|license|readme\.|\.dat$|genindex|index-all", re.IGNORECASE
)
_WORD = re.compile(r"[a-z0-9']+")
_SMALL = re.compile(
    r"(?i)\b(?:the|of|to|a|and|in|is|that|it|for|as|with|be|on|this|are|by|or|not|an)\b"
)
_QUOTES = re.compile(r"(?m)^[ >]+|^\.\. .*$")
_MARKUP = re.compile(r":[a-z:]+:`~?([^`<]+)(?: <[^>]*>)?`|``([^`]*)``|[A-Z]<+ ?([^<>]*?) ?>+")


class _Paragraphs(HTMLParser):
    """Collects the text between block tags."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self._text: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in _SILENT:
            self._silent += 1
        if tag in _BLOCKS or tag in _SILENT:
            self.end()

    def handle_endtag(self, tag: str) -> None:
        if tag in _SILENT:
            self._silent = max(0, self._silent - 1)
        if tag in _BLOCKS or tag in _SILENT:
            self.end()

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self._text.append(data)

    def end(self) -> None:
        self.found.append("".join(self._text))
        self._text = []


class Seen:
    """The 8-word runs of all text so far, a quarter of them."""

    def __init__(self) -> None:
        self._runs: set[int] = set()

    def is_new(self, paragraph: str) -> bool:
        """Whether less than half of the runs stood before; takes note of them all."""
        words = _WORD.findall(paragraph.lower())
        runs = {
            int.from_bytes(hashlib.blake2b(" ".join(run).encode(), digest_size=8).digest(), "big")
            for run in (words[i : i + RUN] for i in range(max(1, len(words) - RUN + 1)))
        }
        kept = {run for run in runs if run % 4 == 0} or {min(runs)}
        new = 2 * len(kept & self._runs) < len(kept)
        self._runs |= kept
        return new


def documents(folder: Path, seen: Seen) -> Iterator[str]:
    """The new prose of every file below a folder, in the order of names."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
        kept = [p for p in paragraphs(path) if reads_as_english(p) and seen.is_new(p)]
        text = "\n\n".join(kept)
        if len(text) >= SHORTEST_DOCUMENT:
            yield text


def paragraphs(path: Path) -> list[str]:
    """The paragraphs of a file, white space folded; none where the file is of another kind."""
    name = path.name.removesuffix(".gz").removesuffix(".dz")
    suffix = Path(name).suffix.lower()
    if _NAMED.search(name) or suffix not in {*_TEXT, ".html", ".htm", ".dict"}:
        return []
    content = path.read_bytes()
    if path.suffix in (".gz", ".dz"):
        content = gzip.decompress(content)
    if b"\0" in content[:4096]:
        return []
    text = content.decode("utf-8", errors="replace")
    if suffix in (".html", ".htm"):
        parser = _Paragraphs()
        parser.feed(text)
        parser.end()
        found = parser.found
    else:
        text = _QUOTES.sub("", text)
        found = [_MARKUP.sub(_plain, part) for part in re.split(r"\n\s*\n|\n%\n", text)]
    return [" ".join(part.split()) for part in found]


def _plain(found: re.Match[str]) -> str:
    return next((group for group in found.groups() if group is not None), "")


def reads_as_english(paragraph: str) -> bool:
    """Long enough, letters for the most part, with the small words that English needs."""
    if len(paragraph) < SHORTEST_PARAGRAPH or "\ufffd" in paragraph:
        return False
    letters = sum(c.isalpha() or c == " " for c in paragraph)
    if letters < LETTERS * len(paragraph):
        return False
    return 12 * len(_SMALL.findall(paragraph)) >= len(paragraph.split())

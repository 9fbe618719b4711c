"""Tables on a terminal, of any width: a number is never cut, and what is left out is said.

A table that is too wide gives way in this order: gaps between columns, titles over several lines,
sentences over several lines, spare columns, which a line below names, long names over several
lines. What then is still too wide is printed as several tables, the names in each; where not even
two columns fit, as a block of `title value` a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.text import Text

NAME_COLUMNS = 14
"""A name is folded to no less."""
SENTENCE_COLUMNS = 24
"""A sentence is folded to no less."""


@dataclass(frozen=True)
class Column:
    """One column: its cells are text already."""

    title: str
    cells: Sequence[str | Text]
    words: bool = False
    """Names or sentences: on the left. Others are numbers: on the right, and never folded."""
    spare: int = 0
    """0 stays at any width; of the others the one with the highest is left out first."""
    once: bool = False
    """Said once below the table where every row has the same."""

    @property
    def widest(self) -> int:
        """Columns of the widest cell."""
        return max((_length(cell) for cell in self.cells), default=0)

    @property
    def sentences(self) -> bool:
        """Whether cells can be folded between words."""
        return self.words and self.widest > SENTENCE_COLUMNS and any(
            " " in _plain(cell) for cell in self.cells
        )  # fmt: skip

    def width(self, *, folded_title: bool) -> int:
        """Columns that it needs, with its title on one line or a word a line."""
        title = max(map(len, self.title.split()), default=0) if folded_title else len(self.title)
        return max(title, self.widest)


class Grid:
    """A table that fits where it is printed; `console.print` takes it."""

    def __init__(
        self,
        columns: Iterable[Column],
        *,
        title: str = "",
        elsewhere: str = "A wider terminal or --json shows them.",
    ) -> None:
        """
        Args:
            columns: from left to right, the name of a row first; all as long.
            title: a line above.
            elsewhere: where to find what is left out.
        """
        self._columns = list(columns)
        self._title, self._elsewhere = title, elsewhere

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        if self._title:
            yield Text(self._title, style="italic")
        columns, said = _said_once(self._columns)
        kept, widths, gap = fit(columns, options.max_width)
        if widths is not None:
            yield _table(kept, widths, gap)
        elif banks := _banks(kept, options.max_width):
            for place, (bank, sizes) in enumerate(banks):
                if place:
                    yield Text()
                yield _table(bank, sizes, gap)
        else:
            yield from _blocks(kept)
        if said:
            yield Text(f"every row: {', '.join(said)}")
        if left_out := [c.title for c in columns if not any(c is k for k in kept)]:
            yield Text(
                f"Left out at {options.max_width} columns: {', '.join(left_out)}. {self._elsewhere}"
            )
        yield Text()


def fit(columns: list[Column], width: int) -> tuple[list[Column], list[int] | None, int]:
    """The columns that are shown, how wide each is (None: not as a table), and the gap."""
    for folded_title, gap in ((False, 3), (False, 2), (True, 2)):
        widths = [c.width(folded_title=folded_title) for c in columns]
        if _needs(widths, gap) <= width:
            return columns, widths, gap
    kept = list(columns)
    while True:
        widths = _give_way(kept, width, 2, [c.sentences for c in kept], SENTENCE_COLUMNS)
        if widths is not None:
            return kept, widths, 2
        spares = [c for c in kept if c.spare]
        if not spares:
            break
        first = max(spares, key=lambda c: c.spare)
        kept = [c for c in kept if c is not first]
    widths = _give_way(kept, width, 2, [c.words for c in kept], NAME_COLUMNS)
    return (kept, widths, 2) if widths is not None else (list(columns), None, 2)


def _banks(columns: list[Column], width: int) -> list[tuple[list[Column], list[int]]]:
    """The columns as several tables that fit, what names a row in each; none: they do not."""
    first = next((i for i, c in enumerate(columns) if not c.words), 0) or 1
    names, others = columns[:first], columns[first:]
    banks: list[tuple[list[Column], list[int]]] = []
    while others:
        for count in range(len(others), 0, -1):
            bank = [*names, *others[:count]]
            widths = _give_way(bank, width, 2, [c.words for c in bank], NAME_COLUMNS)
            if widths is not None:
                break
        else:
            return []
        banks.append((bank, widths))
        others = others[count:]
    return banks


def _give_way(
    columns: list[Column], width: int, gap: int, foldable: list[bool], least: int
) -> list[int] | None:
    """Widths at which the widest foldable columns give way until all fit; None: they do not."""
    widths = [c.width(folded_title=True) for c in columns]
    floors = [
        min(w, max(least, *(len(word) for word in c.title.split() or [""]))) if may else w
        for c, w, may in zip(columns, widths, foldable, strict=True)
    ]
    while (over := _needs(widths, gap) - width) > 0:
        place = max(range(len(widths)), key=lambda i: widths[i] - floors[i])
        if widths[place] == floors[place]:
            return None
        widths[place] = max(floors[place], widths[place] - over)
    return widths


def _needs(widths: list[int], gap: int) -> int:
    return sum(widths) + gap * (len(widths) - 1)


def _said_once(columns: list[Column]) -> tuple[list[Column], list[str]]:
    """The columns without those that every row has the same, and these in words."""
    shown: list[Column] = []
    said: list[str] = []
    for column in columns:
        values = {_plain(cell) for cell in column.cells}
        if column.once and len(values) == 1 and len(column.cells) > 1:
            said.append(f"{column.title} {values.pop() or 'not known'}")
        else:
            shown.append(column)
    return shown, said


def _table(columns: list[Column], widths: list[int], gap: int) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, gap - 1, 0, 0), pad_edge=False, show_edge=False)
    for column, width in zip(columns, widths, strict=True):
        table.add_column(
            column.title, justify="left" if column.words else "right", vertical="top",
            width=width, overflow="fold",
        )  # fmt: skip
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(_text, row))
    return table


def _blocks(columns: list[Column]) -> Iterable[Text]:
    """Every row as its name and, below, `title value` after `title value`."""
    from rich.text import Text

    name, *others = columns
    for place, cell in enumerate(name.cells):
        yield Text.assemble(_text(cell), style="bold")
        pairs = [
            Text.assemble(f"{c.title} ", _text(c.cells[place]))
            for c in others
            if _plain(c.cells[place])
        ]
        yield Text("  ").append(Text(", ").join(pairs))


def _text(cell: str | Text) -> Text:
    from rich.text import Text

    return Text(cell) if isinstance(cell, str) else cell


def _plain(cell: str | Text) -> str:
    return cell if isinstance(cell, str) else cell.plain


def _length(cell: str | Text) -> int:
    return _text(cell).cell_len

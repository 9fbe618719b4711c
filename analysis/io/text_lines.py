"""Lines of a text file that hold no row of its table: blank ones, and comments above it.

line_numbers(text, separator)    where the header and every row begin, as an editor counts lines
without_comments(text, notes)    the text below the lines that start with #
"""

from __future__ import annotations

import csv
import io


def line_numbers(text: str, separator: str) -> list[int]:
    """The line, from 1, on which each record begins, the header first; blank lines are none.

    A record runs over several lines where a quoted cell does.
    """
    if '"' not in text:
        return [i for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    reader = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True)
    found: list[int] = []
    before = 0
    for record in reader:
        if len(record) > 1 or any(cell.strip() for cell in record):
            found.append(before + 1)
        before = reader.line_num
    return found


def without_comments(text: str, notes: list[str]) -> tuple[str, int]:
    """The text below its first lines that start with #, and how many lines are above it.

    The last of them is the header where it has the fields of the line below and that begins with a
    number, as NumPy writes it.
    """
    lines = text.split("\n")
    above = 0
    while above < len(lines) and (not lines[above].strip() or lines[above].lstrip()[:1] == "#"):
        above += 1
    comments = [i for i in range(above) if lines[i].strip()]
    if not comments or above == len(lines):
        return text, 0
    last = comments[-1]
    below = lines[above]
    between = next((s for s in ",;\t|" if s in below), ",")
    if lines[last].count(between) == below.count(between) > 0 and _number(below.split(between)[0]):
        lines[last] = lines[last].lstrip().removeprefix("#").lstrip()
        above, comments = last, comments[:-1]
    if comments:
        notes.append(f"{len(comments)} line(s) of comments, which start with #, are left out")
    return "\n".join(lines[above:]), above


def _number(cell: str) -> bool:
    try:
        float(cell.strip().strip('"'))
    except ValueError:
        return False
    return True

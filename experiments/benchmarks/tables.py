"""Tables of the documentation that a benchmark writes, so that they cannot differ from its results.

A page has the place of a table between two comments, <!-- NAME --> and <!-- end of NAME -->.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"


def put_table(page: Path, name: str, caption: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace a table; the keys of the first row are the columns.

    Raises:
        ValueError: the page has no place of that name.
    """
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([row[c] for c in columns] for row in rows)]
    table = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
    place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    text = page.read_text(encoding="utf-8")
    if not place.search(text):
        raise ValueError(f"{page}: has no place for the table {name!r}.")
    made = f"\n{caption}\n\n{table}\n\n"
    page.write_text(place.sub(lambda m: m[1] + made + m[2], text), encoding="utf-8")

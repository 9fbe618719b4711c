"""Tables that benchmarks put into pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.benchmarks.tables import put_table


def test_a_table_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- times -->\nold\n<!-- end of times -->\nafter\n")
    for value in (1.5, 2.5):
        put_table(page, "times", "Seconds:", [{"": "TNL", "8,192": value}])
    assert page.read_text() == (
        "before\n<!-- times -->\n\nSeconds:\n\n|  | 8,192 |\n| --- | --- |\n| TNL | 2.5 |\n\n"
        "<!-- end of times -->\nafter\n"
    )
    with pytest.raises(ValueError, match="no place for the table 'other'"):
        put_table(page, "other", "", [{"a": 1}])

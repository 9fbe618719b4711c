"""The page of messy tables tells what happens today."""

from __future__ import annotations

import pytest

from experiments.messy_files import MESSY
from experiments.messy_tables import PAGE, page


def test_the_page_is_true() -> None:
    pytest.importorskip("pyarrow")
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m experiments.messy_tables"


def test_there_are_at_least_75_files_of_distinct_kinds() -> None:
    names = [case.about for cases in MESSY.values() for case in cases]
    assert len(names) == len(set(names)) >= 75

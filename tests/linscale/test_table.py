"""Tables of any width: nothing is cut, and what is left out is said."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from linscale.table import Column, Grid

NUMBERS = ["1,234,567.0001", "2.5e+18", "0.0005 … 0.0012"]


def shown(width: int, *columns: Column, title: str = "") -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(Grid(columns, title=title))
    return out.getvalue()


def columns(spare: int = 0) -> list[Column]:
    return [
        Column("run", ["cosformer2-d128-s0-0f3e5a77", "b", "c"], words=True),
        Column("seed", ["3", "3", "3"], once=True),
        Column("tokens per second", ["1", "2", "3"], spare=spare),
        Column("loss", NUMBERS),
        Column("why", ["a sentence with many words that goes on and on", "", ""], words=True),
    ]


@pytest.mark.parametrize("width", range(16, 140, 4))
@pytest.mark.parametrize("spare", [0, 1])
def test_numbers_and_names_are_whole_at_every_width(width: int, spare: int) -> None:
    text = shown(width, *columns(spare))
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    joined = re.sub(r"\s+", "", text)
    for number in NUMBERS:
        assert number.replace(" ", "") in joined
    assert "everyrow:seed3" in joined
    assert "cosformer2-d12" in joined
    if "tokenspersecond" not in joined.replace("Leftout", ""):
        assert "Leftout" in joined or "tokens" in joined


def test_order_of_giving_way() -> None:
    """By hand: 27 + 17 + 15 + 46 columns and gaps of 3 are 114, of 2 are 111."""
    assert "tokens per second" in shown(114, *columns(1))
    assert "tokens per second" in shown(111, *columns(1))
    folded = shown(110, *columns(1))
    assert "tokens per second" not in folded
    assert "second" in folded
    assert "Left out" not in folded
    assert "goes on and on\n" not in shown(90, *columns(1))
    assert "Left out at 75 columns: tokens per second." in shown(75, *columns(1))


def test_several_tables_where_one_does_not_fit() -> None:
    many = [Column("name", ["x"], words=True), *(Column(f"c{i}", ["12345678"]) for i in range(9))]
    text = shown(40, *many)
    assert text.count("name") == 3
    assert text.count("12345678") == 9
    assert "Left out" not in text

"""What `linscale clocks` says of the context at which the order turns."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scaling.cli.clocks import _turn
from scaling.cli.main import app

ALWAYS = "cheaper at every context from 256 to 1,048,576"


@pytest.mark.parametrize(
    ("turn", "low", "high", "said"),
    [
        (math.nan, 0.0, 0.0, ALWAYS),
        (math.nan, math.nan, math.nan, ALWAYS),
        (math.nan, 0.0, 1633.4, f"{ALWAYS} (90% interval of the turn: below 256 to 1,633)"),
        (2608.2, 1775.0, math.inf, "cheaper at longer contexts, from 2,608 tokens (90% interval of "
         "the turn: 1,775 to beyond 1,048,576)"),
    ],
)  # fmt: skip
def test_a_turn_in_words(turn: float, low: float, high: float, said: str) -> None:
    text = ALWAYS if math.isnan(turn) else "cheaper at longer contexts"
    assert _turn({"text": text, "turn": turn, "lo": low, "hi": high}) == said


def test_a_path_that_does_not_exist_is_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # long paths would be wrapped
    done = CliRunner().invoke(app, ["clocks", "absent"])
    assert done.exit_code == 2
    assert "absent is neither a directory nor a zip file of one" in " ".join(done.output.split())
    Path("runs.csv").write_text("params,tokens,loss\n1e6,1e8,3.0\n")
    table = CliRunner().invoke(app, ["clocks", "runs.csv"])
    assert "runs.csv is a table" in " ".join(table.output.split())

"""The figure of clocks, from a table and from the file that it was written to."""

from __future__ import annotations

import io

import pandas as pd
import pytest

from analysis.figures.clocks import clocks

TABLE = pd.DataFrame([
    {"arch": arch, "clock": clock, "outside": outside, "ratio": ratio, "ratio_lo": ratio / 2,
     "ratio_hi": 2 * ratio}
    for clock in ("training FLOPs", "tokens")
    for arch, outside, ratio in (("llama", "", 1.0), ("tnl", "N is small", 2.0), ("hgrn2", "", 3.0))
])  # fmt: skip


@pytest.mark.parametrize("written", [False, True])
def test_marks_are_hollow_only_beyond_the_models_trained(written: bool) -> None:
    table = pd.read_csv(io.StringIO(TABLE.to_csv(index=False))) if written else TABLE
    (axes,) = clocks(table, baseline="llama").axes
    marks = [line for line in axes.lines if line.get_marker() not in ("None", "")]
    assert len(marks) == 4
    hollow = [mark.get_label() for mark in marks if mark.get_markerfacecolor() == "white"]
    assert len(hollow) == 2
    assert "TNL" in hollow

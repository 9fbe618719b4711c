"""Targets of architectures that the runs do not have: the message says what there is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from analysis.errors import AnalysisError
from analysis.forecast.forecasting import forecast
from analysis.forecast.targets import at
from analysis.io.tables import load_table

ROWS = "\n".join(f"{a},{n},{d},3" for a in ("tnl", "mine") for n in (1e7, 3e7) for d in (1e9, 3e9))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("arch,N,D,loss", "has finished runs of tnl, mine, and --for asks for llama: its groups"),
        ("who,N,D,loss", "does not say which runs are of which architecture, .* with --group"),
    ],
)
def test_groups_that_do_not_match(tmp_path: Path, header: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(f"{header}\n{ROWS}\n")
    target = replace(at("N=1e8,D=1e10"), group="llama")
    with pytest.raises(AnalysisError, match=message):
        forecast(load_table(tmp_path / "t.csv"), [target])

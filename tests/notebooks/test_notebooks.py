"""Every notebook runs from top to bottom on the records kept in the repository."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.py"))
CELL = re.compile(r"^# %%(?: \[markdown\])?$", re.MULTILINE)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib.use("Agg")
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("LINSCALE_DATA", raising=False)
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), {"__name__": "__main__"})
    plt.close("all")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_opens_with_what_is_learnt(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    first = CELL.split(text)[1]
    assert "You will learn" in first
    assert text.count("SWEEP = Path(") == 1


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS

"""Every notebook runs from top to bottom on the records kept in the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import jupytext
import matplotlib
import matplotlib.pyplot as plt
import nbformat
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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_pair_is_in_step(path: Path) -> None:
    """The .ipynb has the cells of the .py, all executed: `make notebooks` after a change."""
    pair = cast("Any", nbformat.read(path.with_suffix(".ipynb"), as_version=4))
    cells = [(cell.cell_type, cell.source) for cell in pair.cells]
    assert cells == [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]
    code = [cell for cell in pair.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs) or "figures" not in (
        path.read_text(encoding="utf-8")
    )
    assert not [output for output in outputs if output.output_type == "error"]
    assert str(ROOT) not in path.with_suffix(".ipynb").read_text(encoding="utf-8")


def test_pairs_are_small() -> None:
    """Outputs are in the repository for those who read it on a code host."""
    assert sum(path.with_suffix(".ipynb").stat().st_size for path in NOTEBOOKS) < 5 * 2**20


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS

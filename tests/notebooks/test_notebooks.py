"""Every notebook runs from top to bottom, in the folder in which Jupyter runs it: on the records
kept in the repository, and on sweeps that lack what the notebook would show."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import jupytext
import matplotlib
import matplotlib.pyplot as plt
import nbformat
import pytest

from tests.support.make_runs import write_sweep

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.py"))
CELL = re.compile(r"^# %%(?: \[markdown\])?$", re.MULTILINE)


SWEEP = re.compile(r"^SWEEP = records\(.*?\)", re.MULTILINE)
QUICK = ("01", "06")
FOREIGN = {
    "one_size": {"archs": ("llama", "tnl"), "dims": (64,)},
    "one_architecture": {"archs": ("hgrn2",)},
    "seeds_only": {"archs": ("llama",), "dims": (64,), "seeds": (0, 1, 2), "fractions": (1.0,)},
    "too_small_for_a_hold_out": {"archs": ("llama", "tnl"), "dims": (32, 64)},
}
"""Sweeps as others have them; see `write_sweep`."""


def execute(path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Jupyter does: in the folder of the notebook."""
    matplotlib.use("Agg")
    monkeypatch.chdir(path.parent)
    monkeypatch.delenv("LINSCALE_DATA", raising=False)
    exec(compile(text, str(path), "exec"), {"__name__": "__main__"})
    plt.close("all")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    execute(path, path.read_text(encoding="utf-8"), monkeypatch)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("foreign")
    found = {name: write_sweep(root / name, **cast("Any", how)) for name, how in FOREIGN.items()}
    return found | {"linearized": ROOT / "experiments" / "results" / "linearize_loop.zip"}


@pytest.mark.parametrize("sweep", [*FOREIGN, "linearized"])
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem[:2] in QUICK else pytest.mark.slow)
        for path in NOTEBOOKS
        if "kernels" not in path.stem  # its SWEEP is a table of times
    ],
)
def test_runs_on_a_sweep_of_ones_own(
    path: Path,
    sweep: str,
    foreign: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What a sweep lacks is said, in words; nothing fails."""
    text, changed = SWEEP.subn(
        f"SWEEP = records({str(foreign[sweep])!r})", path.read_text(encoding="utf-8")
    )
    assert changed == 1
    execute(path, text, monkeypatch)
    said = capsys.readouterr().out
    if path.stem.startswith("01") and sweep in ("one_size", "seeds_only"):
        assert "intervals need at least 4" in said
    if path.stem.startswith("04") and sweep != "linearized":
        assert "no finished linearized run" in said


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_opens_with_what_is_learnt(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    first = CELL.split(text)[1]
    assert "You will learn" in first
    assert len(re.findall(r"^SWEEP = ", text, re.MULTILINE)) == 1


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

"""The gallery page from run records that are part of the project."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from analysis.io.sweep_files import names_of_runs, open_sweep
from experiments import gallery

QUICKSTART = Path(__file__).resolve().parents[2] / "experiments" / "results" / "quickstart.zip"


def test_page_shows_every_figure_of_the_quickstart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without public data: the figures of the sweep alone, each drawn, captioned and linked."""
    monkeypatch.setattr(gallery, "BOOTSTRAP", 20)
    page = gallery.write(QUICKSTART, None, tmp_path / "out")
    runs = names_of_runs(open_sweep(QUICKSTART))
    shown = re.findall(r"^!\[(\w+)\]\(\1\.png\)\n\n(.+)", page.read_text("utf-8"), re.MULTILINE)
    assert len(shown) >= 6
    assert {f"{name}.png" for name, _ in shown} == {p.name for p in page.parent.glob("*.png")}
    for name, caption in shown:
        picture = (page.parent / f"{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG\r\n")
        assert [run for run in runs if run.encode() not in picture] == []
        assert "n = 60 checkpoints of 20 runs, 2026-" in caption
    assert {"sweep_frontier", "sweep_multipliers"} <= {name for name, _ in shown}
    assert "Public data" not in page.read_text("utf-8")


def test_sections_of_absent_data_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "study", lambda sweep, bootstrap: sweep)
    monkeypatch.setattr(gallery, "sweep_entries", lambda result: iter(()))
    page = tmp_path / "README.md"
    kept = (
        "\n## Public data: gemstones\n\n![gemstones_envelope](gemstones_envelope.png)\n\nA hull.\n"
    )
    page.write_text(f"# Gallery\n{kept}", "utf-8")
    gallery.write(QUICKSTART, tmp_path / "nothing", tmp_path)
    assert kept in page.read_text("utf-8")
    assert "## A sweep of the project: quickstart\n" in page.read_text("utf-8")

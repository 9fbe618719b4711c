"""The gallery page from run records that are part of the project."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from analysis import gallery

QUICKSTART = Path(__file__).resolve().parents[2] / "experiments" / "results" / "quickstart"


def test_page_shows_every_figure_of_the_quickstart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without public data: the figures of the sweep alone, each drawn, captioned and linked."""
    monkeypatch.setattr(gallery, "BOOTSTRAP", 20)
    page = gallery.write(QUICKSTART, None, tmp_path / "out")
    shown = re.findall(r"^!\[(\w+)\]\(\1\.png\)\n\n(.+)", page.read_text("utf-8"), re.MULTILINE)
    assert len(shown) >= 6
    assert {f"{name}.png" for name, _ in shown} == {p.name for p in page.parent.glob("*.png")}
    for name, caption in shown:
        assert (page.parent / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n")
        assert len(caption) > 20
    assert {"sweep_frontier", "sweep_multipliers"} <= {name for name, _ in shown}
    assert "Public data" not in page.read_text("utf-8")

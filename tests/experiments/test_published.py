"""Published figures carry what they rest on."""

from __future__ import annotations

import csv
import re
import subprocess
from pathlib import Path

import pytest

from analysis.io.sweep_files import names_of_runs, open_sweep
from experiments.published import IMAGES, OTHERS, PUBLISHED, RECORDS, TABLES, publish, publish_table


def check(written: list[Path], caption: str, runs: list[str]) -> None:
    kinds = {path.suffix: path for path in written}
    assert set(kinds) == {".png", ".pdf", ".txt"}
    text = kinds[".txt"].read_text("utf-8")
    assert caption in text
    assert "2026-" in text
    assert "n = " in text
    png = kinds[".png"].read_bytes()
    for run in runs:
        assert run in text
        assert run.encode() in png


def test_table_with_runs(tmp_path: Path) -> None:
    with (RECORDS / "recall" / "recall.csv").open() as file:
        runs = sorted({row["run"] for row in csv.DictReader(file)})
    check(publish_table("recall", tmp_path), TABLES["recall"].caption, runs)


def test_table_of_losses(tmp_path: Path) -> None:
    check(publish_table("lr_transfer", tmp_path), "n = 168 runs, 2026-11-21", [])


def test_sweep(tmp_path: Path) -> None:
    runs = names_of_runs(open_sweep(RECORDS / "quickstart.zip"))
    check(publish("quickstart", ["frontier"], tmp_path, bootstrap=20), "20 bootstrap refits", runs)


def test_table_without_runs(tmp_path: Path) -> None:
    check(publish_table("decoding", tmp_path), "n = 16 medians, 2026-", [])


def test_every_picture_is_drawn_from_records() -> None:
    drawn = {
        *TABLES,
        *OTHERS,
        *(f"{sweep}_{name}" for sweep, names in PUBLISHED.items() for name in names),
    }
    root = IMAGES.parents[1]
    gallery = RECORDS / "gallery"
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    tracked = [root / name for name in listing.stdout.split("\0")]
    found = {path for path in tracked if path.suffix in (".png", ".pdf", ".svg")}
    seen = {IMAGES / "report.png"}  # README's picture of a page, taken in a browser
    assert {p for p in found if p.parent != gallery} - seen == {
        IMAGES / f"{name}.png" for name in drawn
    }
    pages = "".join(page.read_text("utf-8") for page in (root / "docs").glob("*.md"))
    assert [name for name in sorted(drawn) if f"images/{name}.png" not in pages] == []
    page = (gallery / "README.md").read_text("utf-8")
    assert {p.name for p in found if p.parent == gallery} == set(
        re.findall(r"\((\w+\.png)\)", page)
    )

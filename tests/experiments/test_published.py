"""Published figures carry what they rest on."""

from __future__ import annotations

import csv
from pathlib import Path

from experiments.published import RECORDS, TABLES, publish, publish_table


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
    check(publish_table("lr_transfer", tmp_path), "n = 84 runs, 2026-11-21", [])


def test_sweep(tmp_path: Path) -> None:
    runs = sorted(path.parent.name for path in (RECORDS / "quickstart").glob("*/config.json"))
    check(publish("quickstart", ["frontier"], tmp_path, bootstrap=20), "20 bootstrap refits", runs)

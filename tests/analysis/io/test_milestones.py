"""Milestones that were lost or changed are found when a sweep is read, with their reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.io.records import load_sweep
from linscale.sealed import LINE_SEAL, is_whole, sealed
from tests.support.make_runs import write_sweep

Change = Callable[[list[dict[str, Any]]], object]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    root = write_sweep(tmp_path / "demo", archs=("tnl",), dims=(32, 64), log_lines=6)
    for path in root.glob("*/milestones.jsonl"):
        with (path.parent / "metrics.jsonl").open("a") as file:
            for line in path.read_text().splitlines():
                record = json.loads(line)
                values = {"loss": record["val_loss"], "bpb": record["val_bpb"]}
                line = {"tokens": record["tokens"], "split": "validation", "segment": "x"} | values
                file.write(json.dumps(line) + "\n")
    return root


def change(sweep: Path, how: Change, seals: bool = False) -> list[dict[str, Any]]:
    """Change the milestones of the first run; returns the lines as they were."""
    path = sorted(sweep.glob("*/milestones.jsonl"))[0]
    before = [json.loads(line) for line in path.read_text().splitlines()]
    records = [sealed(r, LINE_SEAL) if seals else dict(r) for r in before]
    how(records)
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return before


def reasons(sweep: Path) -> dict[float, str]:
    left_out = load_sweep(sweep).exclusions
    return dict(zip(left_out["tokens"], left_out["reason"], strict=True))


def test_a_whole_sweep_has_all_its_points(sweep: Path) -> None:
    assert reasons(sweep) == {}
    change(sweep, lambda records: None, seals=True)
    assert reasons(sweep) == {}
    assert len(load_sweep(sweep).points) == 8


def test_a_line_that_is_gone(sweep: Path) -> None:
    before = change(sweep, lambda records: records.pop(1))
    gone = before[1]["tokens"]
    assert "of this horizon is missing" in reasons(sweep)[gone]
    assert len(load_sweep(sweep).points) == 7


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("val_loss", 3.25, "val_loss is 3.25, and metrics.jsonl says"),
        ("val_bpb", 1.5, "val_bpb is 1.5, and metrics.jsonl says"),
        ("tokens", 8192, "tokens is 8192, none of the run's horizons"),
        ("step", 3, "step is 3, and"),
    ],
)
def test_a_field_that_another_file_contradicts(
    sweep: Path, name: str, value: float, why: str
) -> None:
    """In records without a hash of the line, as earlier versions wrote them."""
    change(sweep, lambda records: records[1].update({name: value}))
    assert any(why in reason for reason in reasons(sweep).values())
    assert len(load_sweep(sweep).points) == 7


def test_every_flipped_bit_of_a_sealed_line_is_found(sweep: Path) -> None:
    """900 of them, by seed; what was read stays what was written, or is left out."""
    path = sorted(sweep.glob("*/milestones.jsonl"))[0]
    change(sweep, lambda records: None, seals=True)
    good = path.read_bytes()
    lines = [json.loads(line) for line in good.splitlines()]
    draw = np.random.default_rng(9)
    for _ in range(900):
        bad = bytearray(good)
        bad[draw.integers(len(bad))] ^= 1 << int(draw.integers(8))
        found = []
        for line in bytes(bad).split(b"\n"):
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and LINE_SEAL in record and is_whole(record, LINE_SEAL):
                found.append(record)
        assert all(record in lines for record in found)
        assert len(found) >= len(lines) - 2

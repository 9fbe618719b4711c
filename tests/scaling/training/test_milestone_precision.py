"""Milestones in bf16: half the bytes, the same run, weights that are the trained ones rounded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from scaling.config.run import RunConfig
from scaling.plan.plan import disk_bytes
from scaling.record.load_model import load_model
from scaling.training.train import train
from tests.support.results import read_lines


def milestones(config: RunConfig, sweep: Path) -> tuple[list[float], list[Path]]:
    """Losses and files of a trained run."""
    assert train(config, sweep) == "done"
    folder = sweep / config.run_id
    lines = read_lines(folder / "milestones.jsonl")
    return [line["val_loss"] for line in lines], [folder / line["checkpoint"] for line in lines]


def test_bf16_milestones(make_run: Any, tmp_path: Path) -> None:
    wide = make_run(arch="tnl")
    narrow = replace(wide, budget=replace(wide.budget, milestone_precision="bf16"))
    assert narrow.run_id == wide.run_id
    losses, files = milestones(wide, tmp_path / "wide")
    found, rounded = milestones(narrow, tmp_path / "narrow")
    assert found == losses
    for one, other in zip(files, rounded, strict=True):
        model, half = load_model(one)[0].state_dict(), load_model(other)[0].state_dict()
        for name, value in model.items():
            assert half[name].dtype == value.dtype
            expected = value.bfloat16().float() if value.dtype == torch.float32 else value
            assert torch.equal(half[name], expected), name
        assert other.stat().st_size < 0.75 * one.stat().st_size
    horizons, total = len(files), sum(p.numel() for p in load_model(files[0])[0].parameters())
    assert disk_bytes(wide)[0] - disk_bytes(narrow)[0] == 2 * total * horizons

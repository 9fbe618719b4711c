"""Transfers that are stopped, shared among processes, or find damaged files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from linscale.errors import LinscaleError
from models.interop import import_model
from scaling.linearization.blockwise import train_groups as training
from scaling.linearization.blockwise.hidden_cache import Boundary
from scaling.linearization.blockwise.train_groups import run
from scaling.system.claims import claim


def quiet(_: str) -> None:
    """A report to nobody."""


def test_an_assembly_that_was_stopped_is_not_taken_for_whole(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after weights and config.json were written: the same command writes all files."""
    config, out = make(), tmp_path / "out"

    def stopped(*args: Any, **kwargs: Any) -> None:
        export(*args, **kwargs)
        raise KeyboardInterrupt

    export = training.export_tensors
    with monkeypatch.context() as patch:
        patch.setattr(training, "export_tensors", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(config, out, report=quiet)
    assert not (out / "model").exists()
    run(config, out, report=quiet)
    assert import_model(out / "model")[1].config == config.student
    assert not (out / "model.part").exists()


def test_a_stopped_transfer_goes_on(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = make(), tmp_path / "out"
    run(config, tmp_path / "whole", report=quiet)
    monkeypatch.setattr(training, "CHECKPOINT_STEPS", 2)
    read, calls = Boundary.batch, []

    def stops(self: Boundary, number: int) -> torch.Tensor:
        calls.append(number)
        if len(calls) in (3, 20):  # first while activations are made, then while a group learns
            raise KeyboardInterrupt
        return read(self, number)

    monkeypatch.setattr(Boundary, "batch", stops)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(config, out, report=quiet)
    made = sorted(out.glob("activations/*/batch-*"))
    assert (out / "group-01" / "checkpoint.pt").is_file()
    assert not (out / "group-01" / "learned.safetensors").exists()
    run(config, out, report=quiet)
    assert sorted(out.glob("activations/*/batch-*")) == made
    for name in ("group-00/losses.jsonl", "group-01/losses.jsonl", "group-02/losses.jsonl"):
        assert (out / name).read_text() == (tmp_path / "whole" / name).read_text()
    name = "model/model.safetensors"
    again = safetensors.torch.load_file(out / name)
    for key, value in safetensors.torch.load_file(tmp_path / "whole" / name).items():
        assert torch.equal(again[key], value), key


def test_a_group_is_trained_by_one_process(make: Any, tmp_path: Path) -> None:
    """A second one leaves it alone, and trains the others; a lock of a dead process is no lock."""
    config, out = make(), tmp_path / "out"
    run(config, out, only="activations", report=quiet)
    said: list[str] = []
    held = claim(out / "group-01")
    assert held is not None
    with held:
        with pytest.raises(LinscaleError, match=rf"process {os.getpid()} on .* training group 1"):
            run(config, out, only="1", report=quiet)
        run(config, out, report=said.append)
    assert "training group 1" in said[-1]
    assert "same command assembles" in said[-1]
    assert not (out / "model").exists()
    assert [(out / f"group-{n:02d}" / "learned.safetensors").is_file() for n in range(3)] == [
        True, False, True,
    ]  # fmt: skip
    run(config, out, report=quiet)
    assert (out / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("name", "words", "deleted"),
    [
        (
            "tokens.safetensors",
            "tokens.safetensors: cannot be read .* made anew",
            ("tokens.safetensors", "activations"),
        ),
        (
            "activations/before-002/batch-00001.safetensors",
            "delete .*before-002 .* made anew",
            ("activations/before-002",),
        ),
        ("group-01/checkpoint.pt", "checkpoint.pt: .* learns from its start", ("group-01",)),
        ("group-01/losses.jsonl", "ends before step 2.* learns from its start", ("group-01",)),
        ("group-00/learned.safetensors", "delete .*group-00 .* learns anew", ("group-00",)),
        ("blockwise.json", "that file is damaged", ()),
    ],
)
@pytest.mark.parametrize("damage", ["cut", "emptied"])
def test_damaged_files(
    make: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    words: str,
    deleted: tuple[str, ...],
    damage: str,
) -> None:
    """One paragraph that says which, and what to delete; doing so mends it."""
    config, out = make(), tmp_path / "out"
    monkeypatch.setattr(training, "CHECKPOINT_STEPS", 2)
    read, calls = Boundary.batch, []

    def stops(self: Boundary, number: int) -> torch.Tensor:
        calls.append(number)
        if len(calls) == 19:  # 8 for the activations, 8 of group 0, 2 of group 1
            raise KeyboardInterrupt
        return read(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Boundary, "batch", stops)
        with pytest.raises(KeyboardInterrupt):
            run(config, out, report=quiet)
    path = out / name
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3] if damage == "cut" else b"")
    with pytest.raises(LinscaleError, match=words) as error:
        run(config, out, report=quiet)
    assert "\n" not in str(error.value)
    for folder in (out / each for each in deleted):
        assert str(folder) in str(error.value)
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    if deleted:
        run(config, out, report=quiet)
        assert import_model(out / "model")[1].config == config.student

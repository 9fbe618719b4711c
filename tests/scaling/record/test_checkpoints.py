"""Damage to checkpoints and records: detected, said aloud, and never the end of a run."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scaling.config.run import RunConfig
from scaling.config.schedule import segments
from scaling.record.checkpoint_files import CheckpointError
from scaling.record.checkpoints import Checkpoints
from scaling.record.head import RecordError
from scaling.record.load_model import load_model
from scaling.record.record import RunRecord, read_states
from scaling.training.module import TrainingModule
from scaling.training.train import train
from tests.support.results import StopAfter, metrics


def outcome(config: RunConfig, sweep: Path) -> tuple[list[Any], str]:
    return metrics(config, sweep), (sweep / config.run_id / "milestones.jsonl").read_text()


@pytest.fixture(scope="module")
def finished() -> dict[str, Any]:
    """The undisturbed outcome, once for the module."""
    return {}


@pytest.fixture
def whole(make_run: Any, tmp_path_factory: Any, finished: dict[str, Any]) -> tuple[RunConfig, Any]:
    config = make_run(arch="tnl")
    if not finished:
        sweep = tmp_path_factory.mktemp("whole")
        train(config, sweep)
        finished["outcome"] = outcome(config, sweep)
    return config, finished["outcome"]


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def remove(path: Path) -> None:
    path.unlink()


def newest(config: RunConfig, sweep: Path) -> tuple[Path, dict[str, Any]]:
    folder = sweep / config.run_id / "checkpoints"
    point = json.loads((folder / "manifest.json").read_text())["resume"][-1]
    return folder, point


@pytest.mark.parametrize("harm", [flip_bit, cut, remove])
@pytest.mark.parametrize("steps", [5, 11, 25])
def test_damaged_last_checkpoint_falls_back_and_says_so(
    whole: Any, tmp_path: Path, harm: Callable[[Path], None], steps: int, caplog: Any
) -> None:
    config, expected = whole
    train(config, tmp_path, stop_event=StopAfter(steps))
    folder, point = newest(config, tmp_path)
    harm(folder / point["file"])
    with caplog.at_level(logging.WARNING, "linscale"):
        assert train(config, tmp_path) == "done"
    assert point["file"] in caplog.text
    assert "Falling back to step" in caplog.text
    assert "Falling back to step" in (folder.parent / "log.txt").read_text()
    assert outcome(config, tmp_path) == expected


def test_damaged_checkpoint_that_a_branch_returns_to(whole: Any, tmp_path: Path) -> None:
    config, expected = whole
    train(config, tmp_path, stop_event=StopAfter(12))  # step 10, within the branch that left at 8
    folder, point = newest(config, tmp_path)
    assert (point["step"], point["trunk_file"]) == (10, "resume-trunk-8.pt")
    flip_bit(folder / point["trunk_file"])
    assert train(config, tmp_path) == "done"
    assert outcome(config, tmp_path) == expected


def test_all_checkpoints_lost_starts_from_the_beginning(whole: Any, tmp_path: Path) -> None:
    config, expected = whole
    train(config, tmp_path, stop_event=StopAfter(12))
    folder = tmp_path / config.run_id / "checkpoints"
    shutil.rmtree(folder)
    assert train(config, tmp_path) == "done"
    assert outcome(config, tmp_path) == expected


def test_checkpoints_of_the_trunk_are_kept_for_good(whole: Any, tmp_path: Path) -> None:
    """The first at or beyond every 700 tokens, steps of 128, however often the run is stopped."""
    config, expected = whole
    keeping = config.override(["budget.keep_every_tokens=700"])
    assert keeping.run_id == config.run_id
    for steps in (4, 9):
        assert train(keeping, tmp_path, stop_event=StopAfter(steps)) == "preempted"
    assert train(keeping, tmp_path) == "done"
    folder = tmp_path / config.run_id / "checkpoints"
    last_of_trunk = max(part.last for part in segments(keeping) if not part.is_branch)
    multiples = range(700, last_of_trunk * 128 + 1, 700)
    names = {f"resume-trunk-{-(-tokens // 128)}.pt" for tokens in multiples}
    assert {path.name for path in folder.glob("resume-*")} == names
    assert len(names) > 2
    for name in names:
        load_model(folder / name)  # and its SHA-256 is that of the manifest
    assert outcome(config, tmp_path)[0] == expected[0]  # milestones tell of their configuration


def test_unreadable_manifest_is_an_error_not_a_restart(whole: Any, tmp_path: Path) -> None:
    config, _ = whole
    train(config, tmp_path, stop_event=StopAfter(5))
    manifest = tmp_path / config.run_id / "checkpoints" / "manifest.json"
    manifest.write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot be read.*start this run again"):
        train(config, tmp_path)
    assert read_states(tmp_path) == {config.run_id: "failed"}
    assert len(list(manifest.parent.glob("resume-*"))) >= 1  # nothing was thrown away


def test_checkpoints_of_another_run_are_refused(whole: Any, tmp_path: Path, make_run: Any) -> None:
    """Same shapes, so that they could be loaded; only the learning rate differs."""
    config, other = whole[0], make_run("optim.lr=1e-2", arch="tnl")
    train(config, tmp_path, stop_event=StopAfter(5))
    train(other, tmp_path, stop_event=StopAfter(5))
    folder, foreign = (tmp_path / c.run_id / "checkpoints" for c in (config, other))
    shutil.rmtree(folder)
    shutil.copytree(foreign, folder)
    with pytest.raises(CheckpointError, match=f"of {other.run_id}, not of {config.run_id}"):
        train(config, tmp_path)


def test_checkpoint_of_another_version_of_the_model(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = whole
    train(config, tmp_path, stop_event=StopAfter(5))
    real = TrainingModule.__init__

    def without_last_block(self: TrainingModule, config: RunConfig) -> None:
        real(self, config)
        self.net.blocks = self.net.blocks[:-1]

    monkeypatch.setattr(TrainingModule, "__init__", without_last_block)
    with pytest.raises(
        CheckpointError, match=r"does not fit the model.*Use the revision that began"
    ):
        train(config, tmp_path)


def test_torn_last_line_is_dropped(whole: Any, tmp_path: Path) -> None:
    config, expected = whole
    train(config, tmp_path, stop_event=StopAfter(9))
    with (tmp_path / config.run_id / "metrics.jsonl").open("a") as file:
        file.write('{"segment": "trunk", "st')
    assert train(config, tmp_path) == "done"
    assert outcome(config, tmp_path) == expected


def test_damaged_line_in_the_middle_is_an_error(whole: Any, tmp_path: Path) -> None:
    config, _ = whole
    train(config, tmp_path, stop_event=StopAfter(9))
    path = tmp_path / config.run_id / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "{broken", *lines[2:], ""]))
    with pytest.raises(RecordError, match=r"metrics.jsonl, line 2: cannot be read"):
        train(config, tmp_path)


def test_missing_records_before_the_checkpoint_are_an_error(whole: Any, tmp_path: Path) -> None:
    config, _ = whole
    train(config, tmp_path, stop_event=StopAfter(9))
    path = tmp_path / config.run_id / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
    with pytest.raises(RecordError, match=r"metrics.jsonl: ends before the checkpoint"):
        train(config, tmp_path)


def test_foreign_directory_is_refused(make_run: Any, tmp_path: Path) -> None:
    config, other = make_run(), make_run("optim.lr=1e-2")
    folder = tmp_path / config.run_id
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"schema": 1, **other.to_json()}))
    with pytest.raises(RecordError, match=f"{other.run_id}, not of {config.run_id}; move"):
        train(config, tmp_path)
    for text in ("{", "[]", '{"schema": 2}', '{"schema": 1, "colour": "red"}'):
        (folder / "config.json").write_text(text)
        with pytest.raises(RecordError, match=r"config.json.*move .* away"):
            train(config, tmp_path)
    assert [p.name for p in folder.iterdir()] == ["config.json"]


def test_load_model_explains_what_is_wrong(whole: Any, tmp_path: Path) -> None:
    config, _ = whole
    train(config, tmp_path)
    folder = tmp_path / config.run_id / "checkpoints"
    good = folder / f"milestone-{8 * config.tokens_per_step}.pt"
    model, stored = load_model(good)
    assert stored == config
    assert not model.training
    with pytest.raises(CheckpointError, match=r"no such checkpoint. Found beside it: milestone-"):
        load_model(folder / "milestone-1.pt")
    alone = tmp_path / good.name
    shutil.copy(good, alone)
    with pytest.raises(CheckpointError, match="copy that folder whole"):
        load_model(alone)
    flip_bit(good)
    with pytest.raises(CheckpointError, match=r"damaged .its SHA-256 has changed"):
        load_model(good)
    cut(good)
    with pytest.raises(CheckpointError, match="bytes instead of"):
        load_model(good)


@pytest.mark.parametrize("content", [b"not a zip", torch.zeros(3), {"weights": torch.zeros(2)}])
def test_foreign_checkpoints_are_named_so(make_run: Any, tmp_path: Path, content: Any) -> None:
    """Files with a correct checksum that Linscale did not write."""
    checkpoints = Checkpoints(tmp_path, "run", segments(make_run()))
    name, _ = checkpoints.save_milestone(1, {"model": {}})
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    entry = {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
    }
    manifest = {"schema": 1, "run_id": "run", "files": {name: entry}, "resume": []}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"not a (Linscale )?checkpoint"):
        load_model(path)


def test_checkpoint_code_cannot_run(make_run: Any, tmp_path: Path) -> None:
    """A pickle that would execute something is refused, whatever its checksum."""

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    checkpoints = Checkpoints(tmp_path, "run", segments(make_run()))
    name, _ = checkpoints.save_milestone(1, {"model": Evil()})
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_model(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_retention_keeps_what_a_fallback_needs(make_run: Any, tmp_path: Path) -> None:
    config = make_run("budget.checkpoint_every_tokens=128")  # every step
    for _ in range(4):
        train(config, tmp_path, stop_event=StopAfter(5))
        folder, point = newest(config, tmp_path)
        resume = {p.name for p in folder.glob("resume-*")}
        trunk = {name for name in resume if name.startswith("resume-trunk")}
        assert point["file"] in resume
        assert point["trunk_file"] in trunk
        assert len(trunk) == 2
        assert len(resume - trunk) == (0 if "trunk" in point["file"] else 1)
        manifest = json.loads((folder / "manifest.json").read_text())
        assert {p.name for p in folder.glob("*.pt")} == set(manifest["files"])


def test_states_of_a_sweep(make_run: Any, tmp_path: Path) -> None:
    assert read_states(tmp_path / "nowhere") == {}
    record = RunRecord(make_run(), tmp_path)
    record.create()
    assert record.state == "planned"
    record.write_status("failed", reason="because")
    assert (record.state, record.reason) == ("failed", "because")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "status.json").write_text('{"state": "do')
    assert read_states(tmp_path) == {record.path.name: "failed"}

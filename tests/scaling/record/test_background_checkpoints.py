"""Resume checkpoints are written while training goes on, and nothing is lost by that."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from scaling.config.schedule import segments
from scaling.record import checkpoints
from scaling.record.checkpoints import Checkpoints
from scaling.system.background import Background
from scaling.system.claims import CLAIM, ClaimLost, claim
from scaling.system.files import DiskError
from scaling.training.train import train
from tests.support.results import metrics


def test_training_goes_on_and_the_weights_are_those_of_the_step(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("parallel.workers=0")
    train(run, tmp_path / "undisturbed")
    release, plain = threading.Event(), checkpoints.write_checkpoint
    seen: list[bool] = []

    def slow(path: Path, *rest: Any) -> Any:
        if path.name == "resume-trunk-3.pt":
            assert release.wait(60)
        return plain(path, *rest)

    class FiveSteps:
        steps = 0

        def is_set(self) -> bool:
            self.steps += 1
            if self.steps == 5:  # two steps after the save, before the next
                file = tmp_path / "slow" / run.run_id / "checkpoints" / "resume-trunk-3.pt"
                seen.append(file.exists() or release.is_set())
                release.set()
                return True
            return False

    monkeypatch.setattr(checkpoints, "write_checkpoint", slow)
    assert train(run, tmp_path / "slow", stop_event=FiveSteps()) == "preempted"
    assert seen == [False]
    folder = tmp_path / "slow" / run.run_id
    manifest = json.loads((folder / "checkpoints" / "manifest.json").read_text())
    assert [point["step"] for point in manifest["resume"]] == [3, 5]
    # From the file of step 3, which was written two steps later.
    (folder / "checkpoints" / "resume-trunk-5.pt").unlink()
    assert train(run, tmp_path / "slow") == "done"
    assert metrics(run, folder.parent) == metrics(run, tmp_path / "undisturbed")
    assert "Falling back to step 3" in (folder / "log.txt").read_text()


def test_a_failed_write_ends_the_run_and_costs_the_way_to_the_checkpoint_before(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    train(run, tmp_path / "undisturbed")
    plain = checkpoints.write_checkpoint

    def full(path: Path, *rest: Any) -> Any:
        if path.name == "resume-trunk-6.pt":
            raise DiskError(f"{path}: cannot be written (the disk or quota is full).")
        return plain(path, *rest)

    monkeypatch.setattr(checkpoints, "write_checkpoint", full)
    with pytest.raises(DiskError, match="resume-trunk-6"):
        train(run, tmp_path / "full")
    folder = tmp_path / "full" / run.run_id
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"
    manifest = json.loads((folder / "checkpoints" / "manifest.json").read_text())
    assert manifest["resume"][-1]["step"] == 3
    monkeypatch.setattr(checkpoints, "write_checkpoint", plain)
    assert train(run, tmp_path / "full") == "done"
    assert metrics(run, folder.parent) == metrics(run, tmp_path / "undisturbed")


def test_what_is_being_written_when_the_run_becomes_anothers_never_appears(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    folder = tmp_path / run.run_id
    held = claim(folder)
    assert held is not None
    plain = checkpoints.write_checkpoint

    def robbed(path: Path, *rest: Any) -> Any:
        if path.name == "resume-trunk-6.pt":
            other = {"hostname": "elsewhere", "pid": 1, "since": 0.0}
            (folder / CLAIM).write_text(json.dumps(other))
        return plain(path, *rest)

    monkeypatch.setattr(checkpoints, "write_checkpoint", robbed)
    with held, pytest.raises(ClaimLost):
        train(run, tmp_path, stop_event=held.watching(threading.Event()))
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {
        "manifest.json",
        "resume-trunk-0.pt",
        "resume-trunk-3.pt",
    }
    manifest = json.loads((folder / "checkpoints" / "manifest.json").read_text())
    assert manifest["resume"][-1]["step"] == 3
    assert json.loads((folder / "status.json").read_text())["state"] == "running"


def test_what_changes_after_the_call_is_not_in_the_file(make_run: Any, tmp_path: Path) -> None:
    run = make_run()
    folder = Checkpoints(tmp_path, run.run_id, segments(run))
    weight = torch.zeros(1000, 1000)
    for step in (1, 2, 3):
        weight += 1
        folder.save_resume(0, step, 0.0, {"model": {"weight": weight}, "step": step})
        weight += 0.5
    point, content = folder.newest(pytest.fail)
    assert point is not None
    assert point.step == 3
    assert content["model"]["weight"].eq(4.0).all()


def test_one_piece_of_work_at_a_time_and_an_error_once() -> None:
    background, order = Background(), []

    def work(name: str) -> None:
        order.append(f"{name} begins")
        time.sleep(0.02)
        order.append(f"{name} ends")

    background.start(lambda: work("first"))
    background.start(lambda: work("second"))
    background.wait()
    assert order == ["first begins", "first ends", "second begins", "second ends"]

    def fail() -> None:
        raise DiskError("full")

    background.start(fail)
    with pytest.raises(DiskError):
        background.wait()
    background.wait()

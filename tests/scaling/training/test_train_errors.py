"""What goes wrong while training: one paragraph that names it, the state on disk, nothing lost."""

from __future__ import annotations

import errno
import json
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from linscale.errors import LinscaleError
from models.config import ConfigError
from scaling.record import checkpoint_files, record
from scaling.record.load_model import load_model
from scaling.record.record import read_states
from scaling.system import files
from scaling.system.files import DiskError, append_line, write_json
from scaling.training.module import TrainingModule
from scaling.training.train import train


def status(config: Any, sweep: Path) -> dict[str, Any]:
    return json.loads((sweep / config.run_id / "status.json").read_text())


def milestones(config: Any, sweep: Path) -> list[dict[str, Any]]:
    text = (sweep / config.run_id / "milestones.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_a_result(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    config = make_run()
    real, calls = TrainingModule.training_step, 0

    def broken(self: TrainingModule, batch: Any, batch_idx: int) -> Any:
        nonlocal calls
        calls += 1
        loss = real(self, batch, batch_idx)
        if calls == 12:  # trunk 6, branch 2, trunk 2, then step 10 of the second branch
            self.loss_sum += value
        return loss

    monkeypatch.setattr(TrainingModule, "training_step", broken)
    assert train(config, tmp_path) == "diverged"
    found = status(config, tmp_path)
    assert found["state"] == "diverged"
    assert f"the loss became {value} at step 10 of segment decay-1536" in found["reason"]
    assert "optim.lr" in found["reason"]
    # The milestone before is kept, its model can be loaded, and every line is valid JSON.
    (milestone,) = milestones(config, tmp_path)
    load_model(tmp_path / config.run_id / milestone["checkpoint"])
    lines = (tmp_path / config.run_id / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["loss"] < 10 for line in lines)
    # It is not tried again.
    calls = 0
    assert train(config, tmp_path) == "diverged"
    assert calls == 0


def test_a_gradient_that_is_no_number_is_a_result(make_run: Any, tmp_path: Path) -> None:
    """A learning rate that really blows up, without help."""
    config = make_run("optim.lr=1e20", "schedule.warmup_tokens=0", "optim.clip_norm=none")
    assert train(config, tmp_path) == "diverged"
    assert "became" in status(config, tmp_path)["reason"]


def test_model_vocabulary_too_small(make_run: Any, tmp_path: Path) -> None:
    config = make_run("model.vocab_size=100")
    with pytest.raises(
        ConfigError, match=r"model.vocab_size=100: the tokenizer bytes has 25\d tokens"
    ):
        train(config, tmp_path)
    assert status(config, tmp_path)["state"] == "failed"
    assert "model.vocab_size" in status(config, tmp_path)["reason"]


def test_missing_corpus_fails_and_can_be_mended(make_run: Any, tmp_path: Path) -> None:
    config = make_run(f"data.corpus=text:{tmp_path}/texts/*.txt")
    with pytest.raises(LinscaleError, match="texts"):
        train(config, tmp_path / "sweep")
    assert read_states(tmp_path / "sweep") == {config.run_id: "failed"}
    (tmp_path / "texts").mkdir()
    for number in range(20):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"text {number} " * 50)
    assert train(config, tmp_path / "sweep") == "done"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda_device(make_run: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"parallel.accelerator='cuda': there is no CUDA device"):
        train(make_run("parallel.accelerator=cuda"), tmp_path)


def test_unexpected_errors_leave_their_traceback(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_run()

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(TrainingModule, "training_step", broken)
    with pytest.raises(ZeroDivisionError):
        train(config, tmp_path)
    assert status(config, tmp_path)["reason"] == "ZeroDivisionError: by zero"
    assert "Traceback" in (tmp_path / config.run_id / "log.txt").read_text()
    monkeypatch.undo()


def test_interrupt_reaches_the_caller_and_its_handler_stays(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_run()

    def interrupted(*_: Any) -> Any:
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(TrainingModule, "on_train_start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert status(config, tmp_path)["state"] == "preempted"


# --- disk ---------------------------------------------------------------------------------------


class FullAfter:
    """Lets so many writes through and then reports a full disk."""

    def __init__(self, real: Any, writes: int) -> None:
        self.real, self.left = real, writes

    def __call__(self, *args: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.real(*args)


@pytest.mark.parametrize("writes", [0, 4, 11, 23])
def test_disk_full_at_any_time(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    config = make_run()
    train(config, tmp_path / "whole")
    full = FullAfter(files.os.fsync, writes)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(DiskError, match=r"the disk or quota is full.*intact.*make room"):
            train(config, tmp_path / "full")
    folder = tmp_path / "full" / config.run_id
    assert not list(folder.rglob("*.tmp"))
    assert train(config, tmp_path / "full") == "done"
    assert milestones(config, tmp_path / "full") == milestones(config, tmp_path / "whole")


def test_checkpoint_larger_than_the_file_size_limit(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operating system itself refuses the write, inside torch.save."""
    config = make_run()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
        with pytest.raises(DiskError, match=r"resume-trunk-0.pt: cannot be written"):
            train(config, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "resume-trunk-0.pt" in status(config, tmp_path)["reason"]
    assert train(config, tmp_path) == "done"


def test_replacing_keeps_the_old_file_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    monkeypatch.setattr(files.os, "fsync", FullAfter(files.os.fsync, 0))
    with pytest.raises(DiskError):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


def test_unwritable_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"cannot be written .not a directory"):
        append_line(tmp_path / "file" / "log.txt", "x")


def test_modules_share_one_way_to_write() -> None:
    assert record.write_json is files.write_json is checkpoint_files.write_json

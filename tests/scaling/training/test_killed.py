"""Trainers killed at any moment: given again, the command ends with the metrics and milestones of a
run that was left alone, identical to the last digit."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from scaling.config.run import RunConfig
from scaling.record import record
from scaling.record.record import read_states
from scaling.training.train import train
from tests.support.results import result

ROOT = Path(__file__).resolve().parents[3]


def _train_until_killed(values: dict[str, Any], sweep: str, cache: str, operation: int) -> None:
    """In a child: train, and die by SIGKILL at the n-th operation on the disk."""
    os.environ["LINSCALE_CACHE"] = cache
    torch.set_num_threads(1)
    count = 0

    def tick() -> None:
        nonlocal count
        count += 1
        if count == operation:
            os.kill(os.getpid(), signal.SIGKILL)

    real_fsync, real_replace, real_unlink = os.fsync, os.replace, os.unlink
    real_write, real_rename = os.write, os.rename

    def before(function: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            tick()
            return function(*args, **kwargs)

        return wrapped

    os.fsync, os.replace, os.unlink = map(before, (real_fsync, real_replace, real_unlink))
    os.write, os.rename = map(before, (real_write, real_rename))

    real_append = record.append_line

    def torn(path: Path, text: str) -> None:
        nonlocal count
        count += 1
        if count == operation:  # half a line reaches the file
            with path.open("a") as file:
                file.write(text[: len(text) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        real_append(path, text)
        tick()

    record.append_line = torn
    train(RunConfig.from_json(values), sweep)


def _kill_and_resume(config: RunConfig, sweep: Path, operations: list[int]) -> None:
    """Start the run again and again, each time killed at the next given operation, then finish."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["scaling.training.session"])
    for operation in [*operations, 0]:
        arguments = (config.to_json(), str(sweep), os.environ["LINSCALE_CACHE"], operation)
        process = context.Process(target=_train_until_killed, args=arguments)
        process.start()
        process.join(300)
        assert process.exitcode in (0, -signal.SIGKILL)
        if process.exitcode == 0 and operation:
            return  # the run ended before that many operations
    assert process.exitcode == 0


@pytest.mark.parametrize(
    ("kind", "seed", "faults"),
    [
        pytest.param("wsd", 0, 6, id="wsd"),
        pytest.param("cosine", 1, 3, id="cosine"),
        *(
            pytest.param(kind, seed, 8, marks=pytest.mark.slow, id=f"{kind}-{seed}")
            for kind in ("wsd", "cosine", "constant")
            for seed in range(2, 8)
        ),
    ],
)
def test_killed_at_any_operation_on_the_disk(
    make_run: Any, tmp_path: Path, kind: str, seed: int, faults: int
) -> None:
    config = make_run(f"schedule.kind={kind}", arch="tnl")
    train(config, tmp_path / "whole")
    draw = random.Random(seed)
    operations = [draw.randint(1, 70) for _ in range(faults)]
    _kill_and_resume(config, tmp_path / "killed", operations)
    assert result(config, tmp_path / "killed") == result(config, tmp_path / "whole")
    assert read_states(tmp_path / "killed") == {config.run_id: "done"}
    kept = {p.name for p in (tmp_path / "killed" / config.run_id / "checkpoints").iterdir()}
    horizons = [h * config.tokens_per_step for h in config.horizon_steps]
    last = config.horizon_steps[-1]
    end = {f"resume-trunk-{last - config.decay_steps(last)}.pt"} if kind == "wsd" else set()
    assert kept == {"manifest.json", *(f"milestone-{h}.pt" for h in horizons)} | end


@pytest.mark.slow
@pytest.mark.parametrize("operation", range(1, 190, 5))
def test_killed_twice_at_every_operation(make_run: Any, tmp_path: Path, operation: int) -> None:
    config = make_run(arch="cosformer2")
    train(config, tmp_path / "whole")
    _kill_and_resume(config, tmp_path / "killed", [operation, max(1, operation // 2)])
    assert result(config, tmp_path / "killed") == result(config, tmp_path / "whole")


def _rank_command(config: RunConfig, sweep: Path) -> list[str]:
    path = sweep.parent / "config.json"
    path.write_text(json.dumps(config.to_json()))
    return [sys.executable, "-m", "scaling.training.train", str(path), str(sweep)]


def _wait_for_line(process: subprocess.Popen[bytes], path: Path) -> None:
    deadline = time.monotonic() + 120
    while not (path.exists() and path.stat().st_size):
        assert process.poll() is None, "ended before it wrote a metric"
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
def test_a_process_killed_from_outside(
    make_run: Any, tmp_path: Path, number: signal.Signals
) -> None:
    config = make_run("budget.tokens=25600", "budget.checkpoint_every_tokens=none", arch="tnl")
    train(config, tmp_path / "whole")
    sweep = tmp_path / "killed"
    process = subprocess.Popen(_rank_command(config, sweep), cwd=ROOT)
    _wait_for_line(process, sweep / config.run_id / "metrics.jsonl")
    process.send_signal(number)
    status = process.wait(60)
    assert status == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    state = "running" if number == signal.SIGKILL else "preempted"
    assert read_states(sweep) == {config.run_id: state}
    assert train(config, sweep) == "done"
    assert result(config, sweep) == result(config, tmp_path / "whole")

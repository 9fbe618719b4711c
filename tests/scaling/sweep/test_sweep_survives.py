"""A sweep whose workers and launcher are killed ends in the record of one that was left alone.

By the command line, whose every process loads what training needs. The same kills, and 26 more
faults, are in tests/scaling/training/test_faults.py in every test run, with forked processes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scaling.config.experiment import load_experiment
from scaling.record.record import read_states
from scaling.sweep.launch import launch
from scaling.system.claims import holder

EXPERIMENT = """
from models.config import toy_config
from scaling.config.run import *

def runs():
    return [
        RunConfig(
            name=arch,
            model=toy_config(arch, 32, vocab_size=256, layers=1),
            data=DataConfig(sequence_length=32, batch_sequences=4, validation_blocks=4),
            schedule=ScheduleConfig(warmup_tokens=640),
            budget=BudgetConfig(
                tokens=240 * 128, horizons=(120 * 128,), checkpoint_every_tokens=20 * 128
            ),
            parallel=ParallelConfig(accelerator="cpu", threads=1),
        )
        for arch in ("llama", "tnl")
    ]
"""


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def start(folder: Path, cache: Path) -> subprocess.Popen[str]:
    """`linscale run` in a folder of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "tiny.py").write_text(EXPERIMENT)
    return subprocess.Popen(
        [sys.executable, "-m", "scaling.cli.main", "run", "tiny.py", "--jobs", "2"],
        cwd=folder,
        env=os.environ | {"LINSCALE_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def lines(sweep: Path, name: str) -> int:
    """Lines of metrics that a run has."""
    files = list(sweep.glob(f"{name}-????????/metrics.jsonl"))
    return files[0].read_bytes().count(b"\n") if files else 0


def kill_worker(sweep: Path, name: str, at: int) -> bool:
    """SIGKILL the worker of a run once it has so many lines of metrics; False if it has ended."""
    wait_for(lambda: lines(sweep, name) >= at, f"{at} lines of {name}")
    (run,) = sweep.glob(f"{name}-????????")
    held_by = holder(run)
    if held_by is None or not held_by.pid:
        return False
    os.kill(held_by.pid, signal.SIGKILL)
    return True


def milestones(sweep: Path) -> dict[str, bytes]:
    return {p.parent.name: p.read_bytes() for p in sorted(sweep.glob("*/milestones.jsonl"))}


@pytest.mark.slow
def test_kills_leave_no_trace_in_the_milestones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("LINSCALE_CACHE", str(cache))
    (tmp_path / "tiny.py").write_text(EXPERIMENT)
    experiment = load_experiment(tmp_path / "tiny.py", [])
    assert launch(experiment, tmp_path / "undisturbed", launcher="inline")
    expected = milestones(tmp_path / "undisturbed")
    assert len(expected) == 2
    assert all(content.count(b"\n") == 2 for content in expected.values())

    sweep = tmp_path / "killed" / "runs" / "tiny"
    first = start(tmp_path / "killed", cache)
    assert kill_worker(sweep, "llama", at=30)
    wait_for(lambda: lines(sweep, "tnl") >= 60, "tnl to get further")
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert "running" in read_states(sweep).values()  # it was killed in the middle
    second = start(tmp_path / "killed", cache)
    output, _ = second.communicate(timeout=300)
    assert second.returncode == 0, output
    assert set(read_states(sweep).values()) == {"done"}
    assert milestones(sweep) == expected

"""Launches of sweeps for tests: runs whose training is `fake_training`, and what they left."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from models.config import toy_config
from scaling.config.run import BudgetConfig, DataConfig, ParallelConfig, RunConfig
from scaling.record.record import read_states

STEPS = 10  # of fake_training
FAKE = "tests.support.fake_training:train"


def run_config(name: str, cache: Path, tokens: int = 640, **parallel: int) -> RunConfig:
    return RunConfig(
        name=name,
        model=toy_config("tnl", 32, vocab_size=256),
        data=DataConfig(
            corpus=f"jsonl:{cache}/corpus.jsonl",
            sequence_length=16,
            batch_sequences=4,
            validation_fraction=0.3,
        ),
        budget=BudgetConfig(tokens=tokens),
        parallel=ParallelConfig(accelerator="cpu", **parallel),  # type: ignore[arg-type]
    )


def states(sweep: Path) -> dict[str, str]:
    """Name of the run -> state."""
    return {run_id.rpartition("-")[0]: state for run_id, state in read_states(sweep).items()}


def steps(sweep: Path, name: str) -> list[int]:
    (path,) = sweep.glob(f"{name}-????????/steps")
    return [int(line) for line in path.read_text().splitlines()]


def started(sweep: Path) -> list[str]:
    return (sweep / "started").read_text().split()


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Generous: on a busy machine it only has to come true at all."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gate(sweep: Path, name: str) -> int:
    """Wait until a run is at its gate; the process that trains it."""
    path = sweep / f"at-gate-{name}"
    wait_for(lambda: path.exists() and path.read_text(), f"{name} at its gate")
    return int(path.read_text())


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=200)
    return process.returncode, output

"""Runs on several processes for tests: ranks as torchrun starts them, forked off the zygote.

A rank that imports Lightning takes seconds of CPU, a forked one milliseconds. That torchrun itself
starts and ends ranks as it should is in tests/scaling/training/test_rank_faults.py.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path

import pytest

from scaling.config.run import RunConfig
from scaling.system.claims import StopEvent
from scaling.training import module, parallel
from scaling.training import train as training
from tests.support.results import StopAfter
from tests.support.zygote import Forked

ROOT = Path(__file__).resolve().parents[2]

DOUBLE = """
from scaling.training import module
build = module.build_model
module.build_model = lambda config: build(config).double()
"""
"""The run in float64, where the order of additions shows in the last digits only."""


def start(program: str, arguments: list[str], ranks: int) -> int:
    """Run `program.main()` in so many processes; an exit status that is not 0, if there is one.

    Each has the environment variables that torchrun gives, and when one fails the others are sent
    SIGTERM, as torchrun does.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running: list[Forked] = []
    for rank in range(ranks):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks,
               "GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
               "TORCHELASTIC_RUN_ID": "none"}  # fmt: skip
        named = {key: str(value) for key, value in own.items()}
        command = [sys.executable, "-P", "-m", program, *arguments]
        running.append(Forked(command, stdout=1, stderr=2, env=dict(os.environ) | named))
    failed, told = 0, False
    while None in (found := [process.poll() for process in running]):
        failed = failed or next((status for status in found if status), 0)
        if failed and not told:
            told = True
            for process in running:
                process.send_signal(15)
        time.sleep(0.01)
    return failed or next((status for status in found if status), 0)


def train_ranks(config: RunConfig, sweep: Path, *, steps: int = 10**9, prelude: str = "") -> int:
    """Train with the ranks of the run, each of which asks for a stop after so many steps.

    Python in `prelude` runs before, with `stop` and `sweep`. Returns the ranks' exit status.
    """
    sweep.mkdir(exist_ok=True)
    wanted = [json.dumps(config.to_json()), str(sweep), str(steps), prelude]
    return start("tests.support.ranks", wanted, config.parallel.devices)


def main() -> None:
    """Be a rank of `train_ranks`."""
    config, sweep, steps, prelude = sys.argv[1:]
    stop = StopAfter(int(steps))
    exec(prelude, {"stop": stop, "sweep": sweep})
    training.train(RunConfig.from_json(json.loads(config)), sweep, stop_event=stop)


def run_ranks(
    config_path: Path, sweep_dir: Path, devices: int, stop: StopEvent | None, progress: bool
) -> int:
    """In the place of `scaling.training.parallel.run_ranks`, for a run that nobody stops."""
    assert stop is None
    assert not progress
    return start("scaling.training.train", [str(config_path), str(sweep_dir)], devices)


def fork_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """`train` forks the ranks of a run on several devices off the zygote."""
    monkeypatch.setattr(parallel, "run_ranks", run_ranks)


def in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `DOUBLE`, in this process."""
    build = module.build_model
    monkeypatch.setattr(module, "build_model", lambda config: build(config).double())

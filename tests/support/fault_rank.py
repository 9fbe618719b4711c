"""A rank of a run with faults at given steps, for `test_rank_faults`.

    python -m tests.support.fault_rank CONFIG.json SWEEP_DIR      in the place of
    scaling.training.train

`faults.json` in the sweep's directory lists the faults in their order. Every rank counts its steps;
the one that a fault is about writes a line to `faults.log` and executes it.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from scaling.config.run import RunConfig
from scaling.system import claims
from scaling.system.claims import StopEvent
from scaling.system.ranks import rank
from scaling.training import parallel
from scaling.training import train as training


def train(
    config: RunConfig, sweep_dir: Path, *, stop_event: StopEvent, progress: bool = False
) -> str:
    """For a worker: `scaling.training.train.train`, whose ranks are those of this module."""
    parallel.RANK_MODULE = "tests.support.fault_rank"
    return training.train(config, sweep_dir, stop_event=stop_event, progress=progress)


class _Faulty:
    """A stop event, asked once a step, that executes the next fault when its step has come."""

    def __init__(self, config: RunConfig, sweep_dir: Path, stop_event: StopEvent) -> None:
        self._stop, self._sweep_dir, self._run = stop_event, sweep_dir, sweep_dir / config.run_id
        self._log = sweep_dir / "faults.log"
        happened = len(self._log.read_text().splitlines()) if self._log.exists() else 0
        path = sweep_dir / "faults.json"
        faults = json.loads(path.read_text()) if path.exists() else []
        self._fault: Any = faults[happened] if happened < len(faults) else {"after": -1}
        self._steps = 0

    def is_set(self) -> bool:
        self._steps += 1
        if self._steps == self._fault["after"] and rank() == self._fault["rank"]:
            with self._log.open("a") as file:
                file.write(self._fault["kind"] + "\n")
            self._execute(*self._fault["kind"].split())
        return self._stop.is_set()

    def _execute(self, who: str, name: str) -> None:
        holder = claims.holder(self._run)
        assert holder is not None
        number = getattr(signal, name)
        if who in ("worker", "all"):
            os.kill(holder.pid, number)
        if who in ("torchrun", "all"):
            os.kill(os.getppid(), number)
        if who in ("rank", "all"):
            os.kill(os.getpid(), number)


def main() -> None:
    """Be a rank."""
    plain = training.train

    def faulty(config: RunConfig, sweep_dir: Path, *, stop_event: Any, progress: bool) -> str:
        event = _Faulty(config, sweep_dir, stop_event)
        return plain(config, sweep_dir, stop_event=event, progress=progress)

    training.train = faulty  # type: ignore[assignment]
    training.main()


if __name__ == "__main__":
    main()

"""Training and launching with faults at given steps, for `test_faults`.

    python -m tests.support.fault_training SWEEP_DIR [inline]      launches the runs of
    SWEEP_DIR/runs.json

`faults-<name>.json` in the sweep's directory lists the faults of a run in their order. Whoever
trains the run executes the next one after so many steps of its own and writes a line to
`faults-<name>.log`, so that each happens once, whatever it hits.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from scaling.config.experiment import Experiment
from scaling.config.run import RunConfig
from scaling.sweep import pool
from scaling.sweep.launch import launch
from scaling.system import claims
from scaling.system.claims import StopEvent
from scaling.training import callbacks
from scaling.training import train as training
from tests.support.zygote import Forked

# Everything that waits waits for less, and what a killed worker had reached is known sooner.
claims.HEARTBEAT_SECONDS = 0.1
pool.SILENT_SECONDS = 3.0
pool.RETRY_SECONDS = 0.1
pool.TICK_SECONDS = 0.02
callbacks.STATUS_SECONDS = 0.2


def train(
    config: RunConfig, sweep_dir: Path, *, stop_event: StopEvent, progress: bool = False
) -> str:
    """`scaling.training.train.train` with faults."""
    limits, flush = resource.getrlimit(resource.RLIMIT_FSIZE), os.fsync
    try:
        faulty = _Faulty(config, sweep_dir, stop_event)
        return training.train(config, sweep_dir, stop_event=faulty, progress=progress)
    finally:
        os.fsync = flush
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


class _Faulty:
    """A stop event, asked once a step, that executes the next fault when its step has come."""

    def __init__(self, config: RunConfig, sweep_dir: Path, stop_event: StopEvent) -> None:
        self._stop, self._sweep_dir = stop_event, sweep_dir
        self._run = sweep_dir / config.run_id
        self._log = sweep_dir / f"faults-{config.name}.log"
        happened = len(self._log.read_text().splitlines()) if self._log.exists() else 0
        path = sweep_dir / f"faults-{config.name}.json"
        faults = json.loads(path.read_text()) if path.exists() else []
        self._fault: Any = faults[happened] if happened < len(faults) else {"after": -1}
        self._steps = 0

    def is_set(self) -> bool:
        self._steps += 1
        if self._steps == self._fault["after"]:
            with self._log.open("a") as file:
                file.write(self._fault["kind"] + "\n")
            self._execute(**self._fault)
        return self._stop.is_set()

    def _execute(self, kind: str, size: int, **_: Any) -> None:
        who, _, name = kind.partition(" ")
        if name:
            number = getattr(signal, name)
            if who in ("launcher", "both"):
                os.kill(int((self._sweep_dir / "launcher").read_text()), number)
            if who in ("worker", "both"):
                os.kill(os.getpid(), number)
        elif kind == "full":
            most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
        elif kind == "flush":
            os.fsync = _no_space
        else:
            self._damage(kind)
            os.kill(os.getpid(), signal.SIGKILL)

    def _damage(self, kind: str) -> None:
        if kind == "torn":
            with (self._run / "metrics.jsonl").open("a") as file:
                file.write('{"segment": "trunk", "ste')
            return
        folder = self._run / "checkpoints"
        path = folder / json.loads((folder / "manifest.json").read_text())["resume"][-1]["file"]
        content = bytearray(path.read_bytes())
        if kind == "truncated":
            path.write_bytes(content[: len(content) // 2])
        elif kind == "flipped":
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        else:
            path.unlink()


def _no_space(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def main() -> None:
    """Launch the sweep."""
    sweep_dir = Path(sys.argv[1])
    runs = [RunConfig.from_json(run) for run in json.loads((sweep_dir / "runs.json").read_text())]
    experiment = Experiment(name="faults", path=Path("faults.py"), text="", runs=runs)
    if "inline" in sys.argv:
        sys.exit(0 if launch(experiment, sweep_dir, launcher="inline") else 1)
    (sweep_dir / "launcher").write_text(str(os.getpid()))
    subprocess.Popen = Forked  # type: ignore[assignment,misc]
    sys.exit(
        0
        if launch(experiment, sweep_dir, jobs=2, train="tests.support.fault_training:train")
        else 1
    )


if __name__ == "__main__":
    main()

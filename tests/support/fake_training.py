"""A training function without training, for the tests of the launcher.

It takes STEPS steps, each one line in the run's file `steps`, and goes on from those on resume. The
run's name says what happens on the way; the files `go` and `go-<name>` in the sweep directory let
runs pass their gate, so that tests wait for states and never for times.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from linscale.errors import LinscaleError
from scaling.config.run import RunConfig
from scaling.record.record import RunRecord
from scaling.system.orphans import die_with_parent

STEPS = 10


def train(
    config: RunConfig, sweep_dir: Path, *, stop_event: Any = None, progress: bool = False
) -> str:
    record = RunRecord(config, sweep_dir)
    if record.state in ("done", "diverged"):
        return record.state
    record.create()
    with (sweep_dir / "started").open("a") as file:
        file.write(config.name + "\n")
    _check_alone(record.path)
    steps = record.path / "steps"
    done = len(steps.read_text().splitlines()) if steps.exists() else 0
    kind = config.name.partition("-")[0]
    for step in range(done + 1, STEPS + 1):
        record.write_status("running", tokens=step * config.tokens_per_step, loss=1.0)
        if step == 5:
            outcome = _half_way(kind, config.name, sweep_dir, stop_event)
            if outcome == "diverged":
                record.write_status("diverged", reason="the loss became nan")
                return "diverged"
        if stop_event is not None and stop_event.is_set():
            record.write_status("preempted", reason="asked to stop")
            (record.path / "alone").unlink()
            return "preempted"
        with steps.open("a") as file:
            file.write(f"{step}\n")
        if kind == "stumbles":  # dies at every step, and gets further each time
            os.kill(os.getpid(), signal.SIGKILL)
    (record.path / "alone").unlink()
    record.write_status("done", tokens=STEPS * config.tokens_per_step)
    return "done"


def _half_way(kind: str, name: str, sweep_dir: Path, stop_event: Any) -> str:
    if kind == "fails" and not (sweep_dir / "mended").exists():
        raise LinscaleError("the disk is made of cheese")
    if kind == "breaks":
        raise ZeroDivisionError("no one expected this")
    if kind == "parent":  # starts a process that outlives a kill, as a run on several devices does
        me = os.getpid()
        child = subprocess.Popen(
            ["sleep", "1000"], preexec_fn=lambda: die_with_parent(me, signal.SIGTERM)
        )
        (sweep_dir / f"child-{child.pid}").touch()
        if len(list(sweep_dir.glob("child-*"))) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    if kind == "crashes":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "diverges":
        return "diverged"
    if kind in ("waits", "stubborn"):
        (sweep_dir / f"at-gate-{name}").write_text(str(os.getpid()))
        while not (sweep_dir / "go").exists() and not (sweep_dir / f"go-{name}").exists():
            if kind == "waits" and stop_event is not None and stop_event.is_set():
                break
            time.sleep(0.01)
        (sweep_dir / f"at-gate-{name}").unlink()
    return ""


def _check_alone(run_dir: Path) -> None:
    """Leave a trace if another living process trains the same run."""
    path = run_dir / "alone"
    if path.exists():
        other = int(path.read_text() or 0)
        if other != os.getpid() and Path(f"/proc/{other}").exists():
            (run_dir.parent / "two-at-once").write_text(f"{run_dir.name}: {other}, {os.getpid()}")
    path.write_text(str(os.getpid()))

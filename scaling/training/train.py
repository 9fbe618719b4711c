"""One run end to end; resuming is the default.

    python -m scaling.training.train CONFIG.json SWEEP_DIR      what torchrun starts for each device

This module imports neither torch nor Lightning until there is something to train, so that going
over a sweep that is done takes no time.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from linscale.code_search import search_also
from linscale.errors import LinscaleError
from linscale.os_errors import sentence
from models.config import ConfigError
from scaling.config.run import RunConfig
from scaling.record.head import ENDED, State, read_config
from scaling.record.record import RunRecord
from scaling.system.orphans import die_with_parent
from scaling.system.ranks import is_rank, rank
from scaling.training import parallel

if TYPE_CHECKING:
    from scaling.system.claims import StopEvent


def train(
    config: RunConfig,
    sweep_dir: Path | str,
    *,
    stop_event: StopEvent | None = None,
    progress: bool = False,
) -> State:
    """Train a run, or go on with it, in `sweep_dir/<run_id>`.

    A run that was killed at any moment and is started again ends with the same metrics and
    milestones (wall time and speeds apart) as one that was not, on the same number of threads and
    devices. Random state, threads and determinism settings of the caller are left as they were.

    Args:
        config: the run.
        sweep_dir: directory of the sweep; the run's own is made inside.
        stop_event: when set, the run is saved at the end of the current step and left `preempted`.
        progress: show a progress bar on standard error.

    Returns:
        `done`; `diverged` (a result: such a run is not tried again); `stopped`, early, as was asked
        for (`scaling.record.early`); or `preempted`.

    Raises:
        LinscaleError: what the user can mend: data, devices, disk, a foreign directory. The state
            is then `failed` with the message as its reason, and what was saved is intact. Other
            exceptions leave the state `failed` too, with the traceback in log.txt.
    """
    record = RunRecord(config, Path(sweep_dir))
    state = record.state
    if state in ENDED:
        return state
    is_main = rank() == 0
    try:
        if is_main:
            record.create()
            record.write_status("running")
        if config.parallel.distributed and not is_rank():
            return _train_in_ranks(config, record, stop_event, progress)
        from scaling.training.session import run_session

        return run_session(config, record, stop_event, progress)
    except KeyboardInterrupt:
        _mark(record, is_main, "preempted", "interrupted; run again to continue")
        raise
    except LinscaleError as error:
        _mark(record, is_main, "failed", str(error))
        raise
    except Exception as error:
        words = sentence(error) if isinstance(error, OSError) else None
        reason = words or f"{type(error).__name__}: {error}"
        _mark(record, is_main, "failed", reason, traceback.format_exc())
        raise


def _train_in_ranks(
    config: RunConfig, record: RunRecord, stop_event: StopEvent | None, progress: bool
) -> State:
    path, devices = record.path / "config.json", config.parallel.devices
    if config.parallel.nodes > 1:
        raise ConfigError(
            f"parallel.nodes={config.parallel.nodes}: this process is one of one node. Start the "
            "ranks on every node with: PYTHONSAFEPATH=1 torchrun "
            f"--nnodes {config.parallel.nodes} "
            f"--nproc-per-node {devices} -m scaling.training.train {path} {record.path.parent}"
        )
    status = parallel.run_ranks(path, record.path.parent, devices, stop_event, progress)
    state, asked = record.state, stop_event is not None and stop_event.is_set()
    if state in ENDED or (state == "preempted" and (asked or status == 0)):
        return state
    # A rank that fails takes the others down, which then call themselves preempted.
    why = record.reason if state == "failed" else f"a process ended with exit status {status}"
    raise LinscaleError(f"run {record.path.name}: {why}")


def _mark(record: RunRecord, is_main: bool, state: State, reason: str, details: str = "") -> None:
    """Leave state and reason on disk, as far as the disk allows."""
    if is_main:
        with suppress(LinscaleError):
            record.write_status(state, reason=reason)
        with suppress(LinscaleError):
            record.log(f"{state}: {reason}" + (f"\n{details}" if details else ""))


def main() -> None:
    """Train as one rank of a run. SIGTERM, SIGUSR1 and SIGINT save at the next step and end."""
    parser = argparse.ArgumentParser(description="Train one run, or one rank of it.")
    parser.add_argument("config", type=Path, help="JSON file of a RunConfig")
    parser.add_argument("sweep_dir", type=Path)
    parser.add_argument("--progress", action="store_true")
    arguments = parser.parse_args()
    search_also(Path.cwd())
    if is_rank():
        die_with_parent(os.getppid(), signal.SIGKILL)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        config = read_config(arguments.config)
        train(config, arguments.sweep_dir, stop_event=stop, progress=arguments.progress)
    except LinscaleError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

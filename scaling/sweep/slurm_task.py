"""One run as a task of SLURM.

On several nodes there is one task a node, and torchrun's ranks find each other at a port of the
first. A while before the time limit, and at a preemption with a grace time, SLURM sends SIGUSR2:
the run is saved at the end of the step under way, and the job requeued. SIGTERM (`scancel`, or a
preemption in which SLURM itself requeues) saves and ends.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from linscale.code_search import search_also
from linscale.errors import LinscaleError
from scaling.config.run import RunConfig
from scaling.record.head import ENDED, read_head
from scaling.sweep.worker import attempt, find
from scaling.system.claims import STALE_SECONDS
from scaling.system.files import write_json

BUSY_SECONDS = 2 * STALE_SECONDS
"""How long a task waits for the claim of a node that died to run out."""


class SlurmRun:
    """One run as a SLURM task; submitit pickles it and calls it on the node."""

    def __init__(self, config: RunConfig, sweep_dir: Path, train: str) -> None:
        self.values, self.sweep_dir, self.train = config.to_json(), str(sweep_dir), train

    def __call__(self) -> str:
        """Train; returns the state, unless the job is requeued, which ends the process.

        Raises:
            LinscaleError: the run failed. SLURM then shows the job as failed.
        """
        search_also()
        config, stop = RunConfig.from_json(self.values), threading.Event()
        sweep_dir = Path(self.sweep_dir)
        with _take_signals(stop) as signals:
            if int(os.environ.get("SLURM_PROCID", "0")):  # the first node has the claim
                return train_on_nodes(config, sweep_dir, stop_event=stop)
            train = find(self.train) if config.parallel.nodes == 1 else train_on_nodes
            outcome = attempt(config, sweep_dir, train, stop)
            deadline = time.monotonic() + BUSY_SECONDS
            while outcome.state == "busy" and time.monotonic() < deadline and not stop.wait(5.0):
                outcome = attempt(config, sweep_dir, train, stop)
        if outcome.state == "failed":
            raise LinscaleError(f"run {config.run_id}: {outcome.reason}")
        if outcome.state == "preempted" and signals.requeue is not None:
            signals.requeue()
        return outcome.state

    def checkpoint(self) -> Any:
        """What submitit submits in place of a job that it requeues: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def train_on_nodes(
    config: RunConfig,
    sweep_dir: Path,
    *,
    stop_event: threading.Event | None = None,
    progress: bool = False,
) -> str:
    """This node's share of a run on several: torchrun, whose ranks meet those of the other nodes.

    Returns:
        The state of the run.

    Raises:
        LinscaleError: the ranks of this node failed.
    """
    from submitit import JobEnvironment

    from scaling.training.parallel import run_ranks

    job = JobEnvironment()
    # Jobs that share a first node meet at ports of their own.
    where = f"{job.hostnames[0]}:{20_000 + int(job.raw_job_id) % 20_000}"
    meeting = (
        *("--nnodes", str(config.parallel.nodes), "--node-rank", str(job.node)),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", where, "--rdzv-id", job.job_id),
    )
    path = sweep_dir / "slurm" / f"{config.run_id}-{job.node}.json"
    write_json(path, config.to_json())
    devices = config.parallel.devices
    status = run_ranks(path, sweep_dir, devices, stop_event, progress, meeting)
    head = read_head(sweep_dir / config.run_id)
    if head.state in ENDED or (head.state == "preempted" and status == 0):
        return head.state
    why = head.reason if head.state == "failed" else f"a process ended with exit status {status}"
    raise LinscaleError(f"run {config.run_id}: {why}")


class _Signals:
    """What a task has been told by signals."""

    def __init__(self) -> None:
        self.requeue: Any = None
        """Requeues the job and ends the process; None until it is asked for."""


@contextmanager
def _take_signals(stop: threading.Event) -> Iterator[_Signals]:
    """SIGUSR2 asks for a stop and a requeue, SIGTERM and SIGUSR1 for a stop.

    submitit's own handler of its signal saves and requeues inside the handler, in the middle of a
    step. Here it is called when the run has been saved.
    """
    signals = _Signals()
    number = getattr(signal, "SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2"))
    numbers = {signal.SIGTERM, signal.SIGUSR1, number}
    before = {n: signal.getsignal(n) for n in numbers}

    def handle(received: int, _: object) -> None:
        if received == number and callable(by_submitit := before[number]):
            signals.requeue = lambda: by_submitit(number, None)
        stop.set()

    for n in numbers:
        signal.signal(n, handle)
    try:
        yield signals
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)

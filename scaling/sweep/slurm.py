"""SLURM through submitit: a sweep becomes one job array for each kind of job it needs.

1. `Resources` of a run: its nodes, devices and threads from `parallel`, memory and hours from the
   plan. All tasks of a SLURM array have the same resources, so runs with equal ones share an
   array; a sweep of one kind of run is one array.
2. `submit` writes the batch scripts and calls `sbatch`. Runs that have ended or are under way are
   left out, and every task claims its run, so that submitting twice trains nothing twice.
3. A task (`SlurmRun`) trains its run; on several nodes there is one a node, and torchrun's ranks
   find each other at a port of the first. A while before the time limit, and at a preemption with a
   grace time, SLURM sends SIGUSR2: the run is saved at the end of the step under way, and the job
   requeued. SIGTERM (`scancel`, or a preemption in which SLURM itself requeues) saves and ends.

Logs and pickles of submitit lie in `<sweep>/slurm`. The sweep directory, the data cache and the
environment must be on a file system that the nodes share.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linscale.code_search import child_variables, search_also
from linscale.errors import LinscaleError
from models.config import ConfigError
from scaling.config.run import RunConfig
from scaling.plan.plan import rung
from scaling.record.head import read_head
from scaling.sweep.worker import attempt, find
from scaling.system.claims import STALE_SECONDS, holder
from scaling.system.devices import GIB, device_for
from scaling.system.files import write_json

SIGNAL_SECONDS = 180
"""How long before the time limit a task is told to save: room for a long step and a checkpoint."""
MARGIN = 1.5
"""Requested time over the planned one; a run that needs more is requeued and goes on."""
START_MINUTES = 10
"""Added to every request: start of the processes and validation."""
BUSY_SECONDS = 2 * STALE_SECONDS
"""How long a task waits for the claim of a node that died to run out."""


@dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    """What the user says about the cluster."""

    partition: str | None = None
    """Partition; None: the cluster's default."""
    time: str | None = None
    """Limit of one job as SLURM writes it (`30`, `12:00:00`, `2-00:00:00`); None: from the plan."""
    extra: dict[str, str] = field(default_factory=dict)
    """Further `sbatch` options, such as `account` or `constraint`."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one kind of job asks for."""

    nodes: int
    gpus_per_node: int
    """0 for a run on CPUs."""
    cpus_per_task: int
    memory_gib: int
    """Host memory of a node."""


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """One array in the queue."""

    job_id: str
    resources: Resources
    minutes: int
    run_ids: tuple[str, ...]


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
    if head.state in ("done", "diverged") or (head.state == "preempted" and status == 0):
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


def resources(config: RunConfig, memory: float) -> Resources:
    """Devices and threads of `parallel`; `memory`: bytes that all devices of a node need."""
    parallel = config.parallel
    on_cpu = parallel.accelerator == "cpu"
    per_device = (parallel.threads or 1) if on_cpu else max(4, parallel.threads or 1)
    return Resources(
        nodes=parallel.nodes,
        gpus_per_node=0 if on_cpu else parallel.devices,
        cpus_per_task=parallel.devices * (per_device + parallel.workers),
        memory_gib=4 + math.ceil(1.25 * memory / GIB),
    )


def minutes(text: str) -> int:
    """A time limit as SLURM writes it, in whole minutes.

    Raises:
        ConfigError: not a time.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise ConfigError(
            f"time={text!r}: write minutes (90), HH:MM:SS (12:00:00) or D-HH:MM:SS (2-00:00:00)."
        )
    days, first, second, third = (int(part or 0) for part in match.groups())
    if match.group(1) is None and match.group(4) is None:  # minutes and seconds
        days, first, second, third = 0, 0, first, second
    return max(1, math.ceil((days * 24 + first) * 60 + second + third / 60))


def submit(
    configs: list[RunConfig], sweep_dir: Path, options: SlurmOptions, train: str
) -> list[Submitted]:
    """Submit the runs that have neither ended nor are being trained.

    Args:
        configs: the runs.
        sweep_dir: where their records go.
        options: partition and the like.
        train: `MODULE:FUNCTION` with the signature of `scaling.training.train.train`.

    Raises:
        LinscaleError: submitit or SLURM is missing, a rung does not fit its devices, or `sbatch`
            refuses.
        ConfigError: a time limit that is none.
    """
    _refuse_lines(sweep_dir, options)
    executor_class = _executor_class()
    limit = None if options.time is None else minutes(options.time)
    groups: dict[Resources, list[tuple[RunConfig, int]]] = {}
    device = device_for(configs)
    for config in configs:
        state = read_head(sweep_dir / config.run_id).state
        if state in ("done", "diverged") or holder(sweep_dir / config.run_id) is not None:
            continue
        planned = rung(config, device)
        world = config.parallel.world_size
        if planned.devices > world:
            raise LinscaleError(
                f"{config.name}: needs {planned.devices} devices of kind {device.name} to hold it, "
                f"and parallel.devices={config.parallel.devices} x parallel.nodes="
                f"{config.parallel.nodes} are {world}; give it more (--nodes), with "
                "parallel.strategy=fsdp."
            )
        needs = resources(config, planned.memory_per_device * config.parallel.devices)
        wanted = START_MINUTES + math.ceil(60 * MARGIN * planned.device_hours / world)
        groups.setdefault(needs, []).append((config, wanted))
    arrays: list[Submitted] = []
    for needs, members in groups.items():
        time_limit = max(wanted for _, wanted in members) if limit is None else limit
        executor = executor_class(
            sweep_dir / "slurm",
            max_num_timeout=1_000_000,
            python=f"{shlex.quote(sys.executable)} -P",
        )
        executor.update_parameters(**_parameters(sweep_dir.name, needs, time_limit, options))
        with _sbatch_errors(), executor.batch():
            jobs = [
                executor.submit(SlurmRun(config, sweep_dir.resolve(), train))
                for config, _ in members
            ]
        ids = tuple(config.run_id for config, _ in members)
        job_id = str(jobs[0].job_id).partition("_")[0]
        array = Submitted(job_id=job_id, resources=needs, minutes=time_limit, run_ids=ids)
        arrays.append(array)
    return arrays


def _refuse_lines(sweep_dir: Path, options: SlurmOptions) -> None:
    """submitit writes options and paths into a shell script, a line each: what holds a line end, or
    another control character, would be lines of its own there, which are run.

    Raises:
        ConfigError: one does.
    """
    named = {
        "--out": str(sweep_dir.resolve()),
        "--partition": options.partition or "",
        "--time": options.time or "",
        "the Python interpreter": sys.executable,
        **{f"--slurm {name}": value for name, value in options.extra.items()},
        **child_variables(),
    }
    for name, value in named.items():
        if bad := next((c for c in value if not c.isprintable()), None):
            raise ConfigError(
                f"{name}={value!r}: holds {bad!r}, and would end a line of the batch script; "
                "leave it out, or rename the folder."
            )


def describe(array: Submitted) -> str:
    """One line for people."""
    needs = array.resources
    gpus = f", {needs.gpus_per_node} GPUs" if needs.gpus_per_node else ""
    return (
        f"job {array.job_id}: {len(array.run_ids)} runs, each on {needs.nodes} node(s) with "
        f"{needs.cpus_per_task} cores{gpus}, {needs.memory_gib} GiB, at most {array.minutes} min"
    )


def _parameters(
    sweep: str, needs: Resources, time_limit: int, options: SlurmOptions
) -> dict[str, Any]:
    """Options of submitit's executor."""
    cpus = needs.cpus_per_task
    values: dict[str, Any] = {
        "job_name": f"linscale-{sweep}",
        "time": time_limit,
        "nodes": needs.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": cpus,
        "mem": f"{needs.memory_gib}GB",
        "signal_delay_s": min(SIGNAL_SECONDS, 30 * time_limit),
        "stderr_to_stdout": True,
        "setup": [f"export {k}={shlex.quote(v)}" for k, v in child_variables().items()],
        # srun takes no cpus-per-task from its batch script since SLURM 22.05.
        "srun_args": [f"--cpus-per-task={cpus}"],
        "additional_parameters": {"requeue": True, **options.extra},
    }
    if needs.gpus_per_node:
        values["gpus_per_node"] = needs.gpus_per_node
    if options.partition is not None:
        values["partition"] = options.partition
    return values


def _executor_class() -> Any:
    """submitit's executor, on a machine where jobs can be submitted."""
    try:
        from submitit import SlurmExecutor
    except ImportError:
        raise LinscaleError(
            "the SLURM launcher needs submitit; install it with: pip install 'linscale[slurm]'"
        ) from None
    for command in ("sbatch", "srun"):
        if shutil.which(command) is None:
            raise LinscaleError(
                f"{command}: not found; --launcher slurm runs on a login node of a SLURM cluster. "
                "Without one, use --launcher local."
            )
    return SlurmExecutor


@contextmanager
def _sbatch_errors() -> Iterator[None]:
    """What `sbatch` says about a request that it refuses, as one paragraph."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        yield
    except (FailedJobError, FailedSubmissionError) as error:
        details = " ".join(str(error).split())
        raise LinscaleError(
            f"sbatch refused the request: {details[-400:]} Mend --partition, --time or --slurm and "
            "give the same command again."
        ) from error


def parse_extra(assignments: list[str]) -> dict[str, str]:
    """`["account=physics"]` as a table of `sbatch` options.

    Raises:
        ConfigError: one is not `name=value`, or is set in another way.
    """
    extra: dict[str, str] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not re.fullmatch(r"[a-z][a-z-]*", name):
            raise ConfigError(f"--slurm {assignment!r}: write an sbatch option as name=value.")
        if name in ("array", "nodes", "ntasks", "ntasks-per-node", "signal", "time", "partition"):
            raise ConfigError(
                f"--slurm {assignment!r}: {name} follows from the plan, --time and --partition."
            )
        extra[name] = value
    return extra

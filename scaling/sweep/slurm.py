"""SLURM through submitit: a sweep becomes one job array for each kind of job it needs.

1. `Resources` of a run: its nodes, devices and threads from `parallel`, memory and hours from the
   plan. All tasks of a SLURM array have the same resources, so runs with equal ones share an
   array; a sweep of one kind of run is one array.
2. `submit` writes the batch scripts and calls `sbatch`. Runs that have ended or are under way are
   left out, and every task claims its run, so that submitting twice trains nothing twice.
3. A task trains its run (`scaling.sweep.slurm_task`).

Logs and pickles of submitit lie in `<sweep>/slurm`. The sweep directory, the data cache and the
environment must be on a file system that the nodes share.
"""

from __future__ import annotations

import math
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from linscale.code_search import child_variables
from linscale.errors import LinscaleError
from models.config import ConfigError
from scaling.config.run import RunConfig
from scaling.plan.plan import placed, rung
from scaling.record.head import ENDED, read_head
from scaling.sweep.slurm_queue import longest, minutes, record_jobs
from scaling.sweep.slurm_task import SlurmRun
from scaling.system.claims import holder
from scaling.system.devices import GIB, device_for
from scaling.system.words import counted, wall

SIGNAL_SECONDS = 180
"""How long before the time limit a task is told to save: room for a long step and a checkpoint."""
MARGIN = 1.5
"""Requested time over the planned one; a run that needs more is requeued and goes on."""
START_MINUTES = 10
"""Added to every request: start of the processes and validation."""


@dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    """What the user says about the cluster."""

    partition: str | None = None
    """Partition; None: the cluster's default."""
    time: str | None = None
    """Limit of one job as SLURM writes it (`30`, `12:00:00`, `2-00:00:00`); None: from the plan."""
    nodes: int | None = None
    """Nodes that a run may have (`scaling.plan.plan.placed`)."""
    gpus_per_node: int = 8
    """Devices of a node."""
    device: str = ""
    """Kind of device (`scaling.system.devices`), which decides how many a run needs."""
    at_most: int | None = None
    """Tasks of an array that may run at once; None: as many as SLURM lets."""
    setup: tuple[str, ...] = ()
    """Lines of shell before the run, such as `module load cuda`."""
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
    planned_minutes: int
    """What the longest run is expected to take; more than `minutes` goes on in a requeued job."""
    run_ids: tuple[str, ...]
    script: str = ""
    """The batch script, of a dry run."""


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


def submit(
    configs: list[RunConfig],
    sweep_dir: Path,
    options: SlurmOptions,
    train: str,
    *,
    places: bool = True,
    dry_run: bool = False,
) -> list[Submitted]:
    """Submit the runs that have neither ended nor are being trained.

    Args:
        configs: the runs.
        sweep_dir: where their records go.
        options: partition and the like.
        train: `MODULE:FUNCTION` with the signature of `scaling.training.train.train`.
        places: give runs the devices that training needs; otherwise they have those they name.
        dry_run: write and submit nothing; the result has the scripts.

    Raises:
        LinscaleError: submitit or SLURM is missing, or `sbatch` refuses.
        ConfigError: a rung does not fit the devices, or a time limit is none, or longer than the
            partition allows.
    """
    _refuse_lines(sweep_dir, options)
    executor_class = _executor_class(dry_run)
    device = device_for(configs, options.device)
    groups: dict[Resources, list[tuple[RunConfig, int]]] = {}
    for config in configs:
        state = read_head(sweep_dir / config.run_id).state
        if state in ENDED or holder(sweep_dir / config.run_id) is not None:
            continue
        run = config
        if places:
            run = placed(config, device, options.nodes, options.gpus_per_node)
        planned = rung(run, device)
        needs = resources(run, planned.memory_per_device * run.parallel.devices)
        wanted = START_MINUTES + math.ceil(60 * MARGIN * planned.wall_hours)
        groups.setdefault(needs, []).append((run, wanted))
    arrays: list[Submitted] = []
    for needs, members in groups.items():
        planned_minutes = max(wanted for _, wanted in members)
        time_limit = _time_limit(planned_minutes, options)
        folder = sweep_dir / "slurm"
        python = f"{shlex.quote(sys.executable)} -P"
        ids = tuple(run.run_id for run, _ in members)
        parameters = _parameters(sweep_dir.name, needs, time_limit, options)
        job_id, script = "", ""
        if dry_run:
            script = _script(parameters, folder, python, len(ids))
        else:
            executor = executor_class(folder, max_num_timeout=1_000_000, python=python)
            executor.update_parameters(**parameters)
            with _sbatch_errors(), executor.batch():
                jobs = [
                    executor.submit(SlurmRun(run, sweep_dir.resolve(), train)) for run, _ in members
                ]
            job_id = str(jobs[0].job_id).partition("_")[0]
            record_jobs(sweep_dir, job_id, ids)
        arrays.append(
            Submitted(
                job_id=job_id, resources=needs, minutes=time_limit,
                planned_minutes=planned_minutes, run_ids=ids, script=script,
            )
        )  # fmt: skip
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
        **{f"--setup (line {i})": line for i, line in enumerate(options.setup, 1)},
        **child_variables(),
    }
    for name, value in named.items():
        if bad := next((c for c in value if not c.isprintable()), None):
            raise ConfigError(
                f"{name}={value!r}: holds {bad!r}, and would end a line of the batch script; "
                "leave it out, or rename the folder."
            )


def _time_limit(planned: int, options: SlurmOptions) -> int:
    """Minutes to ask for: the limit given, or what the plan says, up to what the partition allows.

    Raises:
        ConfigError: the limit given is longer than the partition allows.
    """
    most = longest(options.partition)
    where = f"partition {options.partition}" if options.partition else "the default partition"
    if options.time is None:
        return planned if most is None else min(planned, most)
    asked = minutes(options.time)
    if most is not None and asked > most:
        raise ConfigError(
            f"--time {options.time}: {where} allows {most} minutes; ask for at most that. A run "
            "that needs longer saves, is requeued and goes on."
        )
    return asked


def _script(parameters: dict[str, Any], folder: Path, python: str, tasks: int) -> str:
    """The batch script that submitit would hand to sbatch."""
    from submitit.slurm.slurm import SlurmExecutor, _make_sbatch_string

    command = f"{python} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    mapped: dict[str, Any] = {"map_count": tasks} if tasks > 1 else {}
    known = cast("dict[str, str]", SlurmExecutor._equivalence_dict() or {})
    named = {known.get(name, name): value for name, value in parameters.items()}
    return _make_sbatch_string(command=command, folder=folder, **(named | mapped))


def describe(array: Submitted) -> str:
    """One line for people."""
    needs = array.resources
    gpus = f", {counted(needs.gpus_per_node, 'GPU')}" if needs.gpus_per_node else ""
    name = f"job {array.job_id}" if array.job_id else "would submit"
    text = (
        f"{name}: {counted(len(array.run_ids), 'run')}, each on {counted(needs.nodes, 'node')} "
        f"with {counted(needs.cpus_per_task, 'core')}{gpus}, {needs.memory_gib} GiB, at most "
        f"{wall(60 * array.minutes)}"
    )
    if array.planned_minutes > array.minutes:
        jobs = math.ceil(array.planned_minutes / array.minutes)
        text += (
            f"; the longest may need {wall(60 * array.planned_minutes)}: it saves, is requeued "
            f"and goes on, about {jobs - 1} times"
        )
    return text


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
        "setup": [
            *(f"export {k}={shlex.quote(v)}" for k, v in child_variables().items()),
            *options.setup,
        ],
        # srun takes no cpus-per-task from its batch script since SLURM 22.05.
        "srun_args": [f"--cpus-per-task={cpus}"],
        "additional_parameters": {"requeue": True, **options.extra},
    }
    if options.at_most is not None:
        values["array_parallelism"] = options.at_most
    if needs.gpus_per_node and "gres" not in options.extra:
        values["gpus_per_node"] = needs.gpus_per_node
    if options.partition is not None:
        values["partition"] = options.partition
    return values


def _executor_class(dry_run: bool) -> Any:
    """submitit's executor, on a machine where jobs can be submitted, or for a script to look at."""
    try:
        from submitit import SlurmExecutor
    except ImportError:
        raise LinscaleError(
            "the SLURM launcher needs submitit; install it with: pip install submitit"
        ) from None
    if dry_run:
        return SlurmExecutor
    for command in ("sbatch", "srun"):
        if shutil.which(command) is None:
            raise LinscaleError(
                f"{command}: not found; --launcher slurm runs on a login node of a SLURM cluster. "
                "Without one, use --launcher local, or --dry-run to see the script."
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

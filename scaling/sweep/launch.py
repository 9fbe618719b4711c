"""Launching a sweep: which runs are left, on what, and what came of it.

1. Runs that are done or diverged are left out. The data of the others is prepared once, here, where
   its progress and its errors can be seen.
2. The sweep's record, `sweep.json`, is written.
3. `local`: a pool of worker processes trains them (`scaling.sweep.pool`). `inline`: this process
   does, one after the other, which is what a debugger wants. `slurm`: they are submitted
   (`scaling.sweep.slurm`), and this process ends.
4. A summary says how each ended, or which jobs are in the queue.

A launch never needs to know of another: runs are claimed one by one (`scaling.system.claims`), so
the same command in a second terminal helps, and after a crash it resumes.
"""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from linscale.json_reader import as_list, is_name
from linscale.terminal import console, say, shows_progress, tell
from models.architecture import show_children
from models.config import ConfigError
from scaling.config.experiment import Experiment
from scaling.config.run import RunConfig
from scaling.data.prepare import prepare
from scaling.plan.costs import flops
from scaling.plan.plan import trained_tokens
from scaling.record.data_identity import consent
from scaling.record.head import ENDED, SCHEMA, read_head
from scaling.record.precision import check_precision
from scaling.sweep.display import SweepDisplay
from scaling.sweep.fuse import attempt_together, fused, groups
from scaling.sweep.pool import RETRY_SECONDS, Pool
from scaling.sweep.slurm import SlurmOptions, describe, submit
from scaling.sweep.task import Task, waits_for
from scaling.sweep.worker import attempt, find
from scaling.system.claims import exclusive, holder
from scaling.system.devices import cores
from scaling.system.files import read_json, remove_leftovers, write_json
from scaling.training.loggers import check_installed, check_servers

LAUNCHERS = ("local", "inline", "slurm")
TRAIN = "scaling.training.train:train"


def launch(
    experiment: Experiment,
    sweep_dir: Path,
    *,
    launcher: str = "local",
    jobs: int | None = None,
    slurm: SlurmOptions | None = None,
    train: str = TRAIN,
    accept_data_change: bool = False,
    in_order: bool = False,
    dry_run: bool = False,
    fuse: int | None = None,
) -> bool:
    """Run a sweep, or what is left of it.

    Args:
        experiment: its runs.
        sweep_dir: where their records go.
        launcher: `local`, `inline` or `slurm`.
        jobs: workers of the local pool; None: as many as the cores or GPUs carry.
        slurm: what the user says about the cluster.
        train: `MODULE:FUNCTION` with the signature of `scaling.training.train.train`.
        accept_data_change: go on with runs whose data have changed; it is recorded, and leaves
            them out of fits.
        in_order: begin runs in the order of the experiment, not the longest first.
        fuse: train up to so many runs of one shape at once in this process, on one CUDA device.
        dry_run: with `slurm`, print resources and batch scripts; prepare and submit nothing.

    Returns:
        True if every run ended, in a result, in divergence or early, or is submitted; False if one
        failed or was interrupted.

    Raises:
        LinscaleError: the data cannot be prepared, workers cannot start, or SLURM refuses.
        ConfigError: a launcher or number of jobs that cannot work, or a model whose vocabulary is
            smaller than the tokenizer's.
    """
    if launcher not in LAUNCHERS:
        raise ConfigError(f"launcher={launcher!r}: must be one of {', '.join(LAUNCHERS)}.")
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs={jobs}: must be at least 1.")
    if fuse is not None:
        _check_fuse(fuse, launcher, jobs)
    if in_order and launcher == "slurm":
        raise ConfigError("--in-order with --launcher slurm: a cluster chooses its own order.")
    for arch in dict.fromkeys(config.model.arch for config in experiment.runs):
        show_children(arch)
    tasks: list[Task] = []
    for config in experiment.runs if fuse is None else map(fused, experiment.runs):
        task = Task(config=config, flops=_flops(config))
        head = read_head(sweep_dir / task.run_id)
        if head.state in ENDED:
            check_precision(sweep_dir / task.run_id, config)
            task.state, task.reason = head.state, head.reason
        tasks.append(task)
    left = [task for task in tasks if not task.final]
    options = slurm or SlurmOptions()
    if dry_run:
        for array in submit([t.config for t in left], sweep_dir, options, train, dry_run=True):
            tell(f"{describe(array)}\n{indented(', '.join(array.run_ids))}\n{array.script}")
        return True
    loggers = list(dict.fromkeys(name for task in left for name in task.config.loggers))
    check_installed(loggers)
    for warning in check_servers(loggers, sweep_dir):
        console(stderr=True).print(warning, soft_wrap=True)
    for data in dict.fromkeys(task.config.data for task in left):
        say(f"preparing data: {data.corpus}, tokenizer {data.tokenizer}")
        prepared = prepare(data, progress=shows_progress())
        for task in left:
            if task.config.data == data:
                prepared.check_rows(task.config.model.vocab_size)
    if accept_data_change:
        for task in left:
            consent(sweep_dir / task.run_id)
    logs = f"; logs: {sweep_dir}/worker-*.log" if launcher == "local" and left else ""
    say(f"{len(left)} of {len(tasks)} runs to train in {sweep_dir}{logs}")
    _record_sweep(experiment, sweep_dir)  # now that nothing the user typed can stop it
    if launcher == "slurm":
        _submit([task.config for task in left], sweep_dir, options, train)
        return True
    if not in_order:
        left.sort(key=lambda task: -task.flops)  # the end is then reached soonest
    with SweepDisplay(sweep_dir, tasks, table=launcher == "local") as display:
        if len(left) < len(tasks):
            display.say(f"{len(tasks) - len(left)} of {len(tasks)} runs have ended before")
        if left and fuse is not None:
            _together(left, sweep_dir, train, display, fuse)
        elif left and launcher == "inline":
            _inline(left, sweep_dir, train, display)
        elif left:
            configs = [task.config for task in left]
            Pool(left, sweep_dir, environments(configs, jobs), train, display).run()
    _summarise(tasks, sweep_dir, display)
    return all(task.state in ENDED for task in tasks)


def environments(configs: list[RunConfig], jobs: int | None) -> list[dict[str, str]]:
    """Environment of each worker: threads, and on GPUs the devices that it may use.

    Cores are shared evenly among the workers unless `parallel.threads` says otherwise. The number
    of threads follows from the machine and `jobs`, never from how many runs are left: it can change
    the last bits of a sum, and a sweep that is resumed must not depend on where it stopped.
    """
    threads = max((config.parallel.threads or 0 for config in configs), default=0)
    devices = max((config.parallel.devices for config in configs), default=1)
    visible = _gpus() if any(c.parallel.accelerator != "cpu" for c in configs) else []
    if visible:
        groups = [visible[i : i + devices] for i in range(0, len(visible), devices)]
        groups = [group for group in groups if len(group) == devices] or [visible]
        jobs = jobs or len(groups)
    else:
        groups = []
        jobs = jobs or max(1, cores() // (devices * (threads or 1)))
    threads = threads or max(1, cores() // (jobs * devices))
    common = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    result = [dict(common) for _ in range(jobs)]
    for number, environment in enumerate(result):
        if groups:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(groups[number % len(groups)])
    return result


def _gpus() -> list[str]:
    """Names of the CUDA devices that this process may use."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(i) for i in range(count)]


def _flops(config: RunConfig) -> float:
    return flops(config, trained_tokens(config))


def _record_sweep(experiment: Experiment, sweep_dir: Path) -> None:
    """Write sweep.json; runs of earlier launches, and the files that made them, stay listed."""
    path = sweep_dir / "sweep.json"
    with exclusive(sweep_dir / "sweep.lock"):
        remove_leftovers(sweep_dir)
        before = read_json(path)
        runs = [
            *filter(is_name, map(str, as_list(before.get("runs")))),
            *(config.run_id for config in experiment.runs),
        ]
        texts = [each for each in as_list(before.get("experiments")) if isinstance(each, dict)]
        if (former := before.get("experiment")) and not texts:  # of an earlier version
            texts = [{"text": former, "argv": before.get("argv", [])}]
        if experiment.text not in [each.get("text") for each in texts]:
            texts = [*texts, {"text": experiment.text, "argv": sys.argv}]
        content = {
            "schema": SCHEMA,
            "sweep": sweep_dir.name,
            "experiment": experiment.text,
            "argv": sys.argv,
            "runs": list(dict.fromkeys(runs)),
            "experiments": texts,
        }
        if before != content:
            write_json(path, content)


def _submit(configs: list[RunConfig], sweep_dir: Path, options: SlurmOptions, train: str) -> None:
    """Hand runs to SLURM and say where they are."""
    arrays = submit(configs, sweep_dir, options, train)
    for array in arrays:
        tell(describe(array))
    submitted = sum(len(array.run_ids) for array in arrays)
    tell(f"{submitted} runs submitted; follow them with: linscale status {sweep_dir} --watch")


def indented(text: str) -> str:
    """A paragraph under its heading."""
    return textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="  ")


def _inline(tasks: list[Task], sweep_dir: Path, train: str, display: SweepDisplay) -> None:
    """Train here, one after the other. The first interrupt saves at the next step.

    A run that another process has, perhaps one of a pool that was killed and is saving, is tried
    again until it is free or has ended.
    """
    function = find(train)
    stop = threading.Event()
    left = deque(tasks)
    with _stopping(stop):
        while left and not stop.is_set():
            task = left.popleft()
            task.state = "running"
            outcome = attempt(task.config, sweep_dir, function, stop, progress=True)
            if outcome.state == "busy":
                task.state = "elsewhere"
                held = holder(sweep_dir / task.run_id, glance=False)
                if held is not None and not task.told:
                    task.told = True
                    display.say(waits_for(task, held))
                left.append(task)
                if all(other.state == "elsewhere" for other in left):
                    stop.wait(RETRY_SECONDS)
                continue
            task.state = outcome.state
            task.reason = outcome.reason or read_head(sweep_dir / task.run_id).reason
            display.show_end(task)


def _check_fuse(fuse: int, launcher: str, jobs: int | None) -> None:
    if fuse < 2:
        raise ConfigError(f"--fuse {fuse}: a number of runs, at least 2.")
    if launcher != "local" or jobs is not None:
        given = "--jobs" if jobs is not None else f"--launcher {launcher}"
        raise ConfigError(f"--fuse with {given}: fused runs train in this process, on one device.")


def _together(
    tasks: list[Task], sweep_dir: Path, train: str, display: SweepDisplay, fuse: int
) -> None:
    """Train here, a group of runs of one shape at a time; otherwise as `_inline`."""
    function = find(train)
    stop = threading.Event()
    by_id = {task.run_id: task for task in tasks}
    with _stopping(stop):
        for group in groups([task.config for task in tasks], fuse):
            if stop.is_set():
                return
            members = [by_id[config.run_id] for config in group]
            for task in members:
                task.state = "running"
            display.say(f"fused: {', '.join(task.run_id for task in members)}")
            outcomes = attempt_together(group, sweep_dir, function, stop)
            for task, outcome in zip(members, outcomes, strict=True):
                task.state = "elsewhere" if outcome.state == "busy" else outcome.state
                task.reason = outcome.reason or read_head(sweep_dir / task.run_id).reason
                display.show_end(task)


@contextmanager
def _stopping(stop: threading.Event) -> Iterator[None]:
    """The first SIGINT or SIGTERM sets `stop`, the second acts as usual."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def handle(*_: object) -> None:
        stop.set()
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in numbers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _summarise(tasks: list[Task], sweep_dir: Path, display: SweepDisplay) -> None:
    """How the sweep ended, with the reason of every run that is not done."""
    counts = Counter(task.state for task in tasks)
    words = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    display.say(f"{sweep_dir}: {words}")
    for task in tasks:
        if task.state in ("failed", "diverged", "stopped"):
            display.say(f"  {task.state} {task.run_id}: {task.reason}")
    if any(not task.final or task.state == "preempted" for task in tasks):
        display.say("  the same command continues where this one stopped")

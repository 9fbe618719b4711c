"""`linscale evaluate`: checkpoints on tasks, spread over processes.

    targets(path) -> runs with something missing -> claimed one by one, here, by the local pool or
                     by SLURM tasks (`scaling.sweep.worker` on `scaling.evaluation.work`) ->
                     evals.jsonl

The launcher is the one of training: workers that die are replaced, and a run that another process
evaluates is left to it. The same command again does only what is missing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from models.accounting import train_flops_per_token
from models.config import ConfigError
from scaling.config.run import RunConfig
from scaling.evaluation import harness, scrolls
from scaling.evaluation.display import EvaluationDisplay
from scaling.evaluation.request import Request
from scaling.evaluation.results import EvaluationError, Results
from scaling.evaluation.settings import Settings
from scaling.evaluation.targets import Target, targets
from scaling.evaluation.tasks import TASKS, refuse_unknown
from scaling.evaluation.work import evaluate_targets
from scaling.record.head import read_head
from scaling.sweep.display import SweepDisplay
from scaling.sweep.launch import LAUNCHERS, environments
from scaling.sweep.pool import Pool
from scaling.sweep.slurm import SlurmOptions, describe, submit
from scaling.sweep.task import Task
from scaling.sweep.worker import attempt

WORK = "scaling.evaluation.work:evaluate_run"
SUITES: dict[str, tuple[str, ...]] = {
    "quick": ("perplexity", "sliding", "document", "position", "context"),
    "csr": harness.CSR,
    "scrolls": tuple(scrolls.TASKS),
    "paper": (
        "perplexity", "wikitext", "lambada_openai", *harness.CSR, "needle", "needle_standard",
        *scrolls.TASKS,
    ),
}  # fmt: skip
"""Named lists of tasks; `paper` is everything that arXiv 2406.16690 evaluates, and our own
perplexity."""


@dataclass
class Outcome:
    """What an evaluation did."""

    lines: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Lines of evals.jsonl of all tasks asked for, those that were there before included."""
    new: int = 0
    """Tasks evaluated now, here or by processes started here."""
    kept: int = 0
    """Tasks that had a result already."""
    failures: list[str] = field(default_factory=list[str])
    """Why tasks could not be evaluated."""
    elsewhere: list[str] = field(default_factory=list[str])
    """Runs that another process is evaluating."""
    submitted: list[str] = field(default_factory=list[str])
    """Jobs in the queue of SLURM, a line each."""


def expand(tasks: Sequence[str], suite: str | None, settings: Settings) -> list[str]:
    """Names of the tasks, each once.

    Raises:
        EvaluationError: none, or one that is not known; the nearest name is suggested.
    """
    if suite is not None and suite not in SUITES:
        raise EvaluationError(f"suite {suite!r}: is not known; choose {' or '.join(SUITES)}.")
    names = list(dict.fromkeys([*(SUITES[suite] if suite else ()), *tasks]))
    if not names:
        raise EvaluationError("no tasks; give --tasks perplexity,sliding or --suite quick.")
    for name in names:
        if name not in TASKS and not harness.is_known(name, settings):
            close = [*TASKS, *harness.FOLDERS, *scrolls.TASKS]
            refuse_unknown(name, [*close, *harness.known_tasks()])
    return names


def evaluate(
    path: Path,
    request: Request,
    *,
    launcher: str = "local",
    jobs: int | None = None,
    slurm: SlurmOptions | None = None,
    only: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Evaluate every checkpoint of a path on tasks that `expand` gave.

    Args:
        path: see `scaling.evaluation.targets`.
        request: tasks and settings.
        launcher: `local` (workers, where several runs lack something and no single device is named
            as in cuda:1), `inline` or `slurm`.
        jobs: workers of the local pool; None: as many as the cores or GPUs carry.
        slurm: what the user says about the cluster.
        only: which runs of a sweep (`linscale.selection`); None: all.
        say: receives a line for each task that is done.

    Raises:
        EvaluationError: nothing to evaluate at the path.
        ConfigError: a launcher or number of jobs that cannot work.
        LinscaleError: workers cannot start, or SLURM refuses.
    """
    if launcher not in LAUNCHERS:
        raise ConfigError(f"launcher={launcher!r}: must be one of {', '.join(LAUNCHERS)}.")
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs={jobs}: must be at least 1.")
    found, outcome = targets(path, only), Outcome()
    wanted = request
    left = _incomplete(found, request)
    if left:
        outcome.failures += _without_data(request, left)
        absent = {failure.partition(":")[0] for failure in outcome.failures}
        request = replace(request, tasks=tuple(t for t in request.tasks if t not in absent))
    before = _count(found, wanted)
    left = _incomplete(found, request)
    runs = sorted({target.directory for target in left})
    configs = {run: _config(run) for run in runs}
    whole = path.is_dir() and all(config is not None for config in configs.values())
    if launcher == "slurm" and not whole:
        raise ConfigError(
            f"launcher='slurm': evaluates whole runs of a sweep, which {path} is not; use inline."
        )
    if runs and launcher == "slurm":
        outcome.submitted = _submit(configs, request, slurm or SlurmOptions())
    elif launcher == "local" and whole and len(runs) > 1 and ":" not in request.device:
        _pool(configs, request, jobs, say, outcome)
    else:
        for run in runs:
            _here(run, configs[run], [t for t in left if t.directory == run], request, say, outcome)
    outcome.kept = before
    outcome.new = _count(found, wanted) - before
    outcome.lines = _lines(found, wanted)
    return outcome


def _without_data(request: Request, left: list[Target]) -> list[str]:
    """Tasks of the harness whose data are not here, with how to prepare them."""
    labels = request.labels
    results = {target.directory: Results(target.directory) for target in left}
    failures = []
    for name in request.tasks:
        done = all(results[t.directory].has(t.origin, name, labels[name]) for t in left)
        if name in TASKS or done:
            continue
        try:
            harness.build(name, request.settings)
        except EvaluationError as error:
            failures.append(f"{name}: {error}")
    return failures


def _here(
    run: Path,
    config: RunConfig | None,
    found: list[Target],
    request: Request,
    say: Callable[[str], None],
    outcome: Outcome,
) -> None:
    """Evaluate in this process; a run of a sweep is claimed first."""
    failures: list[str] = []

    def work(config: RunConfig, place: Path, *, stop_event: Any, progress: bool) -> str:
        failures.extend(evaluate_targets(found, request, say, stop_event))
        return "done"

    stop = threading.Event()
    if config is None:
        failures = evaluate_targets(found, request, say, stop)
    else:
        ended = attempt(config, request.write(run.parent), work, stop)
        if ended.state == "busy":
            outcome.elsewhere.append(run.name)
        elif ended.state == "failed":
            failures.append(f"{run.name}: {ended.reason}")
    outcome.failures += failures


def _pool(
    configs: dict[Path, RunConfig | None],
    request: Request,
    jobs: int | None,
    say: Callable[[str], None],
    outcome: Outcome,
) -> None:
    """Evaluate in worker processes, a run each at a time, the most expensive first."""
    place = request.write(next(iter(configs)).parent)
    tasks = [
        Task(config=config, flops=train_flops_per_token(config.model, 1)["total"])
        for config in _on_one_device(configs, request)
    ]
    tasks.sort(key=lambda task: -task.flops)
    display = EvaluationDisplay(place, tasks, say)
    threads = environments([task.config for task in tasks], jobs)
    Pool(tasks, place, threads, WORK, cast(SweepDisplay, display)).run()
    display.refresh()
    for task in tasks:
        if task.state == "failed":
            outcome.failures += task.reason.split("\n")
        elif task.state != "done":
            outcome.failures.append(f"{task.run_id}: stopped; the same command goes on")


def _submit(
    configs: dict[Path, RunConfig | None], request: Request, options: SlurmOptions
) -> list[str]:
    place = request.write(next(iter(configs)).parent)
    arrays = submit(_on_one_device(configs, request), place, options, WORK, places=False)
    return [describe(array) for array in arrays]


def _on_one_device(configs: dict[Path, RunConfig | None], request: Request) -> list[RunConfig]:
    """The runs' configurations as the launcher reads them: one process and device each."""
    kind = "cpu" if request.device == "cpu" else "cuda"
    return [
        replace(config, parallel=replace(config.parallel, accelerator=kind, devices=1, nodes=1))
        for config in configs.values()
        if config is not None
    ]


def _config(run: Path) -> RunConfig | None:
    """The configuration of a run's directory; None for a model from elsewhere."""
    head = read_head(run)
    return head.run_config() if head.run_id == run.name else None


def _incomplete(found: Sequence[Target], request: Request) -> list[Target]:
    """Checkpoints that lack a result."""
    return [t for t, n in _results(found, request) if n < len(request.tasks)]


def _count(found: Sequence[Target], request: Request) -> int:
    """Results of the request that are there."""
    return sum(n for _, n in _results(found, request))


def _results(found: Sequence[Target], request: Request) -> list[tuple[Target, int]]:
    """Checkpoints with the number of tasks that have a result."""
    labels = request.labels
    stored = {directory: Results(directory) for directory in {t.directory for t in found}}
    return [
        (t, sum(stored[t.directory].has(t.origin, name, labels[name]) for name in labels))
        for t in found
    ]


def _lines(found: Sequence[Target], request: Request) -> list[dict[str, Any]]:
    """Lines of evals.jsonl that answer the request."""
    labels = request.labels
    stored = {directory: Results(directory) for directory in {t.directory for t in found}}
    configs = {directory: _config(directory) for directory in stored}
    seeds = {directory: config and config.seed for directory, config in configs.items()}
    return [
        {"run": target.directory.name, "seed": seeds[target.directory]} | line
        for target in found
        for task, label in labels.items()
        for line in stored[target.directory].of(target.origin, task, label)
    ]

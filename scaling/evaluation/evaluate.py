"""Evaluate checkpoints: what is missing, in order, each task written when it is done.

    targets(path) -> for each run: lock -> for each checkpoint: tasks without a result
                  -> load the model once -> run, write, next

A task that cannot run on a checkpoint (a data set that is missing, a damaged file) is reported and
the others go on. The same command again does only what is missing; a second process given the same
path takes the runs that the first is not in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from models.config import ConfigError
from scaling.errors import LinscaleError
from scaling.evaluation import harness
from scaling.evaluation.results import EvaluationError, Measure, Results, only_here
from scaling.evaluation.settings import Settings
from scaling.evaluation.targets import Target, targets
from scaling.evaluation.tasks import TASKS, Subject, nearest, recorded
from scaling.pretrained import load

SUITES: dict[str, tuple[str, ...]] = {
    "quick": ("perplexity", "sliding", "document", "position", "context"),
    "csr": tuple(harness.CSR),
}
"""Named lists of tasks; `csr` is the average of commonsense reasoning of arXiv 2406.16690."""


@dataclass
class Outcome:
    """What an evaluation did."""

    lines: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Lines of evals.jsonl of all tasks asked for, those that were there before included."""
    new: int = 0
    """Tasks evaluated now."""
    kept: int = 0
    """Tasks that had a result already."""
    failures: list[str] = field(default_factory=list[str])
    """Why tasks could not be evaluated."""
    elsewhere: list[str] = field(default_factory=list[str])
    """Runs that another process is evaluating."""


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
    foreign = [name for name in names if name not in TASKS and not _is_local(name, settings)]
    if foreign:
        known = harness.known_tasks()
        for name in foreign:
            if name not in known:
                raise nearest(name, [*TASKS, *harness.LOCAL, *known])
    return names


def evaluate(
    path: Path,
    tasks: Sequence[str],
    settings: Settings,
    *,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Evaluate every checkpoint of a path on tasks that `expand` gave.

    Args:
        path: see `scaling.evaluation.targets`.
        tasks: names.
        settings: choices.
        device: where the models run.
        say: receives a line for each task that is done.

    Raises:
        EvaluationError: nothing to evaluate at the path.
    """
    outcome = Outcome()
    by_run: dict[Path, list[Target]] = {}
    for target in targets(path):
        by_run.setdefault(target.directory, []).append(target)
    labels = {name: _recorded(name, settings) for name in tasks}
    for directory, found in by_run.items():
        with only_here(directory) as mine:
            if not mine:
                outcome.elsewhere.append(directory.name)
                continue
            results = Results(directory)
            for target in found:
                _evaluate_one(target, labels, settings, device, results, outcome, say)
    return outcome


def _evaluate_one(
    target: Target,
    labels: dict[str, dict[str, Any]],
    settings: Settings,
    device: torch.device | str,
    results: Results,
    outcome: Outcome,
    say: Callable[[str], None],
) -> None:
    missing = [n for n in labels if not results.has(target.origin, n, labels[n])]
    subject = None
    outcome.kept += len(labels) - len(missing)
    name = f"{target.directory.name}/{target.origin.checkpoint}"
    if missing:
        try:
            subject = Subject(load(target.path, device=device), settings)
        except (LinscaleError, ConfigError) as error:
            outcome.failures.append(str(error))
    for task in missing:
        if subject is None:
            break
        try:
            measures = _run(task, subject)
            results.add(target.origin, task, labels[task], measures)
        except (LinscaleError, ConfigError) as error:
            outcome.failures.append(f"{name}, {task}: {error}")
            continue
        outcome.new += 1
        say(f"{name}  {task}  {measures[0].metric} {measures[0].value:.4f}")
    for task, label in labels.items():
        of_task = results.of(target.origin, task, label)
        outcome.lines += [{"run": target.directory.name} | line for line in of_task]


def _run(task: str, subject: Subject) -> list[Measure]:
    if task in TASKS:
        return TASKS[task].run(subject)
    return harness.run_task(task, subject)


def _recorded(task: str, settings: Settings) -> dict[str, Any]:
    return recorded(task, settings) if task in TASKS else harness.recorded(task, settings)


def _is_local(name: str, settings: Settings) -> bool:
    return name in harness.LOCAL and harness.local_file(name, settings) is not None

"""Evaluating checkpoints one by one: what a process does, be it this one or one of a pool.

    for each checkpoint: tasks without a result -> load the model once -> run, write, next

A task that cannot run on a checkpoint (a damaged file, a text that is too long) is reported, and
the others go on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from linscale.errors import LinscaleError
from scaling.config.run import RunConfig
from scaling.evaluation import harness
from scaling.evaluation.request import Request
from scaling.evaluation.results import EvaluationError, Measure, Results
from scaling.evaluation.targets import Target, targets
from scaling.evaluation.tasks import TASKS, Subject
from scaling.record.pretrained import load_pretrained
from scaling.system.files import append_line, write_json

LOG = "log.txt"


def evaluate_run(
    config: RunConfig, place: Path, *, stop_event: Any = None, progress: bool = False
) -> str:
    """Evaluate every milestone of a run, as a pool trains one (`scaling.sweep.worker`).

    Args:
        config: the run.
        place: folder of the request in the sweep (`Request.write`); the run is claimed there.
        stop_event: asked between tasks.
        progress: unused; the pool shows the lines of the log.

    Raises:
        EvaluationError: some tasks could not be evaluated, a line each; the others are.
    """
    mine = place / config.run_id

    def say(text: str) -> None:
        append_line(mine / LOG, text)

    request = Request.read(place)
    found = targets(place.parent.parent / config.run_id)
    stop = stop_event or threading.Event()
    failures: list[str] = []
    for number, target in enumerate(found):
        # The pool takes a worker that dies again and again without a change here for hopeless.
        write_json(mine / "status.json", {"state": "running", "tokens": number})
        failures += evaluate_targets([target], request, say, stop)
        if stop.is_set():
            return "preempted"
    if failures:
        raise EvaluationError("\n".join(failures))
    return "done"


def evaluate_targets(
    found: Sequence[Target], request: Request, say: Callable[[str], None], stop: Any
) -> list[str]:
    """Evaluate what has no result yet; returns why tasks could not be evaluated."""
    labels, failures = request.labels, []
    for target in found:
        results = Results(target.directory)
        missing = [name for name in labels if not results.has(target.origin, name, labels[name])]
        if not missing or stop.is_set():
            continue
        name = f"{target.directory.name}/{target.origin.checkpoint}"
        try:
            with _in_words():
                loaded = load_pretrained(target.path, device=request.device)
            subject = Subject(loaded, request.settings, say)
        except LinscaleError as error:
            failures.append(str(error))
            continue
        for task in missing:
            if stop.is_set():
                break
            try:
                with _in_words():
                    measures = _run(task, subject)
                results.add(target.origin, task, labels[task], measures)
            except LinscaleError as error:
                failures.append(f"{name}, {task}: {error}")
                continue
            say(f"{name}  {task}  {measures[0].metric} {measures[0].value:.4f}")
    return failures


def _run(task: str, subject: Subject) -> list[Measure]:
    if task in TASKS:
        return TASKS[task].run(subject)
    return harness.run_task(task, subject)


@contextmanager
def _in_words() -> Iterator[None]:
    """Memory that has run out, as an error that says what helps."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        full = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not full and "can't allocate memory" not in str(error):
            raise
        raise EvaluationError(
            "memory ran out; lower --batch-size, or the context: --max-length for tasks of the "
            "harness, --lengths for needles, --beyond for context."
        ) from None

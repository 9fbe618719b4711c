"""Tasks of the evaluation harness before and after: the teacher and every milestone of the run.

Numbers go to evals.jsonl of the two, as those of `linscale evaluate` do; what is there already is
not evaluated again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from linscale.errors import LinscaleError
from scaling.config.run import RunConfig
from scaling.evaluation.evaluate import evaluate, expand
from scaling.evaluation.request import Request
from scaling.evaluation.settings import Settings
from scaling.record.pretrained import find_checkpoint


def request(tasks: str, data: Path | None, limit: int | None) -> Request:
    """What to evaluate, checked before anything is trained.

    Args:
        tasks: names with commas.
        data: folder of local task files.
        limit: first so many questions.

    Raises:
        EvaluationError: a task that is not known, or a folder that is not there.
    """
    settings = Settings(data=data, limit=limit)
    names = expand([n.strip() for n in tasks.split(",") if n.strip()], None, settings)
    return Request(tasks=tuple(names), settings=settings)


def before_and_after(
    config: RunConfig, run_dir: Path, asked: Request, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Lines of evals.jsonl of both, each with `of`: `teacher` or `run`.

    Raises:
        LinscaleError: a task could not be evaluated.
    """
    teacher = Path(config.linearize.teacher)
    found: list[dict[str, Any]] = []
    for what, path in (("teacher", find_checkpoint(teacher) or teacher), ("run", run_dir)):
        outcome = evaluate(path, asked, launcher="inline", say=say)
        if outcome.failures:
            raise LinscaleError(f"not evaluated: {'; '.join(outcome.failures)}")
        found += [{"of": what, **line} for line in outcome.lines]
    return found

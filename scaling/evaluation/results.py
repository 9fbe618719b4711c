"""evals.jsonl of a run: one line a number, replaced as a whole.

    {"task", "metric", "value", "stderr", "n", "tokens", "flops", "checkpoint", "settings"}

`n` counts what the standard error is over (questions, documents, blocks). `tokens` and `flops` are
those of the checkpoint's milestone, null for a model from elsewhere. `settings` are the choices
that change the numbers; a task evaluated with other settings is another result.

All numbers of a task on a checkpoint are written together into a file that takes the old one's
place, so a run of the command that is killed leaves whole tasks only, and the same command goes on
with the tasks that are missing.
"""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scaling.errors import LinscaleError
from scaling.files import disk_errors, replacing

EVALS = "evals.jsonl"


class EvaluationError(LinscaleError):
    """A task that cannot be evaluated; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number of a task."""

    metric: str
    """Its name, such as `acc` or `nats_per_token`."""
    value: float
    """The number."""
    stderr: float | None
    """Its standard error over the `n`; None where there is none."""
    n: int
    """Questions, documents or blocks."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The checkpoint that numbers belong to."""

    checkpoint: str
    """Path relative to the directory of evals.jsonl."""
    tokens: int | None
    """Tokens it was trained on; None where that is not known."""
    flops: float | None
    """Training FLOPs in the exact convention; None where they are not known."""


class Results:
    """The evals.jsonl in a directory."""

    def __init__(self, directory: Path) -> None:
        """Read it.

        Raises:
            EvaluationError: a line before the last cannot be read.
        """
        self.path = directory / EVALS
        self.lines: list[dict[str, Any]] = []
        content = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        texts = content.split("\n")
        for number, text in enumerate(texts, start=1):
            try:
                self.lines.append(_checked(json.loads(text)))
            except (ValueError, KeyError, TypeError):
                if number < len(texts):
                    raise EvaluationError(
                        f"{self.path}, line {number}: cannot be read as a result; mend or remove "
                        "the line, and what it held is evaluated again."
                    ) from None

    def has(self, origin: Origin, task: str, settings: dict[str, Any]) -> bool:
        """Whether the task has been evaluated on the checkpoint with these settings."""
        return bool(self.of(origin, task, settings))

    def of(self, origin: Origin, task: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
        """The lines of a task on a checkpoint."""
        wanted = (origin.checkpoint, task, json.loads(json.dumps(settings)))
        return [
            line
            for line in self.lines
            if (line["checkpoint"], line["task"], line["settings"]) == wanted
        ]

    def add(
        self, origin: Origin, task: str, settings: dict[str, Any], measures: list[Measure]
    ) -> None:
        """Write the numbers of a task, all or none.

        Raises:
            EvaluationError: a number is not finite.
            DiskError: the file cannot be written; it is as it was.
        """
        for measure in measures:
            if not math.isfinite(measure.value):
                raise EvaluationError(
                    f"{task} on {origin.checkpoint}: {measure.metric} is {measure.value}; the "
                    "weights hold numbers that are not finite, or the task has no scored token."
                )
        new = [
            {"task": task} | asdict(measure) | asdict(origin) | {"settings": settings}
            for measure in measures
        ]
        lines = [*self.lines, *new]
        with replacing(self.path) as file:
            for line in lines:
                file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self.lines = lines


def _checked(line: dict[str, Any]) -> dict[str, Any]:
    for name in ("task", "metric", "value", "checkpoint", "settings"):
        line[name]
    return line


@contextmanager
def only_here(directory: Path) -> Iterator[bool]:
    """Whether this process is the one that evaluates in a directory, while the block runs.

    The lock dies with its holder. Others pass on to the next run, so that several processes given
    the same sweep share its runs.
    """
    path = directory / "evals.lock"
    with disk_errors(path):
        file = path.open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True

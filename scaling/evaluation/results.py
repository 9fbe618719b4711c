"""evals.jsonl of a run: one line a number, replaced as a whole.

    {"task", "metric", "value", "stderr", "n", "tokens", "flops", "checkpoint", "settings"}
    with the cells of a grid, such as needle's: "grid": {"lengths", "depths", "scores"}
    of the harness's tasks "truncated", prompts that lost their beginning, and "context", the tokens
    that a prompt may have

`n` counts what the standard error is over (questions, documents, blocks). `tokens` and `flops` are
those of the checkpoint's milestone, null for a model from elsewhere. `settings` are the choices
that change the numbers; a task evaluated with other settings is another result.

All numbers of a task on a checkpoint are written together into a file that takes the old one's
place under a lock, so a run of the command that is killed leaves whole tasks only, the same command
goes on with the tasks that are missing, and several processes may write to one run.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from linscale.errors import LinscaleError
from scaling.system.claims import exclusive
from scaling.system.files import replacing

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
    grid: dict[str, Any] | None = None
    """Cells that it is the mean of: `lengths`, `depths` and `scores` (depths x lengths)."""
    truncated: int | None = None
    """Prompts of the task that lost their beginning; None where none can."""
    context: int | None = None
    """Tokens that a prompt may have, where that can cut one."""


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
        self._load()

    def has(self, origin: Origin, task: str, settings: dict[str, Any]) -> bool:
        """Whether the task has been evaluated on the checkpoint with these settings."""
        return _key(origin.checkpoint, task, settings) in self._by_key

    def of(self, origin: Origin, task: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
        """The lines of a task on a checkpoint."""
        return self._by_key.get(_key(origin.checkpoint, task, settings), [])

    def _load(self) -> None:
        self.lines = _read(self.path)
        self._by_key: dict[str, list[dict[str, Any]]] = {}
        for line in self.lines:
            key = _key(line["checkpoint"], line["task"], line["settings"])
            self._by_key.setdefault(key, []).append(line)

    def add(
        self, origin: Origin, task: str, settings: dict[str, Any], measures: list[Measure]
    ) -> None:
        """Write the numbers of a task, all or none; none if another process was first.

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
            {"task": task} | _line(measure) | asdict(origin) | {"settings": settings}
            for measure in measures
        ]
        with exclusive(self.path.with_suffix(".lock")):
            self._load()
            if self.has(origin, task, settings):
                return
            with replacing(self.path) as file:
                for line in [*self.lines, *new]:
                    file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            self._load()


def _key(checkpoint: str, task: str, settings: dict[str, Any]) -> str:
    return json.dumps([checkpoint, task, settings], sort_keys=True)


def _line(measure: Measure) -> dict[str, Any]:
    """Fields of a measure; `grid`, `truncated` and `context` only where there is one."""
    rare = ("grid", "truncated", "context")
    return {k: v for k, v in asdict(measure).items() if v is not None or k not in rare}


def _read(path: Path) -> list[dict[str, Any]]:
    """Lines of evals.jsonl; a torn last line is one that is not there yet."""
    lines: list[dict[str, Any]] = []
    texts = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            for name in ("task", "metric", "value", "checkpoint", "settings"):
                line[name]
            lines.append(line)
        except (ValueError, KeyError, TypeError):
            if number < len(texts):
                raise EvaluationError(
                    f"{path}, line {number}: cannot be read as a result; mend or remove the line, "
                    "and what it held is evaluated again."
                ) from None
    return lines

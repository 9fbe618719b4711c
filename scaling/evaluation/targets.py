"""From a path to the checkpoints that are evaluated.

| path                                    | checkpoints                                    |
|-----------------------------------------|------------------------------------------------|
| `runs/S/R/checkpoints/milestone-N.pt`   | that one                                       |
| `runs/S/R`                              | every milestone of the run                     |
| `runs/S`                                | every milestone of every run of the sweep      |
| a directory with a foreign config.json  | the model that `scaling.record.pretrained` imports    |
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linscale.file_names import find_inside
from linscale.selection import chosen, fields_of
from models.interop.gguf import folder_of
from scaling.evaluation.results import EvaluationError, Origin
from scaling.record.head import read_head


@dataclass(frozen=True, kw_only=True)
class Target:
    """A checkpoint to evaluate."""

    path: Path
    """What `scaling.record.pretrained.load_pretrained` takes."""
    directory: Path
    """Where its evals.jsonl lies: the run's directory, or the foreign model's."""
    origin: Origin
    """How its numbers are labelled."""


def targets(path: Path, only: str | None = None) -> list[Target]:
    """The checkpoints of a path; runs in the order of their names, milestones by tokens.

    Args:
        path: see the table above.
        only: which runs of a sweep (`linscale.selection`); None: all.

    Raises:
        EvaluationError: nothing is there, or no run has a milestone yet.
        SelectionError: the selection leaves no run.
    """
    path = folder_of(path)
    if path.is_file():
        run_dir = path.resolve().parent.parent
        listed = _milestones(run_dir) if (run_dir / "milestones.jsonl").is_file() else []
        for target in listed:
            if target.path.resolve() == path.resolve():
                return [target]
        raise EvaluationError(
            f"{path}: no milestone of a run; give one of those that {run_dir / 'milestones.jsonl'} "
            "lists, or the directory of the run."
        )
    if not path.is_dir():
        raise EvaluationError(
            f"{path}: no such checkpoint or directory; give a checkpoint, the directory of a run, "
            "or of a sweep such as runs/quickstart."
        )
    head = read_head(path)
    if head.run_id is None and "model_type" in head.config:
        return [
            Target(
                path=path,
                directory=path,
                origin=Origin(checkpoint=".", tokens=None, flops=None),
            )
        ]
    runs = (
        [path] if head.run_id is not None else sorted(p.parent for p in path.glob("*/config.json"))
    )
    runs = chosen(runs, only, _fields)
    found = [target for run in runs for target in _milestones(run)]
    if not found:
        what = "the run has" if runs == [path] else f"none of its {len(runs)} runs has"
        raise EvaluationError(
            f"{path}: {what} a milestone yet; train with `linscale run`, or give another path."
        )
    return found


def _fields(run_dir: Path) -> dict[str, object]:
    head = read_head(run_dir)
    return fields_of(head.config, run_id=run_dir.name, state=head.state)


def _milestones(run_dir: Path) -> list[Target]:
    """Milestones of a run by tokens; a torn last line is one that is not there yet."""
    path = run_dir / "milestones.jsonl"
    if not path.is_file():
        return []
    lines: dict[int, dict[str, Any]] = {}
    for text in path.read_text(encoding="utf-8").split("\n")[:-1]:
        try:
            line = json.loads(text)
            lines[int(line["tokens"])] = {"file": str(line["checkpoint"]), "flops": line["flops"]}
        except (ValueError, KeyError, TypeError) as error:
            raise EvaluationError(
                f"{path}: is damaged ({type(error).__name__}: {error}); restore it, or give a "
                "checkpoint of another run."
            ) from None
    return [
        Target(
            path=find_inside(run_dir, line["file"], links=True),
            directory=run_dir,
            origin=Origin(checkpoint=line["file"], tokens=tokens, flops=line["flops"]),
        )
        for tokens, line in sorted(lines.items())
    ]

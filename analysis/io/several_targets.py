"""A table with several losses a run, such as one of each corpus, as one sweep.

    load_targets(path, ("c4", "wiki"), ...) -> Sweep

Every target is a group of its own, with the rows and runs of the file: refits draw the same runs
for all of them, and rows keep their numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.errors import AnalysisError
from analysis.io.frames import words
from analysis.io.sweep import Sweep
from analysis.io.tables import load_table


def load_targets(path: str | Path, losses: Sequence[str], **options: Any) -> Sweep:
    """Reads a table once for each loss; `options` as of `load_table`.

    Raises:
        AnalysisError: as `load_table`; a loss named twice, or one taken to choose rows by.
    """
    if len(set(losses)) < len(losses) or "" in losses:
        raise AnalysisError(f"--loss {','.join(losses)}: name different columns")
    if options.get("best_per"):
        raise AnalysisError("--best-per keeps the lowest loss: of several it is not known which")
    sweeps = [load_table(path, loss=name, **options) for name in losses]
    parts: list[pd.DataFrame] = []
    targets: dict[str, list[str]] = {}
    for name, sweep in zip(losses, sweeps, strict=True):
        labels = {a: name if a == "all" else f"{a}: {name}" for a in words(sweep.points, "arch")}
        for group, label in labels.items():
            targets.setdefault(group, []).append(label)
        parts.append(sweep.points.assign(arch=[labels[a] for a in words(sweep.points, "arch")]))
    points = pd.concat(parts)
    points.attrs = {**sweeps[0].points.attrs, "names": dict(sweeps[0].points.attrs["names"])}
    points.attrs["names"].pop("loss")  # each group has another
    excluded = pd.concat([s.exclusions for s in sweeps], ignore_index=True).drop_duplicates()
    first, *rest = (s.conventions.split("; ") for s in sweeps)
    said = [*first, *(part for parts_ in rest for part in parts_)]
    notes = [note for sweep in sweeps for note in sweep.notes]
    return replace(
        sweeps[0], points=points, exclusions=excluded.reset_index(drop=True),
        conventions="; ".join(dict.fromkeys(said)), notes=list(dict.fromkeys(notes)),
        targets=targets,
    )  # fmt: skip

"""Milestones that two runs of a sweep have in common count once.

A run with a larger budget goes on from the trunk of a finished one and takes over its milestones
(origin.json). They are the same measurements: in a fit they count with the longer run, where that
one is finished, and are left out of the shorter one, visibly.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from analysis.io.sweep_files import Place
from linscale.json_reader import BadRecord, as_number, find_object, is_name

FILE = "origin.json"


def shared_milestones(root: Place, points: pd.DataFrame) -> dict[tuple[str, float], str]:
    """(run, tokens) -> the run that took the milestone over and has it among its points.

    Args:
        root: the sweep.
        points: of the sweep: `run_id` and `tokens`.
    """
    there = set(zip(points["run_id"].astype(str), points["tokens"].astype(float), strict=True))
    shared: dict[tuple[str, float], str] = {}
    for run_id in dict.fromkeys(name for name, _ in there):
        for former, tokens in _taken(root / run_id):
            if (run_id, tokens) in there and (former, tokens) in there:
                shared[former, tokens] = run_id
    return shared


def _taken(run: Place) -> Iterable[tuple[str, float]]:
    """The milestones that a run has from another, with that run's name."""
    try:
        origin = find_object(run / FILE)
        former = origin.word("run_id", "")
    except BadRecord:
        return
    tokens = origin.values.get("milestones")
    if is_name(former) and former != run.name and isinstance(tokens, list):
        yield from ((former, as_number(value)) for value in tokens)

"""Runs and milestones that are left out of a sweep as a whole, each with its reason."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd

from analysis.io.data_identity import other_data
from analysis.io.origins import shared_milestones
from analysis.io.sweep import Sweep
from analysis.io.sweep_files import Place
from linscale.json_reader import BadRecord, find_object
from linscale.selection import fields_of


def count_once(sweep: Sweep, root: Place) -> Sweep:
    """The sweep without the milestones of a run that a longer one has taken over."""
    shared = shared_milestones(root, sweep.points)
    if not shared:
        return sweep
    keys = zip(sweep.points["run_id"].astype(str), sweep.points["tokens"], strict=True)
    stays = [key not in shared for key in keys]
    rows = [
        {"run_id": run_id, "tokens": tokens, "reason": f"counted with {by}, which went on from it"}
        for (run_id, tokens), by in shared.items()
    ]
    return replace(
        sweep,
        points=sweep.points[stays].reset_index(drop=True),
        exclusions=pd.concat([sweep.exclusions, pd.DataFrame(rows)], ignore_index=True),
    )


def without_other_data(sweep: Sweep, root: Place) -> Sweep:
    """The sweep without the runs whose data are not those of the others, each with its reason."""
    reasons = other_data(root, map(str, sweep.curves["run_id"].unique()))
    if not reasons:
        return sweep
    rows = [
        {"run_id": run_id, "tokens": math.nan, "reason": f"{why}; --other-data keeps it in a fit"}
        for run_id, why in reasons.items()
    ]
    return replace(
        sweep,
        points=sweep.points[~sweep.points["run_id"].isin(reasons)].reset_index(drop=True),
        curves=sweep.curves[~sweep.curves["run_id"].isin(reasons)].reset_index(drop=True),
        exclusions=pd.concat([sweep.exclusions, pd.DataFrame(rows)], ignore_index=True),
    )


def selectable(root: Place, run_id: str) -> dict[str, object]:
    """What a selection sees of a run; of one whose files cannot be read, its name."""
    try:
        config = find_object(root / run_id / "config.json").values
        state = find_object(root / run_id / "status.json").word("state", "planned")
    except BadRecord:
        names = ("arch", "size", "seed", "name", "state")
        return {**dict.fromkeys(names, ""), "run_id": run_id}
    return fields_of(config, run_id=run_id, state=state)

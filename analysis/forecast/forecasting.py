"""A forecast from the rows of a sweep or a table: predictions, intervals, frontier, what to doubt.

forecast(sweep, targets, ...) -> body of a seal (seal.py), as JSON types
    for each group, that is, for each architecture
    1. the rows are checked for every law asked for (rows.py)
    2. a rolling hold-out on them checks the intervals and weighs the laws (rolling.py)
    3. each law answers in draws; the mixture's quantiles are the forecast (answers.py)
    4. the laws, their calibration, the frontier, and what to doubt are told (telling.py)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.errors import AnalysisError
from analysis.forecast.answers import answer
from analysis.forecast.group import prepare_group
from analysis.forecast.mean_law import find_form
from analysis.forecast.rows import Rows, gather
from analysis.forecast.seal import digest
from analysis.forecast.targets import Target
from analysis.forecast.telling import tell
from analysis.io.frames import groups, where
from analysis.io.sweep import Sweep

DEFAULT_FORM = "chinchilla"


def forecast(
    sweep: Sweep,
    targets: Sequence[Target],
    *,
    forms: Sequence[str] | None = None,
    pinned: Mapping[str, float] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Predicts the loss of runs not yet made.

    Args:
        sweep: finished runs.
        targets: what to predict.
        forms: laws; several are mixed. None takes chinchilla, or power_c_e of a table without N
            and D.
        pinned: parameters that are held, by name.
        seed: of the draws.

    Returns:
        JSON types: form, weights, pinned, groups (law, calibration, notes, frontier by group),
        forecasts (one per target and group) and data (the rows used and excluded, with a hash).

    Raises:
        AnalysisError: nothing to predict from, or a target that the laws cannot answer.
    """
    points = sweep.require_points()
    chosen = list(forms or [_default_form(points)])
    held = dict(pinned or {})
    if len(set(chosen)) < len(chosen) or len({find_form(f).columns for f in chosen}) > 1:
        raise AnalysisError(f"--form {','.join(chosen)}: name different laws of the same variables")
    asked = [t.group for t in targets if t.group]
    archs = [a for a in groups(points, "arch") if not asked or a in asked]
    if absent := sorted(set(asked) - set(archs)):
        there = groups(points, "arch")
        if there == ["all"]:
            what = "does not say which runs are of which architecture"
            remedy = "name its column with --group"
        else:
            what = f"has finished runs of {', '.join(there)}"
            remedy = "its groups must have the names that the experiment gives its architectures"
        raise AnalysisError(
            f"{sweep.name} {what}, and --for asks for {', '.join(absent)}: {remedy}, or leave "
            "these out with --only"
        )
    told: dict[str, Any] = {}
    forecasts: list[dict[str, Any]] = []
    used: list[dict[str, Any]] = []
    excluded = [
        {"group": None, "run_id": str(r["run_id"]), "d": float(r["tokens"]), "reason": r["reason"]}
        for r in sweep.exclusions.to_dict("records")
    ]
    for arch in archs:
        own = where(points, arch=arch)
        try:
            group = prepare_group(arch, {f: gather(own, f, held) for f in chosen}, held, seed)
        except AnalysisError as error:
            raise AnalysisError(f"{arch}: {error}" if arch != "all" else str(error)) from error
        mine = [t for t in targets if t.group in (None, arch)]
        forecasts += (answers := answer(group, mine))
        told[arch] = tell(group, answers)
        used += [{"group": arch, **row} for row in rows_of(group.rows)]
        excluded += [
            {"group": arch, "run_id": str(own["run_id"].loc[r["row"]]), "d": None,
             "reason": str(r["reason"])}
            for r in group.rows.observations.exclusions.to_dict("records")
        ]  # fmt: skip
    return {
        "form": chosen,
        "pinned": held,
        "conventions": sweep.conventions,
        "notes": list(sweep.notes),
        "seed": seed,
        "groups": told,
        "forecasts": forecasts,
        "data": {"source": sweep.name, "sha256": digest(used), "used": used, "excluded": excluded},
    }


def _default_form(points: pd.DataFrame) -> str:
    known = {"n_params", "tokens", "flops"} & set(points.columns)
    return "power_c_e" if known == {"flops"} else DEFAULT_FORM


def rows_of(rows: Rows) -> list[dict[str, Any]]:
    """The rows as they are sealed: run_id, n, d, c (None where unknown) and loss."""
    columns, obs = rows.columns, rows.observations
    given = {k: columns[k].tolist() if k in columns else [None] * len(rows.loss) for k in "ndc"}
    return [
        {"run_id": obs.labels[obs.cluster[i]], "n": given["n"][i], "d": given["d"][i],
         "c": given["c"][i], "loss": float(rows.loss[i])}
        for i in range(len(rows.loss))
    ]  # fmt: skip

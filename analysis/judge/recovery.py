"""How much of a transformer its linearized form keeps, with how many tokens, at which compute.

    read(sweep) -> Recovery        one row a milestone, with the losses it is to be compared with
    summarise(points, column)      means over seeds with intervals
    frontier(points), equivalent   compute of models from scratch that reach the same loss

With L_s the validation loss right after surgery, L_t the teacher's and L that of a milestone, the
recovered share of the gap is r = (L_s - L) / (L_s - L_t): 1 at the teacher's loss, above 1 below
it. L_s and L_t are means over the runs of an architecture and size: how unlucky the new weights of
a seed were must not decide what it recovered. Controls from scratch are measured by the same two,
so that r answers at equal tokens what the teacher's weights are worth. A law for r is in
`analysis.judge.linearization_law`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from analysis.errors import AnalysisError
from analysis.io.frames import by, numbers, plain, rows, take, where, words
from analysis.io.records import load_sweep
from analysis.io.sweep import Sweep
from analysis.io.sweep_files import Place, open_sweep
from analysis.units import LEVEL
from linscale.json_reader import BadRecord, find_object

LINEARIZED, CONTINUED, SCRATCH = "linearized", "continued", "scratch"


@dataclass(frozen=True)
class Recovery:
    """Milestones of a sweep of linearizations and their controls."""

    name: str
    points: pd.DataFrame
    """run_id, group, base (architecture), kind (`linearized`, `continued`: the teacher trained on,
    `scratch`), size, seed, n_params, tokens, flops, loss; teacher_loss, surgery_loss and recovered,
    where they are known; teacher_flops and teacher_tokens, of runs that have a teacher; trained,
    the largest share of the parameters that learns at once."""
    notes: list[str] = field(default_factory=list[str])

    def of(self, kind: str) -> pd.DataFrame:
        """The milestones of one kind."""
        return where(self.points, kind=kind)


def read(directory: str | Path) -> Recovery:
    """The milestones of a sweep that holds linearizations.

    Raises:
        AnalysisError: it has no finished linearized run.
    """
    root = open_sweep(directory)
    sweep = load_sweep(directory)
    facts: dict[str, dict[str, float]] = {}
    bad: list[str] = []
    for run in dict.fromkeys(words(sweep.require_points(), "run_id")):
        try:
            facts[run] = _facts(root / run)
        except BadRecord as error:
            bad.append(f"left out: {run}: {error}")
    found = [point for point in plain(sweep.points) if str(point["run_id"]) in facts]
    records = [_point(point, facts[str(point["run_id"])]) for point in found]
    linear = [point for point in records if point["kind"] == LINEARIZED]
    if not linear:
        raise AnalysisError(
            f"{root}: holds no finished linearized run; give the sweep of linscale linearize or of "
            "experiments/linearize_loop.py."
        )
    references = _references(linear)
    for point in records:
        same = (point["base"], point["size"])
        if point["kind"] != CONTINUED:
            point["teacher_loss"], point["surgery_loss"] = references.get(
                same, (math.nan, math.nan)
            )
        gap = point["surgery_loss"] - point["teacher_loss"]
        known = gap > 0 and point["kind"] != CONTINUED
        point["recovered"] = (point["surgery_loss"] - point["loss"]) / gap if known else math.nan
    points = pd.DataFrame(records)
    return Recovery(
        sweep.name, by(points, "group", "n_params", "seed", "tokens"), [*_notes(sweep), *bad]
    )


def _references(linear: list[dict[str, Any]]) -> dict[tuple[str, str], tuple[float, float]]:
    """Losses of the teacher and after surgery by architecture and size, mean over runs."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for run in {point["run_id"]: point for point in linear}.values():
        pair = (run["teacher_loss"], run["surgery_loss"])
        found.setdefault((run["base"], run["size"]), []).append(pair)
    means = {key: np.mean(pairs, axis=0) for key, pairs in found.items()}
    return {key: (float(mean[0]), float(mean[1])) for key, mean in means.items()}


def _point(point: dict[str, Any], facts: dict[str, float]) -> dict[str, Any]:
    group = str(point["arch"])
    base, _, kind = group.partition(" (")
    kept = ("run_id", "size", "seed", "n_params", "tokens", "flops", "loss")
    named = {"group": group, "base": base, "kind": kind.rstrip(")") or SCRATCH}
    return {**named, **{name: point[name] for name in kept}, **facts}


def _facts(run: Place) -> dict[str, float]:
    """What linearization.json says; NaN where there is none.

    Raises:
        BadRecord: it says something else.
    """
    found = find_object(run / "linearization.json")
    validation, teacher = found.part("validation", {}), found.part("teacher", {})
    counts = found.part("parameters") if found.has("parameters") else None
    most = counts and max(counts.number(name, above=-1.0) for name in ("after", "transfer"))
    return {
        "teacher_loss": validation.part("teacher", {}).number("loss", math.nan, above=0.0),
        "surgery_loss": validation.part("surgery", {}).number("loss", math.nan, above=0.0),
        "teacher_flops": teacher.number("flops", math.nan, above=0.0),
        "teacher_tokens": teacher.number("tokens", math.nan, above=0.0),
        "trained": most / counts.number("total", above=0.0) if counts and most else 1.0,
    }


def _notes(sweep: Sweep) -> list[str]:
    reasons = sweep.exclusions["reason"].value_counts()
    left_out = [f"left out: {reason} ({count}x)" for reason, count in reasons.items()]
    return [*sweep.notes, *left_out]


def summarise(points: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean over seeds and its 90 % t interval by group, size and tokens: mean, lo, hi, seeds.

    With one seed the interval is not known (NaN).
    """
    cells: dict[tuple[Any, ...], list[float]] = {}
    keys = ("group", "kind", "size", "n_params", "tokens")
    for point in plain(points):
        if point[column] is not None:
            cells.setdefault(tuple(point[key] for key in keys), []).append(point[column])
    found: list[dict[str, Any]] = []
    for cell, values in cells.items():
        mean, half = float(np.mean(values)), math.nan
        if len(values) > 1:
            t = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1))
            half = t * float(np.std(values, ddof=1)) / math.sqrt(len(values))
        span = {"mean": mean, "lo": mean - half, "hi": mean + half, "seeds": len(values)}
        found.append({**dict(zip(keys, cell, strict=True)), **span})
    columns = [*keys, "mean", "lo", "hi", "seeds"]
    return by(pd.DataFrame(found, columns=columns), "group", "n_params", "tokens")


def frontier(points: pd.DataFrame) -> pd.DataFrame:
    """Milestones that no other reaches with less compute: flops and loss, loss falling."""
    ordered = by(points, "flops", "loss")
    best = np.minimum.accumulate(numbers(ordered, "loss"))
    kept = rows(ordered, np.diff(best, prepend=np.inf) < 0)
    return take(kept, {"flops": "flops", "loss": "loss"})


def equivalent(edge: pd.DataFrame, losses: Iterable[float]) -> NDArray[np.float64]:
    """Compute at which a frontier reaches each loss, linear in logarithms; NaN beyond its ends."""
    loss, flops = np.log(numbers(edge, "loss"))[::-1], np.log(numbers(edge, "flops"))[::-1]
    wanted = np.log(np.asarray(list(losses), dtype=np.float64))
    return np.exp(np.interp(wanted, loss, flops, left=np.nan, right=np.nan))

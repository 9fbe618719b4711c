"""How much of a transformer its linearized form keeps, with how many tokens, at which compute.

    read(sweep) -> Recovery        one row a milestone, with the losses it is to be compared with
    summarise(points, column)      means over seeds with intervals
    frontier(points), equivalent   compute of models from scratch that reach the same loss

With L_t the teacher's validation loss, L that of a milestone and L_0 a zero, the recovered share is
r = (L_0 - L) / (L_0 - L_t): 1 at the teacher's loss, above 1 below it. The zero of a method with a
softmax window is that window alone on the teacher's weights, untrained; of a method without, the
model right after surgery. The share of the gap that surgery opens is kept beside it (`of_surgery`).
Both are `linscale.recovery`, as in the runs' own records. L_0 and L_t are means over the
runs of an architecture and size: how unlucky the new weights of a seed were must not decide what it
recovered. Controls from scratch, and teacher and windows that are trained as the student is, are
measured by the same two. A law for r is in `analysis.judge.linearization_law`; all that a student
is compared with at one budget in `analysis.judge.comparison`.
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
from analysis.io.frames import by, numbers, plain, rows, take, where
from analysis.io.records import load_sweep
from analysis.io.sweep import Sweep
from analysis.io.sweep_files import Place, open_sweep
from analysis.judge.frontier import unbeaten
from analysis.judge.variants import variants
from analysis.units import LEVEL
from linscale.json_reader import BadRecord, Fields, find_object
from linscale.recovery import recovered, reference

LINEARIZED, CONTINUED, SCRATCH = "linearized", "continued", "scratch"
ALIKE, WINDOW = "trained alike", "window of "
"""Kinds of controls: the teacher with the student's training, and (the beginning of) a window
alone with it."""

LOSSES = ("teacher_loss", "window_loss", "surgery_loss", "zero_loss")
"""Columns with the losses of `linscale.recovery.reference`."""


@dataclass(frozen=True)
class Recovery:
    """Milestones of a sweep of linearizations and their controls."""

    name: str
    points: pd.DataFrame
    """run_id, group (with the options that differ within a size), base (architecture), kind
    (`linearized`, `continued`: the teacher trained on, `scratch`, or one of the controls), size,
    seed, n_params, tokens, flops, loss; teacher_loss, window_loss, surgery_loss, zero_loss,
    recovered and of_surgery, where they are known; teacher_flops and teacher_tokens, of runs that
    have a teacher; transfer_tokens, of the stages that align layers; trained, the largest share of
    the parameters that learns at once."""
    records: dict[str, dict[str, Any]]
    """linearization.json of each run that has one."""
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
    contents: dict[str, dict[str, Any]] = {}
    bad: list[str] = []
    archs = {str(p["run_id"]): _base(str(p["arch"])) for p in plain(sweep.require_points())}
    for run, arch in archs.items():
        try:
            content = find_object(root / run / "linearization.json")
            facts[run] = _facts(content, arch)
            contents[run] = content.values
        except BadRecord as error:
            bad.append(f"left out: {run}: {error}")
    found = [point for point in plain(sweep.points) if str(point["run_id"]) in facts]
    records = [_point(point, facts[str(point["run_id"])]) for point in found]
    linear = [point for point in records if point["kind"] == LINEARIZED]
    _tell_apart(linear, root)
    if not linear:
        raise AnalysisError(
            f"{root}: holds no finished linearized run; give the sweep of linscale linearize or of "
            "experiments/linearize_loop.py."
        )
    references = _references(linear)
    methods = {(p["base"], p["size"]): {q["group"] for q in linear if (q["base"], q["size"]) == (
        p["base"], p["size"])} for p in linear}  # fmt: skip
    for point in records:
        shares = ("recovered", "zero_loss"), ("of_surgery", "surgery_loss")
        if point["kind"] == CONTINUED:
            point |= {name: math.nan for name, _ in shares}
            continue
        # Controls of the teacher's architecture are measured as the method that they are beside.
        base = point["base"] if point["kind"] != ALIKE else "lolcats"
        # With several variants of it they have no zero of their own.
        own = methods.get((base, point["size"]), set())
        group = point["group"] if point["kind"] == LINEARIZED else next(iter(own), "")
        known = len(own) == 1 or point["kind"] == LINEARIZED
        nothing = dict.fromkeys(LOSSES, math.nan)
        point |= references.get((group, point["size"]), nothing) if known else nothing
        for name, zero in shares:
            share = recovered(point["loss"], _known(point[zero]), _known(point["teacher_loss"]))
            point[name] = math.nan if share is None else share
    points = pd.DataFrame(records)
    ordered = by(points, "group", "n_params", "seed", "tokens")
    return Recovery(sweep.name, ordered, contents, [*_notes(sweep), *bad])


def _known(loss: float) -> float | None:
    return None if math.isnan(loss) else loss


def _references(linear: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, float]]:
    """Losses that shares are taken of by group and size, mean over runs."""
    found: dict[tuple[str, str], list[list[float]]] = {}
    for run in {point["run_id"]: point for point in linear}.values():
        losses = [run[name] for name in LOSSES]
        found.setdefault((run["group"], run["size"]), []).append(losses)
    means = {key: np.mean(losses, axis=0) for key, losses in found.items()}
    return {key: dict(zip(LOSSES, map(float, mean), strict=True)) for key, mean in means.items()}


def _tell_apart(linear: list[dict[str, Any]], root: Place) -> None:
    """Gives runs of other options a group of their own, in place."""
    runs = {str(p["run_id"]): (str(p["base"]), str(p["size"])) for p in linear}
    found = variants({
        run: (*named, find_object(root / run / "config.json").values)
        for run, named in runs.items()
    })  # fmt: skip
    for point in linear:
        variant = found[str(point["run_id"])]
        point["group"] = f"{point['base']}{variant} ({LINEARIZED})"


def _base(group: str) -> str:
    return group.partition(" (")[0]


def _point(point: dict[str, Any], facts: dict[str, float]) -> dict[str, Any]:
    group = str(point["arch"])
    base, _, kind = group.partition(" (")
    kept = ("run_id", "size", "seed", "n_params", "tokens", "flops", "loss")
    named = {"group": group, "base": base, "kind": kind.rstrip(")") or SCRATCH}
    return {**named, **{name: point[name] for name in kept}, **facts}


def _facts(found: Fields, arch: str) -> dict[str, float]:
    """What linearization.json says; NaN where there is none.

    Raises:
        BadRecord: it says something else.
    """
    validation, teacher = found.part("validation", {}), found.part("teacher", {})
    baselines = found.part("baselines", {})
    for part in (validation, baselines):
        for name in part.values:
            part.part(name).number("loss", above=0.0)
    counts = found.part("parameters") if found.has("parameters") else None
    most = counts and max(counts.number(name, above=-1.0) for name in ("after", "transfer"))
    known = reference(found.values, arch)
    return {
        **{name: math.nan if (v := known[name[:-5]]) is None else v for name in LOSSES},
        "teacher_flops": teacher.number("flops", math.nan, above=0.0),
        "teacher_tokens": teacher.number("tokens", math.nan, above=0.0),
        "transfer_tokens": found.part("tokens", {}).number("transfer", 0.0, above=-1.0),
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
    kept = by(rows(points, unbeaten(points)), "flops", "loss")
    return take(kept, {"flops": "flops", "loss": "loss"})


def equivalent(edge: pd.DataFrame, losses: Iterable[float]) -> NDArray[np.float64]:
    """Compute at which a frontier reaches each loss, linear in logarithms; NaN beyond its ends."""
    loss, flops = np.log(numbers(edge, "loss"))[::-1], np.log(numbers(edge, "flops"))[::-1]
    wanted = np.log(np.asarray(list(losses), dtype=np.float64))
    return np.exp(np.interp(wanted, loss, flops, left=np.nan, right=np.nan))

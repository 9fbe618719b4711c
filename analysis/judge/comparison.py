"""All that a linearized model is compared with, at one size and budget.

    compare(recovery, group, size)      teacher, windows alone, the student and its parts, and the
                                        controls that were trained alike
    layers(recovery, group, size)       what each layer's linear part and window carry

Means over seeds with 90 % t intervals. What has no seed (the teacher, a window untrained) has no
interval. Bytes are those of one sequence of the training length.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.errors import AnalysisError
from analysis.io.frames import numbers, plain, where
from analysis.judge.recovery import ALIKE, CONTINUED, LINEARIZED, WINDOW, Recovery
from analysis.units import LEVEL
from linscale.recovery import recovered

BASELINES = {
    "window": "its window alone, untrained",
    "window + sink": "its window and the first token, untrained",
    "equal window": "a window of equal state, untrained",
    "equal window + sink": "a window of equal state with the first token, untrained",
}
"""Untrained baselines of linearization.json in words."""
PARTS = {"linear off": "student, linear part off", "window off": "student, window off"}
"""Ablations of linearization.json in words."""


def compare(recovery: Recovery, group: str, size: str) -> pd.DataFrame:
    """Losses and shares at the largest budget: `what`, `state bytes`, `loss`, `low`, `high`,
    `recovered`, `of surgery` and `seeds`, in the order of the questions.

    Raises:
        AnalysisError: the group has no run of that size.
    """
    students = _students(recovery, group, size)
    first = students[0]
    content = recovery.records[first["run_id"]]
    sizes, baselines = content.get("state_bytes", {}), content.get("baselines", {})
    rows: list[dict[str, Any]] = []

    def add(what: str, losses: Iterable[float], state: Any) -> None:
        rows.append({"what": what, "state bytes": state, **_summary(list(losses))})

    add("teacher", [first["teacher_loss"]], sizes.get("teacher"))
    for name, what in BASELINES.items():
        if name in baselines:
            keys = baselines[name]["window"]
            losses = {recovery.records[s["run_id"]]["baselines"][name]["loss"] for s in students}
            add(f"{what} ({keys})", losses, baselines[name]["state_bytes"])
    add("after surgery", [first["surgery_loss"]], sizes.get("student"))
    add("student", [s["loss"] for s in students], sizes.get("student"))
    for part, what in PARTS.items():
        found = [p[part]["loss"] for s in students if (p := _parts(recovery, s))]
        if found:
            add(what, found, None)
    rest = {(s["seed"], s["tokens"] - s["transfer_tokens"]) for s in students}
    for control, points in _controls(recovery, size, str(first["base"])).items():
        same = [p["loss"] for p in points if (p["seed"], p["tokens"]) in rest]
        if same:
            add(control, same, None)
    teacher = first["teacher_loss"]
    for row in rows:
        row["recovered"] = recovered(row["loss"], first["zero_loss"], teacher)
        row["of surgery"] = recovered(row["loss"], first["surgery_loss"], teacher)
    columns = ["what", "state bytes", "loss", "low", "high", "recovered", "of surgery", "seeds"]
    return pd.DataFrame(rows, columns=columns)


def layers(recovery: Recovery, group: str, size: str) -> pd.DataFrame:
    """Nats that the loss rises by where one layer alone loses a part, mean over seeds; no rows
    where that was not measured.

    Raises:
        AnalysisError: the group has no run of that size.
    """
    found: dict[int, list[tuple[float, float]]] = {}
    for student in _students(recovery, group, size):
        for entry in _parts(recovery, student).get("layers", []):
            rises = tuple(entry[part]["difference"] for part in ("linear off", "window off"))
            found.setdefault(entry["layer"], []).append(rises)  # pyright: ignore[reportArgumentType]
    means = {layer: np.mean(rises, axis=0) for layer, rises in sorted(found.items())}
    rows = [{"layer": n, "linear part off": float(a), "window off": float(b)}
            for n, (a, b) in means.items()]  # fmt: skip
    return pd.DataFrame(rows, columns=["layer", "linear part off", "window off"])


def _students(recovery: Recovery, group: str, size: str) -> list[dict[str, Any]]:
    """The group's milestones at its largest budget."""
    own = where(recovery.points, group=group, size=size, kind=LINEARIZED)
    if not len(own):
        raise AnalysisError(f"{group}: there is no run of size {size}.")
    return plain(where(own, tokens=numbers(own, "tokens").max()))


def _parts(recovery: Recovery, student: dict[str, Any]) -> dict[str, Any]:
    parts = recovery.records[student["run_id"]].get("parts", {})
    return parts.get(str(int(student["tokens"])), {})


def _controls(recovery: Recovery, size: str, base: str) -> dict[str, list[dict[str, Any]]]:
    """Milestones of teacher and windows that were trained as a student of this method is, by what
    they are: with LoRA as LoLCATs' students, or whole as SUPRA's."""
    alike = ALIKE if base == "lolcats" else CONTINUED
    found: dict[str, list[dict[str, Any]]] = {}
    for point in plain(where(recovery.points, size=size)):
        kind = str(point["kind"])
        if kind == alike:
            found.setdefault("teacher, trained alike", []).append(point)
        elif base == "lolcats" and kind.startswith(WINDOW):
            found.setdefault(f"{kind} alone, trained alike", []).append(point)
    return found


def _summary(losses: list[float]) -> dict[str, Any]:
    mean, half = float(np.mean(losses)), math.nan
    if len(losses) > 1:
        t = float(stats.t.ppf((1 + LEVEL) / 2, len(losses) - 1))
        half = t * float(np.std(losses, ddof=1)) / math.sqrt(len(losses))
    return {"loss": mean, "low": mean - half, "high": mean + half, "seeds": len(losses)}

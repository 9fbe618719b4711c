"""One group's answers: each target completed, its quantiles, and why they may be worth less."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.errors import AnalysisError
from analysis.forecast.group import Group
from analysis.forecast.mean_law import find_form
from analysis.forecast.rows import Rows
from analysis.forecast.score import interval, quantiles_of
from analysis.forecast.targets import SAME_POINT, Target

_WIDE, _FAR = 8.0, 64.0
"""A half-width in per cent, and a leap in compute, beyond which a forecast says little."""


def answer(group: Group, targets: Sequence[Target]) -> list[dict[str, Any]]:
    """One record per target."""
    if not targets:
        return []
    placed = [_placed(group, t) for t in targets]
    columns = {
        k: np.array([p[k] for p in placed], dtype=float) for k in find_form(group.rows.form).columns
    }
    runs = [t.run_id or "" for t in targets]
    quantiles = quantiles_of(group.draw(columns, runs))
    along = {k: np.array([p[k] for p in placed], dtype=float) for k in "ndc"
             if all(p[k] is not None for p in placed)}  # fmt: skip
    leap = group.rows.axis(along | columns) / group.rows.axis(group.rows.columns).max()
    records: list[dict[str, Any]] = []
    for i, (target, place) in enumerate(zip(targets, placed, strict=True)):
        asked = [k for k in ("n", "d", "c") if getattr(target, k) is not None]
        record: dict[str, Any] = {**target.as_dict(), "group": group.name, **place, "asked": asked}
        record["leap"] = float(leap[i])
        record["loss"] = float(quantiles[49, i])
        record |= dict.fromkeys(("interval_50", "interval_90", "quantiles", "half_width"))
        if group.no_interval is None:
            for level in (0.5, 0.9):
                low, high = interval(quantiles[:, i], level)
                record[f"interval_{level:.0%}"[:-1]] = [float(low), float(high)]
            low, high = record["interval_90"]
            record["half_width"] = 50.0 * math.log(high / low)
            record["quantiles"] = quantiles[:, i].tolist()
        record["doubts"] = _doubts(group, record)
        record["measured_before"] = _measured(group.rows, target, place)
        records.append(record)
    return records


def _placed(group: Group, target: Target) -> dict[str, Any]:
    """n, d and c of a target, completed: a budget is split as the law says, C is counted.

    Raises:
        AnalysisError: the law needs what the target does not say.
    """
    needs = find_form(group.rows.form).columns
    n, d, c = target.n, target.d, target.c
    split = False
    if needs == ("n", "d") and n is None and d is None and c is not None:
        best = group.split(np.array([c]))
        n, d, split = float(np.nanmedian(best["n"])), float(np.nanmedian(best["d"])), True
    if n is not None and d is not None and c is None:
        c = float(d * group.per_token()(np.array([n]))[0])
    place: dict[str, Any] = {"n": n, "d": d, "c": c, "best_split": split}
    if missing := [k.upper() for k in needs if place[k] is None]:
        raise AnalysisError(f"--at {target.name}: {group.rows.form} predicts from "
                            f"{' and '.join(k.upper() for k in needs)}; {' and '.join(missing)} "
                            "not given")  # fmt: skip
    return place


def _doubts(group: Group, record: Mapping[str, Any]) -> list[str]:
    """Why a single forecast may be worth less than its interval says."""
    told: list[str] = []
    if record["leap"] > _FAR:
        told.append(f"{record['leap']:.3g} times the largest compute: beyond {_FAR:g} a forecast "
                    "says little")  # fmt: skip
    if record["half_width"] is not None and record["half_width"] > _WIDE:
        told.append(f"interval of ± {record['half_width']:.0f} %: not informative")
    columns = group.rows.columns
    if {"n", "d"} <= columns.keys() and record["n"] and record["d"]:
        ratio, least = record["d"] / record["n"], float((columns["d"] / columns["n"]).min())
        if ratio < 0.5 * least:
            told.append(f"{ratio:.3g} tokens a parameter, below all rows ({least:.3g}): such runs "
                        "were not measured, and the interval is not calibrated")  # fmt: skip
    return told


def _measured(rows: Rows, target: Target, place: Mapping[str, Any]) -> bool:
    """Whether the rows hold a measurement at this very target: then it is no forecast."""
    obs = rows.observations
    if target.run_id and target.run_id in obs.labels and "d" in rows.columns:
        own = np.array([obs.labels[i] == target.run_id for i in obs.cluster])
        return bool((own & (np.abs(np.log(rows.columns["d"] / place["d"])) < SAME_POINT)).any())
    if target.run_id:
        return False
    keys = [k for k in ("n", "d", "c") if getattr(target, k) is not None and k in rows.columns]
    near = [np.abs(np.log(rows.columns[k] / place[k])) < SAME_POINT for k in keys]
    return bool(near) and bool(np.logical_and.reduce(near).any())

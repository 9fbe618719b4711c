"""What is said of one group's laws: parameters, calibration, notes, and the frontier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.fit.fitting import fit_law
from analysis.forecast.group import Group
from analysis.forecast.mean_law import find_form
from analysis.forecast.score import interval, quantiles_of
from analysis.units import LEVEL

_FRONTIER_POINTS = 6
_HIGH_FLOOR = 0.8
_SHORT = 10.0
"""Tokens a parameter below which a run pulls E up."""


def tell(group: Group, answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Laws with their weights, calibration, notes and the frontier of one group."""
    rows = group.rows
    laws = {
        name: {"weight": group.weights[name], **law.describe()} for name, law in group.laws.items()
    }
    return {
        "rows": len(rows.loss),
        "sizes": rows.sizes,
        "runs": len(rows.observations.labels),
        "shared_effect": rows.shared,
        "compute": group.compute_model.describe(),
        "largest_compute": float(rows.axis(rows.columns).max()),
        "laws": laws,
        "calibration": group.calibration,
        "no_interval": group.no_interval,
        "notes": [*_notes(group, laws), *(str(w) for w in rows.observations.warnings)],
        "frontier": _frontier(group, answers),
    }


def _notes(group: Group, laws: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the reader must know of the law."""
    told: list[str] = []
    pinned = next(iter(group.laws.values())).mean.pinned
    for name, value in pinned.items():
        if not (name == "E" and value == 0 and not find_form(group.rows.form).floor):
            told.append(f"{name} is pinned at {value:g}: it was not fitted, and the intervals take "
                        "it as known")  # fmt: skip
    if any(law.get("floor_from_prior") for law in laws.values()):
        told.append("E comes from its prior: the data do not determine it, so look at the losses "
                    "and not at E")  # fmt: skip
    if group.no_interval:
        told.append(f"no interval: {group.no_interval}")
    if (high := _high_floor(group)) is not None:
        told.append(high)
    if (factor := group.calibration["widen"]) > 1:
        told.append(f"the rolling hold-out on these rows missed more often than chance allows: "
                    f"intervals are {factor:.2f} times wider")  # fmt: skip
    return told


def _high_floor(group: Group) -> str | None:
    """A plain fit whose E lies close to the lowest loss is usually too pessimistic far out."""
    rows = group.rows
    if not find_form(rows.form).floor or "E" in next(iter(group.laws.values())).mean.pinned:
        return None
    usual = {"n": "n_params", "d": "tokens", "c": "flops"}
    table = {usual.get(k, k): values for k, values in rows.columns.items()} | {"loss": rows.loss}
    try:
        fit = fit_law(rows.form, pd.DataFrame(table))
    except AnalysisError:
        return None
    share = fit.params["E"] / float(rows.loss.min())
    if share <= _HIGH_FLOOR:
        return None
    text = f"a plain fit puts E at {share:.0%} of the lowest loss, which is usually too high"
    if {"n", "d"} <= rows.columns.keys():
        short = rows.columns["d"] / rows.columns["n"] < _SHORT
        if short.any():
            obs = rows.observations
            names = list(dict.fromkeys(obs.labels[obs.cluster[i]] for i in np.flatnonzero(short)))
            text += (f": {int(short.sum())} row(s) have fewer than {_SHORT:g} tokens a parameter, "
                     f"which bends the law ({', '.join(names[:5])}"
                     f"{', ...' if len(names) > 5 else ''})")  # fmt: skip
    return text


def _frontier(group: Group, answers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The lowest loss of the law itself from the largest row to the dearest target, with its best
    N and D; medians and 90 % intervals."""
    rows = group.rows
    needs = find_form(rows.form).columns
    dearest = [a["c"] for a in answers if a["c"] is not None]
    if needs not in (("n", "d"), ("c",)) or not dearest:
        return []
    start, end = float(np.nanmax(rows.compute)), max(dearest)
    compute = np.geomspace(start, end, _FRONTIER_POINTS) if end > start else np.array([start])
    columns = {"c": compute}
    told: list[dict[str, Any]] = [{"c": float(c)} for c in compute]
    if needs == ("n", "d"):
        best = group.split(compute)
        columns = {k: np.nanmedian(v, axis=0) for k, v in best.items()}
        for key, drawn in best.items():
            for i, (low, middle, high) in enumerate(
                np.nanquantile(drawn, [0.05, 0.5, 0.95], axis=0).T
            ):
                told[i] |= {key: float(middle), f"{key}_lo": float(low), f"{key}_hi": float(high)}
    quantiles = quantiles_of(group.draw(columns, [""] * len(compute), law_alone=True))
    low, high = interval(quantiles, LEVEL)
    for i, row in enumerate(told):
        row["loss"] = float(quantiles[49, i])
        if group.no_interval is None:
            row |= {"loss_lo": float(low[i]), "loss_hi": float(high[i])}
        else:
            row |= {f"{k}_{end}": None for k in ("n", "d") if k in row for end in ("lo", "hi")}
    return told

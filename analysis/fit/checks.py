"""Rows that can be fitted, and a reason for every row that cannot.

prepare(data, law, n=, d=, c=, u=, loss=, weights=, clusters=) -> Observations
    1. the columns the law needs; a missing D or C follows from C = 6 N D, and that is said
    2. rows that diverged, are not numbers, or are not positive: excluded, each with its reason
    3. identical rows are counted once
    4. rows of one run form a cluster, the unit of resampling (never the row)
    5. `point_checks.judge_points`: units that are mixed, too few points, or one size only are
       refused with what is needed; suspicious sizes are warned
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.errors import AnalysisError, FitWarning
from analysis.fit.divergence import find_diverged
from analysis.fit.observations import AXES, Observations
from analysis.fit.point_checks import judge_points
from analysis.io.cells import read_cells
from analysis.laws.compute_model import fit_compute_model
from analysis.laws.power_sum import Law
from analysis.units import Array

_OPTIONS = {
    role: f". Name yours with {option}"
    for role, option in (("n_params", "--params"), ("tokens", "--tokens"), ("flops", "--compute"),
                         ("unique_tokens", "--unique"), ("total_params", "--total"),
                         ("bits", "--bits"), ("share", "--share"))
}  # fmt: skip
_NAMED = 3
"""Rows named for each reason."""


USUAL = {"n": "n_params", "d": "tokens", "c": "flops", "u": "unique_tokens", "t": "total_params",
         "p": "bits", "s": "share"}  # fmt: skip
"""Column of each quantity where the caller names none; a table may lack it."""


def prepare(
    data: pd.DataFrame,
    law: Law,
    *,
    n: str = "n_params",
    d: str = "tokens",
    c: str = "flops",
    u: str = "unique_tokens",
    others: Mapping[str, str] | None = None,
    loss: str = "loss",
    weights: str | None = None,
    noise: str | None = None,
    clusters: str | None = None,
    keep_diverged: bool = False,
    own_counts: bool = False,
) -> Observations:
    """Checks a table for a law; arguments as of `fit_law`, whose `accounting` is `own_counts`.

    Raises:
        AnalysisError: a needed column is absent, units are mixed, or too little is left.
    """
    warnings: list[FitWarning] = []
    names = {"n": n, "d": d, "c": c, "u": u}
    names |= {r: (others or {}).get(r, USUAL[r]) for r in law.columns if r not in names}
    for role, name in names.items():
        # One that the caller names is there; only the usual name may be left out, "" is none.
        if name not in ("", USUAL[role]) and name not in data.columns:
            raise AnalysisError(_absent(name, AXES[role], data))
    raw = {role: _numbers(data, name) for role, name in names.items() if name in data.columns}
    _derive(raw, law, names, data, warnings)
    if loss not in data.columns:
        raise AnalysisError(_absent(loss, "the loss", data))
    raw["loss"] = _numbers(data, loss)
    if weights is not None:
        if weights not in data.columns:
            raise AnalysisError(_absent(weights, "weights", data))
        raw["weights"] = _numbers(data, weights)
    if noise is not None:
        if weights is not None:
            raise AnalysisError("give weights or noise, not both: weights are 1 / noise^2")
        if noise not in data.columns:
            raise AnalysisError(_absent(noise, "noise", data))
        weights = f"1 / {noise}^2"
        with np.errstate(all="ignore"):  # of log loss; what is not positive is excluded below
            spread = _numbers(data, noise)
            raw["weights"] = np.where(spread > 0, (raw["loss"] / spread) ** 2, np.nan)
    used = [r for r in names if r in raw]

    own = _own_names(data)
    said = {**names, "loss": loss, "weights": weights or ""}
    called = {role: own.get(name, name) for role, name in said.items()}
    said = {role: repr(called[role]) if name in own else name for role, name in said.items()}
    reasons = _reasons(data, raw, used, law, said)
    if not keep_diverged:
        _mark_diverged(raw, used, reasons)
    keep = np.array([r == "" for r in reasons], dtype=bool)
    row_names = name_rows(data)
    exclusions = pd.DataFrame({
        "row": data.index[~keep].tolist(),
        "name": [c for c, r in zip(row_names, reasons, strict=True) if r],
        "reason": [r for r in reasons if r],
    })  # fmt: skip
    if len(exclusions):
        counted = exclusions["reason"].value_counts()
        warnings.append(
            FitWarning(
                "rows_excluded",
                f"{len(exclusions)} of {len(data)} rows were left out: "
                + "; ".join(f"{v} x {k} ({_some(exclusions, k)})" for k, v in counted.items())
                + ".",
                {"count": len(exclusions), "reasons": {str(k): int(v) for k, v in counted.items()}},
            )
        )
    _complete(raw, keep, called, law, warnings)
    roles = [r for r in used if np.isfinite(raw[r][keep]).all()]
    columns = {role: raw[role][keep] for role in roles}
    label, name = _clusters(data, clusters)
    unique, cluster = np.unique(label[keep], return_inverse=True)
    weight = raw["weights"][keep] if weights else np.ones(int(keep.sum()))
    observations = Observations(
        columns=columns,
        loss=raw["loss"][keep],
        weight=weight / weight.mean() if len(weight) else weight,
        cluster=cluster.astype(np.int64),
        labels=[str(v) for v in unique],
        names={**{r: names[r] for r in roles}, "loss": loss, "clusters": name}
        | ({"weights": weights} if weights else {}),
        called={**called, "clusters": name},
        rows=data.index[keep].tolist(),
        exclusions=exclusions,
        warnings=warnings,
        row_names=[c for c, k in zip(row_names, keep, strict=True) if k],
        places=np.flatnonzero(keep).tolist(),
    )
    judge_points(observations, law, own_counts=own_counts)
    return observations


def _numbers(data: pd.DataFrame, name: str) -> Array:
    """A column as floats; what is no number becomes NaN and is excluded later.

    Columns of a file that were not taken for N, D, C or the loss are text: weights, for one.
    """
    column = data[name]
    if not isinstance(column, pd.Series):
        raise AnalysisError(f"the table has several columns named {name!r}; rename all but one")
    if column.dtype == object:
        return read_cells(column, name, count=False).values
    return np.array(pd.to_numeric(column, errors="coerce"), dtype=np.float64)


def _absent(name: str, what: str, data: pd.DataFrame) -> str:
    """A missing column, in the user's own names where the table comes from a file."""
    own = data.attrs.get("columns", list(data.columns))
    listed = ", ".join(map(str, own[:20])) or "none"
    how = _OPTIONS.get(name, "") if _own_names(data) else ""
    if how and name == "tokens" and (step := _step_like(own)):
        how += f", or {step!r} times the tokens of a step: --tokens '{step}*524288'"
    if why := data.attrs.get("rejected", {}).get(name, ""):
        how = f". {why}{how}"
    named = what if how else f"{name!r} for {what}"
    return f"no column {'of ' if how else ''}{named}; the table has: {listed}{how}"


def _step_like(names: list[str]) -> str:
    known = ("step", "steps", "global_step", "iteration", "iterations")
    return next((name for name in names if name.lower().strip("_") in known), "")


def _own_names(data: pd.DataFrame) -> dict[str, str]:
    """What the columns are called in the file that they come from, where that is known."""
    names = data.attrs.get("names", {})
    return {role: str(name) for role, name in names.items()}


def _derive(
    raw: dict[str, Array], law: Law, names: dict[str, str], data: pd.DataFrame,
    warnings: list[FitWarning],
) -> None:  # fmt: skip
    """Fills a needed n, d or c from the other two by C = 6 N D."""
    rules = {"c": ("n", "d"), "d": ("c", "n"), "n": ("c", "d")}
    for role in law.columns:
        if role in raw:
            continue
        if role in rules and all(r in raw for r in rules[role]):
            first, second = (raw[r] for r in rules[role])
            with np.errstate(all="ignore"):
                raw[role] = 6 * first * second if role == "c" else first / (6 * second)
            warnings.append(
                FitWarning(
                    "assumed_compute",
                    f"{AXES[role]} has no column {names[role]!r}; it was computed from "
                    f"{' and '.join(names[r] for r in rules[role])} by C = 6 N D, which leaves "
                    "out attention over the context and the output head.",
                    {"derived": role, "from": list(rules[role])},
                )
            )
            names[role] = f"({'6 N D' if role == 'c' else 'C = 6 N D'})"
            continue
        raise AnalysisError(_absent(names[role], f"{AXES[role]}, which {law.name} needs", data))


def name_rows(data: pd.DataFrame) -> list[str]:
    """What to call each row: its run, and where a run has several, or the rows are those of a file
    that somebody will look at, also the row."""
    rows = [f"row {label}" for label in data.index]
    if "run_id" not in data.columns:
        return rows
    runs = data["run_id"]
    several = runs.duplicated(keep=False).to_numpy() | bool(_own_names(data))
    return [
        row if pd.isna(run) or run == row else f"{run}, {row}" if many else str(run)
        for run, row, many in zip(runs, rows, several, strict=True)
    ]


def _some(exclusions: pd.DataFrame, reason: object) -> str:
    """The first rows that were left out for a reason."""
    names = [str(v) for v in exclusions["name"][exclusions["reason"] == reason]]
    return ", ".join(names[:_NAMED]) + (
        f" and {len(names) - _NAMED} more" if names[_NAMED:] else ""
    )


def _mark_diverged(raw: dict[str, Array], used: list[str], reasons: list[str]) -> None:
    """Gives rows that lie far above their neighbours a reason to be left out."""
    good = np.flatnonzero([r == "" for r in reasons])
    axes = [r for r in used if r in ("n", "d") and _positive(raw[r][good])]
    axes = axes or [r for r in used if r == "c" and _positive(raw[r][good])]
    if not axes or not len(good):
        return
    loss = raw["loss"][good]
    far, expected = find_diverged([raw[r][good] for r in axes], loss)
    where = " and ".join(r.upper() for r in axes)
    for i, value, usual in zip(good[far], loss[far], expected[far], strict=True):
        reasons[i] = (
            f"diverged: loss {value:.4g} is far above its neighbours in {where} ({usual:.4g})"
        )


def _positive(values: Array) -> bool:
    return bool((np.isfinite(values) & (values > 0)).all())


def _complete(
    raw: dict[str, Array], keep: NDArray[np.bool_], names: dict[str, str], law: Law,
    warnings: list[FitWarning],
) -> None:  # fmt: skip
    """Fills C of the rows that have none from those that have it, where the law does not need C."""
    if not {"n", "d", "c"} <= raw.keys() or "c" in law.columns:
        return
    with np.errstate(invalid="ignore"):
        known = keep & np.isfinite(raw["c"]) & (raw["c"] > 0)
    empty = keep & ~known
    if not known.any() or not empty.any():
        return
    per_token = raw["c"][known] / raw["d"][known]
    model = fit_compute_model(raw["n"][known], per_token, column=names["c"])
    raw["c"] = np.where(empty, model(np.where(empty, raw["n"], 1.0)) * raw["d"], raw["c"])
    warnings.append(
        FitWarning(
            "assumed_compute",
            f"{int(empty.sum())} of {int(keep.sum())} rows have no {names['c']!r}; it was taken "
            f"from the others, as {model.describe()}.",
            {"rows": int(empty.sum())},
        )
    )


def _reasons(
    data: pd.DataFrame, raw: dict[str, Array], used: list[str], law: Law, names: dict[str, str]
) -> list[str]:
    """Why each row cannot be used; "" where it can."""
    reasons = np.full(len(data), "", dtype=object)

    def mark(bad: Any, reason: str) -> None:
        found = np.asarray(bad, dtype=bool)
        if found.any():
            reasons[found & (reasons == "")] = reason

    if "state" in data.columns:
        for state in ("diverged", "failed"):
            mark(data["state"].astype(str) == state, f"the run {state}")
    mark(np.isposinf(raw["loss"]), "the loss is infinite (diverged)")
    needed = [r for r in used if r in law.columns]
    for role in ["loss", *needed, *(["weights"] if "weights" in raw else [])]:
        values, name = raw[role], names[role]
        mark(~np.isfinite(values), f"{name} is not a number")
        mark(values < 0, f"{name} is negative")
        if role != "s":
            mark(values == 0, f"{name} is zero")
    table = pd.DataFrame({r: raw[r] for r in ["loss", *used]})
    if "run_id" in data.columns:
        table["run_id"] = data["run_id"].to_numpy()
    good = reasons == ""
    repeated = np.zeros(len(data), dtype=bool)
    repeated[good] = table[good].duplicated().to_numpy()
    mark(repeated, "identical to an earlier row")
    return reasons.tolist()


def _clusters(data: pd.DataFrame, clusters: str | None) -> tuple[NDArray[Any], str]:
    """Labels of the unit of resampling and what they are."""
    if clusters is not None and clusters not in data.columns:
        raise AnalysisError(_absent(clusters, "clusters", data))
    name = clusters or ("run_id" if "run_id" in data.columns else None)
    if name is None:
        width = len(str(max(1, len(data) - 1)))
        return np.array([f"row {i:0{width}d}" for i in range(len(data))]), "each row a run"
    labels = data[name].astype(str).to_numpy(dtype=str)
    nameless = [f"row {i}" for i in range(len(data))]  # not one large run of all of them
    return np.where(data[name].isna(), nameless, labels), name

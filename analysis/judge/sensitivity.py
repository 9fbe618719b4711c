"""How far the answer moves when a choice is made differently.

    sensitivity(form, data) -> DataFrame
        one row per alternative, everything else as in the reference fit:
        outliers dropped (1, 2, 3, 5, 8 highest losses), delta of the Huber loss, objective, the
        form, columns that count N or C in another convention, checkpoints used (late, compute
        above a fraction, last of each run), and the three runs that move the answer most left out

Selection and accounting move exponents more than noise does (Porian et al. 2406.19146, McLeish et
al. 2502.06857); `shift` states by how many standard errors, when the reference fit has draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.fit.fitting import fit_law
from analysis.fit.law_fit import LawFit
from analysis.fit.solver import EXACT

DROPPED = (1, 2, 3, 5, 8)
DELTAS = (1e-1, 1e-2, 3e-3, 1e-3, 1e-4)
STARTS = 3
"""Starting points of each choice: the fit that they stand beside has shown with more that it
converges."""
MOST = 2_000
"""Points; of more, so many are taken, evenly over every run, for the reference too."""
_ALTERNATIVES = {
    "chinchilla": ("chinchilla_tied", "gamma", "kaplan"),
    "power_c_e": ("power_c",),
    "power_c": ("power_c_e",),
}


def sensitivity(
    form: str,
    data: pd.DataFrame,
    *,
    quantity: str | None = None,
    at: float | None = None,
    n_columns: Mapping[str, str] | None = None,
    c_columns: Mapping[str, str] | None = None,
    reference: LawFit | None = None,
    **options: Any,
) -> pd.DataFrame:
    """The table of choices.

    Args:
        form, data, options: as for `fit_law`; `options` must not ask for a bootstrap.
        quantity: parameter whose movement is listed; default a, else the first exponent.
        at: budget in FLOPs at which the lowest loss is listed too; default the largest fitted.
        n_columns, c_columns: other columns that count N or C, by the name of their convention.
        reference: the fit to compare with, drawn if shifts in standard errors are wanted.

    Returns:
        Columns choice, setting, points, one per parameter, `loss_at`, change (of the quantity),
        shift (change / standard error; NaN without draws), note. Of many points a part is taken;
        `.attrs["of"]` has their number.
    """
    if reference is None:
        reference = fit_law(form, data, **options)
    draws = reference
    # Rows that were left out, such as those that diverged: every choice is made on the same ones.
    data = data.loc[reference.observations.rows]
    if len(reference.observations.loss) > MOST:
        data = data.loc[reference.problem.thinned(MOST).observations.rows]
        reference = fit_law(form, data, **options)
    name = quantity or ("a" if "a" in reference.params else reference.law.exponents[0])
    if name not in reference.params:
        raise AnalysisError(f"{form} has no parameter {name!r}; it has "
                            f"{', '.join(reference.params)}")  # fmt: skip
    if at is None:
        at = float(np.nanmax(reference.observations.compute))
    se = float(draws.draws_of(name).std(ddof=1)) if draws.draws else float("nan")
    rows = [_row("reference", form, reference, at)]
    for choice, setting, change in _alternatives(form, data, options, n_columns, c_columns,
                                                 reference):  # fmt: skip
        try:
            arguments = {
                **options,
                "keep_diverged": True,
                "starts": 0 if "form" not in change else STARTS,
                "near": reference,  # the only start, but of another form
                **change.get("options", {}),
            }
            fit = fit_law(change.get("form", form), change.get("data", data), **arguments)
            if fit.form == reference.form:
                fit = fit.holding(**reference.held)
        except AnalysisError as error:
            rows.append({"choice": choice, "setting": setting, "note": str(error)})
            continue
        rows.append(_row(choice, setting, fit, at))
    table = pd.DataFrame(rows)
    base = reference.params[name]
    table["change"] = table[name].to_numpy(dtype=float) - base
    table.attrs["of"] = len(draws.observations.loss)
    # Of noise-free points the standard error is that of rounding: no measure of a shift.
    table["shift"] = table["change"] / (se if se > EXACT * abs(base) else float("nan"))
    return table


def _row(choice: str, setting: str, fit: LawFit, at: float) -> dict[str, Any]:
    row: dict[str, Any] = {"choice": choice, "setting": setting,
                           "points": len(fit.observations.loss), **fit.params}  # fmt: skip
    able = fit.law.columns == ("c",) or fit.has_optimum
    row["loss_at"] = float(fit.frontier(np.array([at]))[0]) if able else float("nan")
    row["note"] = "; ".join(w.code for w in fit.warnings)
    return row


def _alternatives(
    form: str,
    data: pd.DataFrame,
    options: dict[str, Any],
    n_columns: Mapping[str, str] | None,
    c_columns: Mapping[str, str] | None,
    reference: LawFit,
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    used = data.loc[reference.observations.rows]
    loss = np.asarray(used[reference.observations.names["loss"]], dtype=float)
    order = np.argsort(-loss, kind="stable")
    for count in DROPPED:
        if len(used) - count > reference.law.size + 2:
            kept = np.sort(order[count:])
            yield "highest losses dropped", str(count), {"data": used.iloc[kept]}
    for delta in DELTAS:
        if delta != reference.problem.robust.delta or reference.problem.robust.name != "huber":
            change = {"objective": "huber", "delta": delta}
            yield "delta", f"{delta:g}", {"options": change}
    for objective in ("least_squares", "lad", "logcosh"):
        if objective != reference.problem.robust.name:
            yield "objective", objective, {"options": {"objective": objective}}
    for other in _ALTERNATIVES.get(form, ()):
        yield "form", other, {"form": other}
    for role, columns in (("n", n_columns), ("c", c_columns)):
        counted = reference.observations.columns.get(role)
        for label, column in (columns or {}).items():
            alike = column in used and counted is not None and np.array_equal(used[column], counted)
            if not alike:
                yield f"counting of {role.upper()}", label, {"options": {role: column}}
    yield from _checkpoints(used, reference)
    yield from _influential(used, reference)


def _checkpoints(
    used: pd.DataFrame, reference: LawFit
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    obs = reference.observations
    if {"n", "d"} <= obs.columns.keys():
        ratio = obs.columns["d"] / obs.columns["n"]
        for least in (5.0, 20.0):
            keep = ratio >= least
            if 0 < keep.sum() < len(keep):
                setting = f"at least {least:g} tokens per parameter"
                yield "checkpoints", setting, {"data": used.loc[keep]}
    compute = obs.compute
    if np.isfinite(compute).all():
        keep = compute >= np.quantile(compute, 0.25)
        if 0 < keep.sum() < len(keep):
            yield "checkpoints", "without the cheapest quarter", {"data": used.loc[keep]}
    if len(obs.labels) < len(obs.loss):
        last = pd.Series(compute).groupby(obs.cluster).transform("max").to_numpy() == compute
        yield "checkpoints", f"last of each {obs.names['clusters']}", {"data": used.loc[last]}


def _influential(
    used: pd.DataFrame, reference: LawFit
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The three runs that move the parameters most when left out."""
    obs = reference.observations
    table = reference.influence()
    for label in table["left_out"].to_list()[:3]:
        keep = obs.cluster != obs.labels.index(label)
        if len(obs.labels) > 1:
            yield "run left out", str(label), {"data": used.loc[keep]}

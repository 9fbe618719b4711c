"""Which form to believe: information criteria and rolling hold-out over compute.

    holdout(form, data)       fit the cheapest runs, predict the next dearer ones, roll forward
    compare_forms(forms, ..)  AICc, BIC and hold-out error of each form side by side

A form that fits better inside the data may extrapolate worse; the hold-out over compute is the test
that resembles the use. Errors are log predicted - log measured: positive means too pessimistic.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.fit.checks import prepare
from analysis.fit.fitting import fit_law
from analysis.fit.law_fit import LawFit
from analysis.fit.uncertainty import bootstrap as draw
from analysis.io.frames import rows
from analysis.laws.registry import get_law
from analysis.units import LEVEL

_BESIDE = 1
"""Starts of a cut's own points beside the parameters of all points. On 7 public sets, 6 forms and 4
cuts either of the two alone ended in a worse optimum at one cut in twenty, both together at two of
168, by less than 1e-4 of the objective."""


def holdout(
    form: str,
    data: pd.DataFrame,
    *,
    steps: int = 6,
    smallest: float = 0.4,
    bootstrap: int = 0,
    seed: int = 0,
    baselines: bool = True,
    near: LawFit | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Rolling hold-out over compute.

    Runs are ordered by compute; `steps` cuts lie between the share `smallest` and the end. At each
    cut the law is fitted to everything cheaper and predicts everything dearer. A run whose points
    straddle the cut is split: its cheaper points are history.

    Args:
        form: a law's name.
        data: points, as for `fit_law`.
        steps: number of cuts.
        smallest: share of points in the first training set.
        bootstrap: refits at each cut for `lo` and `hi`, prediction intervals of one further run.
        seed: of the refits.
        baselines: also `pure` and `nearest`.
        near: the fit of all points, one of the starts of those of the cuts.
        options: as for `fit_law`.

    Returns:
        One row per held-out point: cut (training compute), c, leap (c / cut), loss, predicted,
        error, pure (error of the pure power law in compute through the same training points), and
        nearest (error of repeating the lowest training loss).

    Raises:
        AnalysisError: too few points for a single cut.
    """
    law = get_law(form)
    of_columns = ("n", "d", "c", "u", "others", "loss", "weights", "noise", "clusters",
                  "keep_diverged")  # fmt: skip
    names = {k: options[k] for k in of_columns if k in options}
    obs = prepare(data, law, **names)
    compute = obs.compute
    if not np.isfinite(compute).all():
        raise AnalysisError("a hold-out over compute needs C, or N and D")
    order = np.argsort(compute, kind="stable")
    least = law.size + 2
    shares = np.linspace(smallest, 1.0, steps + 1)[:-1]
    counts = sorted({max(least, int(share * len(order))) for share in shares})
    # Points of equal compute stay together, on the cheap side of the cut.
    cuts = sorted({float(compute[order[k - 1]]) for k in counts if k < len(order)})
    cuts = [cut for cut in cuts if (compute > cut).any()]
    if not cuts:
        raise AnalysisError(f"{len(order)} points are too few to hold any out of {form}: "
                            f"at least {least + 1} are needed")  # fmt: skip
    table = pd.DataFrame({**obs.columns, "c": compute, "loss": obs.loss, "w": obs.weight,
                          "run": [obs.labels[k] for k in obs.cluster]})  # fmt: skip
    fitting = {k: v for k, v in options.items()
               if k in ("objective", "delta", "below", "bounds", "fix", "starts")}  # fmt: skip
    if near is not None:
        fitting["starts"] = 0 if law.slow else _BESIDE
    roles: dict[str, Any] = {r: r for r in ("n", "d", "c", "u") if r in table}
    roles["others"] = {r: r for r in obs.columns if r not in roles}
    # What diverged is left out of `obs` already.
    common: dict[str, Any] = {"loss": "loss", "weights": "w", "keep_diverged": True}
    parts: list[pd.DataFrame] = []
    for cut in cuts:
        train, test = rows(table, compute <= cut), rows(table, compute > cut)
        try:
            fit = fit_law(form, train, clusters="run", near=near, **common, **roles, **fitting)
            extra = _baselines(train, test, common | fitting) if baselines else {}
        except AnalysisError:
            continue  # fewer sizes than the form needs at this cut
        columns = {r: test[r].to_numpy() for r in law.columns}
        predicted = fit.predict(**columns, extrapolate=True)
        measured = np.log(test["loss"].to_numpy())
        if bootstrap:
            drawn = replace(fit, draws=draw(fit.problem, fit.theta, samples=bootstrap, seed=seed))
            band = drawn.band(level=LEVEL, kind="run", seed=seed, extrapolate=True, **columns)
            extra |= {k: band[k].to_numpy() for k in ("lo", "hi")}
        parts.append(pd.DataFrame({
            "cut": cut, "c": test["c"].to_numpy(), "leap": test["c"].to_numpy() / cut,
            "loss": test["loss"].to_numpy(), "predicted": predicted,
            "error": np.log(predicted) - measured, **extra,
        }))  # fmt: skip
    if not parts:
        raise AnalysisError(f"no cut leaves enough sizes to fit {form}")
    return pd.concat(parts, ignore_index=True)


def _baselines(train: pd.DataFrame, test: pd.DataFrame, options: dict[str, Any]) -> dict[str, Any]:
    """Errors of two simple forecasts, `pure` and `nearest`."""
    measured = np.log(test["loss"].to_numpy())
    pure = fit_law("power_c", train, c="c", **options)
    return {
        "pure": np.log(pure.predict(c=test["c"].to_numpy(), extrapolate=True)) - measured,
        "nearest": np.log(train["loss"].to_numpy().min()) - measured,
    }


def holdout_summary(table: pd.DataFrame) -> pd.DataFrame:
    """By leap factor: points, mean signed error, mean and largest absolute error, and the mean
    absolute errors `pure` and `nearest` of the two baselines."""
    edges = np.array([0.0, 2.0, 4.0, 8.0, 16.0, np.inf])
    leap = table["leap"].to_numpy(dtype=float)
    found: list[dict[str, float | str]] = []
    for low, high in itertools.pairwise(edges):
        near = (leap > low) & (leap <= high)
        part, pure, nearest = (np.asarray(table[k], dtype=float)[near]
                               for k in ("error", "pure", "nearest"))  # fmt: skip
        if len(part):
            found.append({
                "leap": f"up to {high:g}x" if np.isfinite(high) else f"over {low:g}x",
                "points": float(len(part)), "bias": float(part.mean()),
                "mean_error": float(np.abs(part).mean()), "max_error": float(np.abs(part).max()),
                "pure": float(np.abs(pure).mean()), "nearest": float(np.abs(nearest).mean()),
            })  # fmt: skip
    return pd.DataFrame(found)


def compare_forms(
    forms: list[str], data: pd.DataFrame, *, steps: int = 6, **options: Any
) -> pd.DataFrame:
    """One row per form: parameters, rms, AICc, BIC, hold-out error and bias; best hold-out first.

    A form that cannot be fitted has its reason in the column `note`.
    """
    found: list[dict[str, Any]] = []
    for form in forms:
        row: dict[str, Any] = {"form": form}
        try:
            fit = fit_law(form, data, **options)
            row = row_of(fit)
            made = holdout(form, data, steps=steps, baselines=False, near=fit, **options)
            row |= row_of(fit, made)
        except AnalysisError as error:
            row["note"] = str(error)
        found.append(row)
    table = pd.DataFrame(found)
    if "holdout_error" in table.columns:
        table = table.sort_values("holdout_error", ignore_index=True)
    return table


def row_of(fit: LawFit, forecasts: pd.DataFrame | None = None) -> dict[str, Any]:
    """A fit's row of `compare_forms`, with what `holdout` gave for it."""
    quality = fit.criteria()
    row: dict[str, Any] = {
        "form": fit.form, "parameters": fit.law.size, "points": len(fit.observations.loss),
        **{k: quality[k] for k in ("rms", "aicc", "bic")},
        "note": "; ".join(w.code for w in fit.warnings),
    }  # fmt: skip
    if forecasts is not None:
        errors = forecasts["error"].to_numpy(dtype=float)
        row |= {"holdout_error": float(np.abs(errors).mean()), "holdout_bias": float(errors.mean())}
    return row

"""What was chosen on the way to a law, and what other choices would have given.

sensitivity(study)    the same checkpoints under other conventions, losses and subsets
checklist(study)      the reporting checklist of (Mis)Fitting (Li et al. 2502.18969), filled in
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.compare import compute_for_loss
from analysis.errors import AnalysisError
from analysis.fitting import fit_law
from analysis.frames import numbers, rows, where, words
from analysis.law_fit import LawFit
from analysis.study import LEVEL, Study, flops_per_token
from analysis.style import look, si_text

Keep = Callable[[pd.DataFrame, LawFit], np.ndarray]


@dataclass(frozen=True)
class _Variant:
    """One departure from the report's choices."""

    label: str
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    """For `fit_law`."""
    keep: Keep | None = None
    """Mask of the points to use."""


def _without_smallest(points: pd.DataFrame, _: LawFit) -> np.ndarray:
    return numbers(points, "n_params") > numbers(points, "n_params").min()


def _without_shortest(points: pd.DataFrame, _: LawFit) -> np.ndarray:
    first = points.groupby("run_id", observed=True)["tokens"].transform("min")
    return numbers(points, "tokens") > np.asarray(first)


def _without_worst(points: pd.DataFrame, fit: LawFit) -> np.ndarray:
    error = np.abs(np.log(numbers(points, "loss") / fit.predict(n=points["n_params"],
                                                                d=points["tokens"])))  # fmt: skip
    return error < error.max()


_VARIANTS = (
    _Variant("as reported"),
    _Variant("least squares", {"objective": "least_squares"}),
    _Variant("Huber, delta 0.01", {"delta": 1e-2}),
    _Variant("Huber, delta 0.0001", {"delta": 1e-4}),
    _Variant("training loss", {"loss": "train_loss"}),
    _Variant("N: all parameters", {"n": "n_total"}),
    _Variant("N: paper's", {"n": "n_paper"}),
    _Variant("C: paper's FLOPs", {"c": "flops_paper"}),
    _Variant("C = 6ND", {"c": "flops_6nd"}),
    _Variant("without the smallest size", keep=_without_smallest),
    _Variant("without each run's first horizon", keep=_without_shortest),
    _Variant("without the worst point", keep=_without_worst),
)


def sensitivity(result: Study) -> pd.DataFrame:
    """Point estimates under other choices.

    Returns:
        One row per choice. For every architecture alpha, beta, and the compute multiplier over the
        baseline at the lowest loss that all reach; NaN where that choice leaves too little to fit.
    """
    target = _common_loss(result)
    table: list[dict[str, Any]] = []
    for variant in _VARIANTS:
        row: dict[str, Any] = {"choice": variant.label}
        compute: dict[str, float] = {}
        for group in result.groups:
            name = look(group).label
            try:
                fit, needed = _refit(result, group, variant, target)
            except AnalysisError:
                row |= {f"{name} α": np.nan, f"{name} β": np.nan}
                continue
            row |= {f"{name} α": fit.params["alpha"], f"{name} β": fit.params["beta"]}
            compute[group] = needed
        for group in result.groups:
            if group != result.baseline:
                have = {group, result.baseline} <= compute.keys()
                ratio = compute[result.baseline] / compute[group] if have else np.nan
                row[f"{look(group).label} multiplier"] = ratio
        table.append(row)
    return pd.DataFrame(table)


def _refit(result: Study, group: str, variant: _Variant, target: float) -> tuple[LawFit, float]:
    """The law under a choice, and the compute it needs for the target loss."""
    points = where(result.points, arch=group)
    if variant.keep is not None:
        points = rows(points, variant.keep(points, result.laws[group]))
    fit = fit_law("chinchilla", points, clusters="pair", **variant.options)
    n = variant.options.get("n", "n_params")
    c = variant.options.get("c", "flops")
    cost = flops_per_token(numbers(points, n), numbers(points, c) / numbers(points, "tokens"))
    return fit, float(compute_for_loss(fit, np.array([target]), flops_per_token=cost)[0])


def _common_loss(result: Study) -> float:
    """The lowest loss that every architecture has reached."""
    return max(float(numbers(where(result.points, arch=g), "loss").min()) for g in result.groups)


def checklist(result: Study) -> pd.DataFrame:
    """Columns item, answer: what a reader needs to judge or repeat the fits."""
    sweep, points = result.sweep, result.points
    law = result.laws[result.baseline]
    facts = law.evidence
    ranges = {
        name: f"{si_text(numbers(points, c).min())} to {si_text(numbers(points, c).max())}"
        for name, c in (("N", "n_params"), ("D", "tokens"))
    }
    flops = numbers(points, "flops")
    each = {g: where(points, arch=g) for g in result.groups}
    excluded = sweep.exclusions["reason"].value_counts()
    unit = law.draws.method if law.draws else "none"
    items = {
        "Form": law.law.formula + ", one for each architecture; alternatives in the table of "
                "choices",
        "Variables": sweep.conventions,
        "Units": "loss in nats per token, C in FLOPs, N and D as counts",
        "Range": f"N {ranges['N']}, D {ranges['D']}, C {flops.min():.2g} to {flops.max():.2g} "
                 "FLOPs",
        "Sizes and seeds": "; ".join(
            f"{look(g).label}: {len(set(words(own, 'size')))} sizes, "
            f"{len(set(words(own, 'seed')))} seed(s)"
            for g, own in each.items()
        ),
        "Data": _several(sweep.runs, "corpus") + ", tokenizer " + _several(sweep.runs, "tokenizer"),
        "Learning rate": f"{_several(sweep.runs, 'schedule')} schedule, peak "
                         + _several(sweep.runs, "lr"),
        "Tuning": "as the experiment file sets it; not searched for each architecture",
        "Batch and context": f"{_several(sweep.runs, 'batch_tokens')} tokens a step, sequences of "
                             + _several(sweep.runs, "sequence_length"),
        "Exclusions": "; ".join(f"{v} x {k}" for k, v in excluded.items()) or "none",
        "Objective": law.problem.robust.describe(),
        "Optimiser": f"variable projection, then Newton from {facts.starts} starts; "
                     f"{look(result.baseline).label}: {facts.reached} reached the best optimum",
        "Intervals": f"{LEVEL:.0%}, {unit} bootstrap over runs, {result.bootstrap} refits, seed "
                     f"{result.seed}; runs of one size and seed drawn together",
        "Hold-out": "largest size of each architecture" if len(result.forecast) else "not possible",
        "Code": _several(sweep.runs, "git_revision"),
    }  # fmt: skip
    return pd.DataFrame({"item": list(items), "answer": list(items.values())})


def _several(runs: pd.DataFrame, column: str) -> str:
    """Distinct values of a column, few enough to read."""
    values = list(dict.fromkeys(words(runs, column)))
    return ", ".join(values[:4]) + (f" and {len(values) - 4} more" if len(values) > 4 else "")

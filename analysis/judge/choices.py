"""What was chosen on the way to a report, and what other choices would have given.

multiplier_table(study)    the comparison of architectures under other conventions and subsets
sensitivity_table(study)   each architecture's law under other choices (sensitivity.py)
checklist_table(study)     each law's reporting checklist (checklist.py), from the run records
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.fit.fitting import fit_law
from analysis.fit.law_fit import LawFit
from analysis.io.frames import numbers, rows, where, words
from analysis.io.looks import look
from analysis.io.sweep import Sweep
from analysis.judge.checklist import TESTED, checklist
from analysis.judge.frontier import compute_for_loss
from analysis.judge.sensitivity import sensitivity
from analysis.judge.study import Study

Keep = Callable[[pd.DataFrame, LawFit], np.ndarray]
COUNTINGS = {
    "n": {"all": "n_total", "paper": "n_paper", "non-embedding": "n_non_embedding"},
    "c": {"exact": "flops_exact", "paper": "flops_paper", "6ND": "flops_6nd"},
}
"""Columns of a sweep's points that count N and C, by the name of their convention."""


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
    predicted = fit.predict(n=points["n_params"], d=points["tokens"])
    error = np.abs(np.log(numbers(points, "loss") / predicted))
    return error < error.max()


_VARIANTS = (
    _Variant("as reported"),
    _Variant("least squares", {"objective": "least_squares"}),
    _Variant("training loss", {"loss": "train_loss"}),
    _Variant("N: all parameters", {"n": "n_total"}),
    _Variant("C: paper's FLOPs", {"c": "flops_paper"}),
    _Variant("C = 6ND", {"c": "flops_6nd"}),
    _Variant("without the smallest size", keep=_without_smallest),
    _Variant("without each run's first horizon", keep=_without_shortest),
    _Variant("without the worst point", keep=_without_worst),
)


def multiplier_table(result: Study) -> pd.DataFrame:
    """Compute multipliers over the baseline under other choices, point estimates.

    Returns:
        One row per choice: the multiplier of each architecture at the loss that its comparison's
        verdict ends with; NaN where a choice leaves too little to fit.
    """
    table: list[dict[str, Any]] = []
    for variant in _VARIANTS:
        named = [str(v) for k, v in variant.options.items() if k != "objective"]
        if not {*named} <= {*result.points.columns}:
            continue  # a table from elsewhere counts N and C in one way
        laws = {g: _under(result, g, variant) for g in (result.baseline, *result.comparisons)}
        row: dict[str, Any] = {"choice": variant.label}
        for group in result.comparisons:
            target = _target(result, group, laws[result.baseline], variant)
            ours, theirs = (_compute(laws[g], target) for g in (group, result.baseline))
            row[look(group).label] = theirs / ours
        table.append(row)
    return pd.DataFrame(table)


def _under(result: Study, group: str, variant: _Variant) -> LawFit | None:
    """An architecture's law under a choice; None where too little is left."""
    points = where(result.points, arch=group)
    if variant.keep is not None:
        points = rows(points, variant.keep(points, result.laws[group]))
    try:
        return fit_law(
            "chinchilla",
            points,
            clusters=result.sweep.unit,
            accounting=result.sweep.recorded,
            **{"c": result.sweep.compute_column, **variant.options},
        )
    except AnalysisError:
        return None


def _compute(law: LawFit | None, target: float) -> float:
    """Compute that an architecture needs for the target loss."""
    if law is None:
        return float("nan")
    return float(compute_for_loss(law, np.array([target]))[0])


def _target(result: Study, group: str, base: LawFit | None, variant: _Variant) -> float:
    """The loss at which a comparison is judged; of another loss, the baseline's at that budget."""
    compared = result.comparisons[group]
    judged = compared.frame.iloc[compared.judged]
    if variant.options.get("loss", "loss") == "loss":
        return float(judged["loss"])
    return float("nan") if base is None else float(base.frontier(float(judged["c_y"])))


def sensitivity_table(result: Study) -> pd.DataFrame:
    """Columns arch, choice, setting, points, parameters, loss_at, change and shift of a, note."""
    parts: list[pd.DataFrame] = []
    for group in result.groups:
        table = sensitivity(
            "chinchilla",
            where(result.points, arch=group),
            n_columns=COUNTINGS["n"] if result.sweep.recorded else None,
            reference=result.laws[group],
            clusters=result.sweep.unit,
            accounting=result.sweep.recorded,
            c=result.sweep.compute_column,
        )
        table.insert(0, "arch", group)
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def checklist_table(result: Study) -> pd.DataFrame:
    """Columns arch, section, question, answer."""
    parts: list[pd.DataFrame] = []
    for group in result.groups:
        table = checklist(result.laws[group], context=_context(result, group))
        table.insert(0, "arch", group)
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def _context(result: Study, group: str) -> dict[str, str]:
    """Answers of the run records, and what the hold-out said."""
    forecast = where(result.forecast, arch=group) if len(result.forecast) else result.forecast
    tested = "no: too few sizes"
    if len(forecast):
        error = numbers(forecast, "predicted") / numbers(forecast, "loss") - 1
        tested = f"yes: largest size held out, error {error.min():+.1%} to {error.max():+.1%}"
    answers = answers_of(result.sweep, group)
    return answers | {TESTED: tested}


def answers_of(sweep: Sweep, group: str) -> dict[str, str]:
    """Answers that the run records of an architecture give, by the checklist's questions; none for
    a table from elsewhere."""
    if not len(sweep.runs):
        return {}
    runs, named = where(sweep.runs, arch=group), sweep.conventions
    return {
        "Which parameters count as N?": named,
        "Which FLOPs count as C?": named,
        "Which checkpoints enter the fit?": named,
        "Is the loss that of training or of held-out data?": named,
        "Which architecture?": f"{look(group).label}, context {_several(runs, 'sequence_length')}",
        "Which data and tokenizer?": f"{_several(runs, 'corpus')}, {_several(runs, 'tokenizer')}",
        "Which learning-rate schedule?": f"{_several(runs, 'schedule')}, peak "
                                         + _several(runs, "lr"),
        "How were learning rate and batch size tuned per size?":
            "by one rule of the experiment file, not searched; "
            f"{_several(runs, 'batch_tokens')} tokens a step",
    }  # fmt: skip


def _several(runs: pd.DataFrame, column: str) -> str:
    """Distinct values of a column, few enough to read."""
    values = list(dict.fromkeys(words(runs, column)))
    return ", ".join(values[:4]) + (f" and {len(values) - 4} more" if len(values) > 4 else "")

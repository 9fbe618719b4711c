"""The filled checklist of a fit: what a reader must know to repeat or doubt it.

The questions follow (Mis)Fitting (Li et al. 2502.18969), whose survey found that most scaling-law
papers leave several of them open. Answers come from the fit itself; what the data do not say is
listed as "not recorded" instead of being left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis.fit.law_fit import LawFit

NOT_RECORDED = "not recorded"
TESTED = "Was extrapolation tested on held-out compute?"


def checklist(fit: LawFit, *, context: dict[str, str] | None = None) -> pd.DataFrame:
    """Columns section, question, answer.

    Args:
        fit: any fit, with or without a bootstrap.
        context: answers that only the experimenter knows, by question (see the table for the
            wording): architecture, data, schedule, tuning, tokenizer, loss split, hold-out.
    """
    known = context or {}
    rows = [*_form(fit), *_data(fit, known), *_optimisation(fit), *_uncertainty(fit, known)]
    return pd.DataFrame(rows, columns=["section", "question", "answer"])


Row = tuple[str, str, Any]


def _form(fit: LawFit) -> list[Row]:
    obs = fit.observations
    section = "Form"
    variables = ", ".join(f"{k.upper()} = {obs.called[k]}" for k in fit.law.columns)
    return [
        (section, "Which law?", f"{fit.form}: {fit.law.formula}"),
        (section, "Which variables?", variables),
        (section, "How many parameters?", f"{fit.law.size}: {', '.join(fit.law.parameters)}"),
        (section, "Which loss?", obs.called["loss"]),
        (section, "Parameters at full precision?",
         ", ".join(f"{k} = {v!r}" for k, v in fit.params.items())),
    ]  # fmt: skip


def _data(fit: LawFit, known: dict[str, str]) -> list[Row]:
    obs = fit.observations
    section = "Data"

    def span(role: str) -> str:
        values = obs.columns.get(role)
        if values is None:
            return NOT_RECORDED
        return f"{values.min():.3g} to {values.max():.3g}, {len(np.unique(values))} distinct"

    excluded = obs.exclusions["reason"].value_counts()
    listed = "; ".join(f"{v} x {k}" for k, v in excluded.items()) or "none"
    weights = obs.names.get("weights", "equal")
    rows: list[Row] = [
        (section, "How many points and runs?", f"{len(obs.loss)} points, {len(obs.labels)} runs "
                                               f"(by {obs.names['clusters']})"),
        (section, "Which sizes (N)?", span("n")),
        (section, "Which token counts (D)?", span("d")),
        (section, "Which compute (C)?", _compute(fit)),
        (section, "Under which compute are optima taken?", _optima(fit)),
        (section, "Which rows were excluded, and why?", listed),
        (section, "How are points weighted?", weights),
    ]  # fmt: skip
    for question in (
        "Which parameters count as N?",
        "Which FLOPs count as C?",
        "Which architecture?",
        "Which data and tokenizer?",
        "Which learning-rate schedule?",
        "How were learning rate and batch size tuned per size?",
        "Which checkpoints enter the fit?",
        "Is the loss that of training or of held-out data?",
    ):
        rows.append((section, question, known.get(question, NOT_RECORDED)))
    return rows


def _compute(fit: LawFit) -> str:
    compute = fit.observations.compute
    if not np.isfinite(compute).all():
        return NOT_RECORDED
    name = fit.observations.names.get("c", "6 N D")
    return f"{compute.min():.3g} to {compute.max():.3g} ({name})"


def _optima(fit: LawFit) -> str:
    if not fit.exponents_at(fit.values):
        return "none are taken: the form has no N and D"
    return fit.compute_model.describe()


def _optimisation(fit: LawFit) -> list[Row]:
    facts, section = fit.evidence, "Optimisation"
    bounds = [
        f"{name} at its bound" for name, low, high, t in zip(
            fit.law.parameters, fit.problem.lower, fit.problem.upper, fit.theta, strict=True)
        if t <= low + 1e-9 or t >= high - 1e-9
    ]  # fmt: skip
    return [
        (section, "Which objective?", fit.problem.robust.describe()),
        (section, "Value at the optimum?", f"{fit.objective:.10g}"),
        (section, "Which optimiser?", "damped Newton with exact gradients, centred logarithms"),
        (section, "How was it started?", f"{facts.starts} starts by variable projection over the "
                                         "exponents"),
        (section, "Did it converge?", f"{facts.reached} of {facts.starts} starts reached this "
         f"optimum, {facts.optima} distinct optima, relative gradient {facts.gradient:.1e}"),
        (section, "Share of points where the loss is quadratic?", f"{facts.inside_delta:.0%}"),
        (section, "Parameters at bounds?", "; ".join(bounds) or "none"),
        (section, "Condition number?", f"{facts.condition:.3g} (column-scaled Jacobian)"),
    ]  # fmt: skip


def _uncertainty(fit: LawFit, known: dict[str, str]) -> list[Row]:
    section = "Validation and uncertainty"
    how, intervals = "none: no intervals were computed", NOT_RECORDED
    if fit.draws is not None:
        how = (
            f"{len(fit.draws.values)} refits, {fit.draws.method} bootstrap over "
            f"{len(fit.draws.labels)} runs ({fit.draws.cluster_name}), seed {fit.draws.seed}"
        )
        intervals = "; ".join(
            f"{p} {fit.interval(p)[0]:.4g} to {fit.interval(p)[1]:.4g}" for p in fit.params
        )
    quality = fit.criteria()
    return [
        (section, "How were intervals computed?", how),
        (section, "90% intervals?", intervals),
        (section, "How good is the fit?", f"rms of log residuals {quality['rms']:.2e}, AICc "
                                          f"{quality['aicc']:.1f}, BIC {quality['bic']:.1f}"),
        (section, TESTED, known.get(TESTED, NOT_RECORDED)),
        (section, "What limits the result?",
         "; ".join(f"{w.code}: {w.message}" for w in fit.warnings) or "no warnings"),
    ]  # fmt: skip

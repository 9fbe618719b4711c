"""Approach 3: fit a law to points.

fit_law("chinchilla", points, bootstrap=4000) -> LawFit
    1. `prepare` checks the table (checks.py)
    2. variable projection proposes starts, batched Newton solves them all (solver.py)
    3. the best is kept; agreement of the starts and the gradient are the evidence
    4. warnings on what the data do not determine (diagnostics.py)
    5. a bootstrap over runs gives intervals (uncertainty.py)

fit_groups("chinchilla", points, group="arch", ...) -> {arch: LawFit}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.errors import AnalysisError, FitWarning
from analysis.fit.checks import prepare
from analysis.fit.diagnostics import Evidence, diagnose, evidence
from analysis.fit.law_fit import LawFit
from analysis.fit.mixtures import mixed
from analysis.fit.observations import model_of
from analysis.fit.problem import Bounds, Problem
from analysis.fit.robust import Objective, Robust
from analysis.fit.uncertainty import Method, Progress
from analysis.laws.compute_model import ComputeModel
from analysis.laws.power_sum import Law
from analysis.laws.registry import get_law
from analysis.units import Array

__all__ = ["LawFit", "fit_groups", "fit_law"]

STARTS = 6
MOST_STARTED = 1_000
"""Points from which every start is solved; of more, so many are taken for it."""
_SCATTER = 0.05
"""Rows whose C scatters by more about f(N) D are said to follow no such function."""


def fit_law(
    form: str,
    data: pd.DataFrame,
    *,
    n: str = "n_params",
    d: str = "tokens",
    c: str = "flops",
    u: str = "unique_tokens",
    others: Mapping[str, str] | None = None,
    loss: str = "loss",
    objective: Objective = "huber",
    delta: float = 1e-3,
    below: float = 0.1,
    weights: str | None = None,
    noise: str | None = None,
    clusters: str | None = None,
    bounds: Bounds | None = None,
    fix: Mapping[str, float | str] | None = None,
    accounting: bool = False,
    keep_diverged: bool = False,
    bootstrap: int = 0,
    method: Method = "auto",
    seed: int = 0,
    starts: int = STARTS,
    near: LawFit | None = None,
    progress: Progress | None = None,
) -> LawFit:
    """Fits one law to one group of points.

    Args:
        form: a name in `analysis.laws.registry.FORMS`.
        data: one row per trained model or checkpoint.
        n, d, c, u, loss: columns of N, D, C, unique tokens and loss; only what the form needs. c=""
            is C = 6 N D, whatever the table has.
        others: columns by role of what further forms need: "t" total parameters (default
            total_params; N are then the active ones), "p" bits (bits), "s" share (share).
        objective, delta, below: the loss of log residuals (robust.py).
        weights: column of weights, for noise that differs between points (1 / variance).
        noise: instead, column of the known standard deviation of each loss, in its units.
        clusters: column naming the unit of resampling; default `run_id`, else each row a run.
        accounting: N, D and C are exact counts of the runs' records, not a table's own.
        keep_diverged: fit rows whose loss lies far above their neighbours in N and D, too.
        bounds: (low, high) by parameter, for E and exponents.
        fix: values at which parameters are held, {"E": 1.6}, or the exponent that another one
            equals, {"alpha": "beta"}. A coefficient can be held together with its exponent.
        bootstrap: refits for intervals; 0 for none, 4000 for papers.
        method: `pairs`, `wild`, or by the number of runs (uncertainty.py).
        seed: of the bootstrap.
        starts: starting points; more of them prove convergence harder.
        near: a fit of the same form to nearly the same points: its parameters are the only start.
        progress: called with (done, total) during the bootstrap.

    Raises:
        AnalysisError: unknown form, unusable data, or bounds the form cannot hold.
    """
    ties = {k: v for k, v in (fix or {}).items() if isinstance(v, str)}
    if len(ties) > 1:
        raise AnalysisError(f"one pair of exponents can be held equal, got {ties}")
    for first, second in ties.items():
        form = f"{form}[{first}={second}]"
    law = get_law(form)
    robust = Robust(objective, delta, below)
    observations = prepare(
        data, law, n=n, d=d, c=c, u=u, others=others, loss=loss, weights=weights, noise=noise,
        clusters=clusters, keep_diverged=keep_diverged, own_counts=accounting,
    )  # fmt: skip
    if objective == "raw_least_squares" and noise is None:
        weight = observations.weight * observations.loss**2
        observations = replace(observations, weight=weight / weight.mean())
    held = {k: float(v) for k, v in (fix or {}).items() if not isinstance(v, str)}
    problem = Problem.build(law, observations, robust, bounds, held)
    theta, lowest, facts = _minimum(problem, starts, near)
    model = model_of(observations, accounting=accounting)
    kinds = data.iloc[observations.places]
    pooled = mixed(observations, kinds, problem.residuals(theta)) if near is None else []
    fit = LawFit(
        problem=problem,
        theta=theta,
        objective=lowest,
        evidence=facts,
        warnings=[
            *observations.warnings,
            *pooled,
            *diagnose(problem, theta, facts),
            *_scatter(law, model),
        ],
        compute_model=model,
    )
    if bootstrap:
        return fit.bootstrap(bootstrap, method=method, seed=seed, progress=progress)
    return fit


def _minimum(problem: Problem, starts: int, near: LawFit | None) -> tuple[Array, float, Evidence]:
    """Internal parameters, objective and convergence of the best of several starts, or of the one
    that a fit nearby gives.

    Of many points, a part spread over all runs finds the basin; all of them then find its bottom.
    """
    if near is not None and near.form == problem.law.name:
        solution = problem.solve(problem.internal(near.values))
        return solution.theta[0], float(solution.value[0]), evidence(problem, solution)
    part = problem.thinned(MOST_STARTED)
    solution = part.solve(part.starts(starts))
    theta = solution.theta[int(solution.value.argmin())]
    facts = evidence(part, solution)
    if part is problem:
        return theta, float(solution.value.min()), facts
    whole = problem.solve(theta)
    last = evidence(problem, whole)
    facts = replace(last, starts=facts.starts, reached=facts.reached, optima=facts.optima)
    return whole.theta[0], float(whole.value[0]), facts


def _scatter(law: Law, model: ComputeModel) -> list[FitWarning]:
    """A warning where C is no function of N and D."""
    if not {"n", "d"} <= set(law.columns) or model.scatter < _SCATTER:
        return []
    return [
        FitWarning(
            "compute_scatter",
            f"C is not a function of N and D: about {model.describe()}. Optimal sizes rest on that "
            "f(N); check the column, or leave it out for C = 6 N D.",
            {"scatter": model.scatter},
        )
    ]


def fit_groups(
    form: str,
    data: pd.DataFrame,
    *,
    group: str,
    progress: Callable[[str, int, int], None] | None = None,
    **options: Any,
) -> dict[str, LawFit]:
    """One fit per value of a column, each as if alone; `options` as in `fit_law`.

    With `clusters` naming a column whose values recur in every group (a size label, say), the
    groups are resampled in pairs.

    Raises:
        AnalysisError: the column is absent or a group cannot be fitted; the message names it.
    """
    if group not in data.columns:
        raise AnalysisError(f"no column {group!r} to group by; the table has: "
                            f"{', '.join(map(str, data.columns))}")  # fmt: skip
    fits: dict[str, LawFit] = {}
    for value in sorted(data[group].dropna().unique(), key=str):
        name = str(value)

        def report(done: int, total: int, name: str = name) -> None:
            if progress is not None:
                progress(name, done, total)

        try:
            rows = data.loc[data[group] == value]
            fits[name] = fit_law(form, rows, progress=report, **options)
        except AnalysisError as error:
            raise AnalysisError(f"{group} = {name}: {error}") from error
    if not fits:
        raise AnalysisError(f"column {group!r} has no values: nothing to fit")
    return fits

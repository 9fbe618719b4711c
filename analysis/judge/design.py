"""Which runs to add: the ones that shrink the interval of the question most, within a budget.

    rank_rungs(fit, candidates, quantity="a", budget=1e20) -> DataFrame
        1. the information of the runs so far: J^T J / noise^2 of the linearised law
        2. the variance of the quantity q by the delta method: g^T information^-1 g, g = dq / dtheta
        3. each candidate adds its own rows of J: its gain is the fall of q's standard error
        4. greedily candidates are bought until the budget is spent (the better of two orders)

This is c-optimal design (Elfving) with a greedy exchange, local to the current estimate: it needs
no simulation, and its standard errors are for comparison among candidates. Pure: it reads a fit and
a table and returns a table, which is what `linscale plan --refine` prints.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.errors import AnalysisError
from analysis.fit.law_fit import LawFit
from analysis.units import Array

Quantity = Callable[[Array], Array]
"""Numbers (b,) computed from natural parameters (b, p)."""
_STEP = 1e-5
_RIDGE = 1e-9


def quantity(fit: LawFit, name: str) -> Quantity:
    """A quantity of interest by name.

    A parameter ("alpha", "E"), "a" or "b", "n@C" or "d@C" (log of N*, D* at C FLOPs), "loss@C"
    (lowest loss at C FLOPs, as in "loss@1e22"), "loss@N,D".

    Raises:
        AnalysisError: none of these.
    """
    law = fit.law
    if name in law.parameters:
        return lambda values: law.column(values, name)
    if name in ("a", "b"):

        def exponent(values: Array) -> Array:
            found = fit.exponents_at(values)
            if not found:
                raise AnalysisError(f"{law.name} has no N and D: {name!r} is not defined")
            return found[name]

        return exponent
    kind, _, place = name.partition("@")
    try:
        at = [float(v) for v in place.split(",")]
    except ValueError:
        at = []
    if not all(0 < v < np.inf for v in at):
        at = []
    if kind == "loss" and len(at) == 2:
        point = {"n": np.array([at[0]]), "d": np.array([at[1]]), "u": np.array([at[1]])}
        return lambda values: law.predict(values, point)[:, 0]
    if kind in ("n", "d", "loss") and len(at) == 1:
        budget = np.array([at[0]])
        if kind == "loss":
            return lambda values: fit.frontier_at(values[:, None, :], budget)[:, 0]
        index = 0 if kind == "n" else 1
        return lambda values: np.log(fit.optimum_at(values[:, None, :], budget)[index][:, 0])
    raise AnalysisError(
        f"quantity {name!r} is not known; use a parameter ({', '.join(law.parameters)}), a, b, "
        "n@C, d@C, loss@C or loss@N,D with positive numbers in place of C, N and D"
    )


def rank_rungs(
    fit: LawFit,
    candidates: pd.DataFrame,
    *,
    quantity_name: str = "a",
    budget: float | None = None,
    n: str = "n_params",
    d: str = "tokens",
    c: str = "flops",
    run: str | None = None,
    cost: str | None = None,
    repeat: bool = False,
) -> pd.DataFrame:
    """Ranks candidate runs by how much they shrink the standard error of a quantity.

    Args:
        fit: the law so far.
        candidates: points that could be measured, columns N and D and, if there is one, C.
        quantity_name: see `quantity`.
        budget: FLOPs to spend on the plan; None ranks only.
        run: column that joins the points of one run (its horizons): they are bought together and
            count as one run's worth of information, as in the fit. Default: each point is a run.
        cost: column of a run's FLOPs, the largest of its points counts; default C, else 6 N D.
        repeat: whether the plan may buy a candidate more than once (a further seed).

    Returns:
        One row per run, the largest of its points, with cost, se_now, se_alone (with this run
        alone added), gain (share by which it falls), gain_per_flop (relative to the best), order
        (position in the plan, 0 if not bought) and se_planned (after the plan up to that run);
        best first.

    Raises:
        AnalysisError: no candidates, columns absent, or no candidate that fits the budget.
    """
    if not len(candidates):
        raise AnalysisError("no candidate rungs to rank")
    law = fit.law
    columns = {"n": n, "d": d, "c": c}
    given = {r: np.asarray(candidates[name], dtype=float) for r, name in columns.items()
             if name in candidates.columns}  # fmt: skip
    missing = [columns.get(r, r) for r in law.columns if r not in given and r != "u"]
    if missing:
        raise AnalysisError(
            f"candidates have no column {', '.join(missing)}, which {law.name} needs"
        )
    given["u"] = given.get("d", np.ones(len(candidates)))
    absent = [name for name in (run, cost) if name is not None and name not in candidates.columns]
    if absent:
        raise AnalysisError(f"candidates have no column {', '.join(absent)}")
    spent = given["c"] if "c" in given else 6 * given["n"] * given["d"]
    price = spent if cost is None else np.asarray(candidates[cost], dtype=float)
    labels = np.arange(len(candidates)) if run is None else pd.factorize(candidates[run])[0]
    x, _ = law.features({r: given[r] for r in law.columns}, fit.problem.centres)
    _, jacobian, _ = law.evaluate(fit.theta[None], x)
    rows = jacobian[0].T / noise_of(fit)
    count = int(labels.max()) + 1
    added = np.stack([rows[k].T @ rows[k] / len(rows[k])
                      for k in (labels == g for g in range(count))])  # fmt: skip
    largest = [int(np.flatnonzero(labels == g)[spent[labels == g].argmax()]) for g in range(count)]
    costs = np.array([price[labels == g].max() for g in range(count)])
    information = _information(fit)
    gradient = gradient_of(fit, quantity(fit, quantity_name))
    now = _se(information, gradient)
    alone = np.array([_se(information + each, gradient) for each in added])
    gain = 1 - alone / now
    table = candidates.iloc[largest].reset_index(drop=True)
    table["cost"], table["se_now"], table["se_alone"] = costs, now, alone
    table["gain"] = gain
    per_flop = gain / costs
    table["gain_per_flop"] = per_flop / max(float(per_flop.max()), 1e-300)
    order, planned = _plan(information, added, gradient, costs, budget, repeat)
    table["order"], table["se_planned"] = order, planned
    if budget is not None and not order.any():
        raise AnalysisError(
            f"no candidate fits a budget of {budget:.3g} FLOPs; the cheapest costs "
            f"{costs.min():.3g}"
        )
    key = np.where(order > 0, order, len(table) + 1)
    ranked = np.lexsort((-table["gain_per_flop"].to_numpy(), key))
    return table.iloc[ranked].reset_index(drop=True)


def noise_of(fit: LawFit) -> float:
    """Standard deviation of log loss about the law: median-based, corrected for parameters used."""
    residual = fit.problem.residuals(fit.theta)
    m, p = len(residual), fit.law.size
    spread = 1.4826 * float(np.median(np.abs(residual - np.median(residual))))
    spread = max(spread, float(np.sqrt(np.mean(residual**2))) * 0.5, 1e-6)
    return spread * float(np.sqrt(m / max(1, m - p)))


def _information(fit: LawFit) -> Array:
    """J^T J / noise^2 of the points fitted; points of one run count as one run's worth."""
    obs = fit.observations
    _, jacobian, _ = fit.law.evaluate(fit.theta[None], fit.problem.x)
    size = np.bincount(obs.cluster)[obs.cluster]
    weighted = jacobian[0].T * np.sqrt(obs.weight / size)[:, None] / noise_of(fit)
    return weighted.T @ weighted


def gradient_of(fit: LawFit, q: Quantity) -> Array:
    """dq / dtheta (p,) in internal parameters, by central differences."""
    steps = _STEP * np.eye(fit.law.size)
    up, down = (q(fit.problem.natural(fit.theta + sign * steps)) for sign in (1.0, -1.0))
    return (up - down) / (2 * _STEP)


def _se(information: Array, gradient: Array) -> float:
    scale = np.sqrt(np.maximum(np.diag(information), 1e-300))
    scaled = information / np.outer(scale, scale) + _RIDGE * np.eye(len(scale))
    direction = gradient / scale
    return float(np.sqrt(max(direction @ np.linalg.solve(scaled, direction), 0.0)))


def _plan(
    information: Array, added: Array, gradient: Array, cost: Array, budget: float | None,
    repeat: bool,
) -> tuple[NDArray[np.int64], Array]:  # fmt: skip
    """Position in the plan (0: not bought) and standard error after it.

    Greedy by gain per FLOP, and greedy by gain alone; the plan that ends lower is taken. (Cheapest
    gains first can leave too little for the one large run that matters; the two together are
    within a constant factor of the best plan for gains that diminish.)
    """
    nothing = np.zeros(len(added), dtype=np.int64), np.full(len(added), np.nan)
    if budget is None:
        return nothing
    plans = [
        _greedy(information, added, gradient, cost, budget, repeat, price)
        for price in (cost, np.ones_like(cost))
    ]
    return min(plans, key=lambda plan: float(np.nanmin(plan[1], initial=np.inf)))


def _greedy(
    information: Array, added: Array, gradient: Array, cost: Array, budget: float, repeat: bool,
    price: Array,
) -> tuple[NDArray[np.int64], Array]:  # fmt: skip
    """Buys the candidate with the largest fall of the standard error per `price` while it can."""
    order, planned = np.zeros(len(added), dtype=np.int64), np.full(len(added), np.nan)
    current, left, position = information.copy(), budget, 0
    while position < 10 * len(added):
        able = np.flatnonzero((cost <= left) & (repeat | (order == 0)))
        if not len(able):
            break
        after = np.array([_se(current + added[k], gradient) for k in able])
        best = int(able[((_se(current, gradient) - after) / price[able]).argmax()])
        position += 1
        current = current + added[best]
        left -= float(cost[best])
        if order[best] == 0:
            order[best] = position
        planned[best] = _se(current, gradient)
    return order, planned

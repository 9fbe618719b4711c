"""The best N and D of a budget under a fitted law.

In closed form or by Newton where the law comes apart into a term in N and one in D, else by search.

    optimum_at(fit, values, compute)    N*, D*
    exponents(fit, values, span)        a and b: mean slopes over the compute of the points
    exists(fit, span)                   whether there is one near the data
"""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis.errors import AnalysisError
from analysis.laws.compute_model import optimal_exponents, optimum, optimum_by_search
from analysis.units import Array

LawFit = Any
"""A `LawFit`, which imports this module."""
_BEYOND = 1e3
"""Factor beyond the smallest and largest N up to which an optimum without closed form is sought."""
_AT_EDGE = 1.01


def optimum_at(fit: LawFit, values: Array, compute: Array) -> tuple[Array, Array]:
    """N*, D* for given natural parameters: (p,), or (draws, 1, p).

    Raises:
        AnalysisError: the form has no N and D, a budget that is not positive, or no optimum.
    """
    if not {"n", "d"} <= set(fit.law.columns):
        raise AnalysisError(
            f"{fit.form} has no N and D to trade; fit a form in both (chinchilla, gamma, ...)"
        )
    if not (np.isfinite(compute).all() and (compute > 0).all()):
        raise AnalysisError("compute must be positive FLOPs")
    inner = fit.law.inner(values, fit.held)
    if inner is not None:
        return optimum(inner, compute, fit.compute_model)
    if not fit.has_optimum:
        raise AnalysisError(
            f"under this {fit.form} the loss of a budget falls up to the smallest or largest N "
            f"looked at ({_BEYOND:g} times beyond the data): it has no best N and D"
        )
    return _searched(fit, values, np.atleast_1d(compute))


def exponents(fit: LawFit, values: Array, span: tuple[float, float]) -> dict[str, Array]:
    """a and b for natural parameters (..., p); none without an optimum."""
    inner = fit.law.inner(values, fit.held)
    if inner is not None:
        a, b = optimal_exponents(inner, *span, fit.compute_model)
        return {"a": a, "b": b}
    if not fit.has_optimum:
        return {}
    n, d = _searched(fit, values[..., None, :], np.array(span))
    wide = np.log(span[1] / span[0])
    return {name: np.log(x[..., 1] / x[..., 0]) / wide for name, x in (("a", n), ("b", d))}


def exists(fit: LawFit, span: tuple[float, float]) -> bool:
    """Whether budgets of a span have a best N and D."""
    if not {"n", "d"} <= set(fit.law.columns):
        return False
    if fit.law.inner(fit.values, fit.held) is not None:
        return True
    n, _ = _searched(fit, fit.values, np.array(span))
    low, high = _sizes(fit)
    return bool(((n > low * _AT_EDGE) & (n < high / _AT_EDGE)).all())


def _sizes(fit: LawFit) -> tuple[float, float]:
    n = fit.observations.columns["n"]
    return float(n.min()) / _BEYOND, float(n.max()) * _BEYOND


def _searched(fit: LawFit, values: Array, compute: Array) -> tuple[Array, Array]:
    wide = values[..., None, :]  # a size each behind the budgets
    return optimum_by_search(
        lambda n, d: fit.law.loss_of_split(wide, n, d, fit.held), compute, fit.compute_model,
        _sizes(fit),
    )  # fmt: skip

"""The forms of scaling laws by name, and the compute-optimal split they imply.

    power_c power_n power_d        L = A X^-alpha        Hestness et al. 1712.00409, 2406.16690
    power_c_e power_n_e power_d_e  L = E + A X^-alpha    Henighan et al. 2010.14701
    chinchilla                     L = E + A N^-alpha + B D^-beta    Hoffmann 2203.15556 equation 2
    chinchilla_tied                the same with alpha = beta
    chinchilla_no_e                the same with E = 0
    overtraining                   Gadre et al. 2403.08540 equation 4: alpha = beta = 2 eta
    kaplan gamma data_constrained broken_c    see nested.py

Each is a `Law` (power_sum.py); a fit is fitting.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from analysis.errors import AnalysisError
from analysis.laws.nested import BrokenPower, DataConstrained, GammaLaw, KaplanLaw
from analysis.laws.power_sum import Inner, Law, PowerSum, Term
from analysis.units import Array

_ITERATIONS, _STEP = 30, 1e-4
PerToken = Callable[[Array], Array]
"""Training FLOPs per token as a function of N, of an architecture at its context length."""


def optimum(
    inner: Inner, compute: Array, flops_per_token: PerToken | None = None
) -> tuple[Array, Array]:
    """N*, D* that minimise A / N^alpha + B / D^beta within a compute budget.

    Under C = 6 N D in closed form (Hoffmann et al. 2203.15556 equation 4): N* = G (C/6)^a,
    D* = (C/6)^b / G, a = beta / (alpha + beta), b = 1 - a,
    G = (alpha A / (beta B))^(1 / (alpha + beta)). With `flops_per_token` D = C / f(N), and the
    minimum is where alpha A N^-alpha = e(N) beta B D^-beta with e = d log f / d log N: Newton in
    log N from the closed form, taking e as locally constant. Broadcasts over draws.
    """
    total = inner.alpha + inner.beta
    log_g = (np.log(inner.alpha * inner.A) - np.log(inner.beta * inner.B)) / total
    budget = np.log(compute / 6.0)
    log_n = log_g + inner.beta / total * budget
    if flops_per_token is None:
        with np.errstate(over="ignore"):  # a refit without a term in N or D splits without bounds
            return np.exp(log_n), np.exp(budget - log_n)
    log_c = np.log(compute) + 0 * log_n
    for _ in range(_ITERATIONS):
        n = np.exp(log_n)
        log_f = np.log(flops_per_token(n))
        up, down = flops_per_token(n * math.exp(_STEP)), flops_per_token(n * math.exp(-_STEP))
        elasticity = np.log(up / down) / (2 * _STEP)
        log_d = log_c - log_f
        excess = (
            np.log(elasticity * inner.beta * inner.B) - inner.beta * log_d
            - np.log(inner.alpha * inner.A) + inner.alpha * log_n
        )  # fmt: skip
        log_n = log_n - np.clip(excess / (inner.alpha + inner.beta * elasticity), -3.0, 3.0)
    return np.exp(log_n), np.exp(log_c - np.log(flops_per_token(np.exp(log_n))))


def _registry() -> dict[str, Law]:
    laws: list[Law] = []
    for column, label in (("c", "C"), ("n", "N"), ("d", "D")):
        laws += [
            PowerSum(f"power_{column}", f"L = A {label}^-alpha", [Term("A", "alpha", column)]),
            PowerSum(
                f"power_{column}_e",
                f"L = E + A {label}^-alpha",
                [Term("E"), Term("A", "alpha", column)],
            ),
        ]
    floor, size, data = Term("E"), Term("A", "alpha", "n"), Term("B", "beta", "d")
    log6 = math.log(6.0)
    laws += [
        PowerSum("chinchilla", "L = E + A N^-alpha + B D^-beta", [floor, size, data]),
        PowerSum(
            "chinchilla_tied",
            "L = E + A N^-alpha + B D^-alpha",
            [floor, size, Term("B", "alpha", "d")],
        ),
        PowerSum("chinchilla_no_e", "L = A N^-alpha + B D^-beta", [size, data]),
        PowerSum(
            "overtraining",
            "L = E + (A M^eta + B M^-eta) C^-eta with M = D/N, C = 6ND",
            [floor, Term("A", "eta", "n", 2.0, log6), Term("B", "eta", "d", 2.0, log6)],
        ),
        KaplanLaw(),
        GammaLaw(),
        DataConstrained(),
        BrokenPower(),
    ]
    return {law.name: law for law in laws}


FORMS: dict[str, Law] = _registry()
"""Every form by name."""


def get_law(form: str) -> Law:
    """The law of that name.

    Raises:
        AnalysisError: unknown name; the message lists the names.
    """
    if form not in FORMS:
        raise AnalysisError(f"form {form!r} is not known; choose one of {', '.join(FORMS)}")
    return FORMS[form]

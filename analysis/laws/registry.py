"""The forms of scaling laws by name.

    power_c power_n power_d        L = A X^-alpha        Hestness et al. 1712.00409, 2406.16690
    power_c_e power_n_e power_d_e  L = E + A X^-alpha    Henighan et al. 2010.14701
    chinchilla                     L = E + A N^-alpha + B D^-beta    Hoffmann 2203.15556 equation 2
    chinchilla_tied                the same with alpha = beta
    chinchilla_no_e                the same with E = 0
    overtraining                   Gadre et al. 2403.08540 equation 4: alpha = beta = 2 eta
    kaplan gamma data_constrained broken_c    see nested.py
    size_exponent experts mixture             see log_linear.py
    precision precision_all                   see precision.py

Each is a `Law` (power_sum.py); a fit is fitting.py.
"""

from __future__ import annotations

import math
from dataclasses import replace

from analysis.errors import AnalysisError
from analysis.laws.log_linear import EXPERTS, MIXTURE, SIZE_EXPONENT
from analysis.laws.nested import BrokenPower, DataConstrained, GammaLaw, KaplanLaw
from analysis.laws.power_sum import Law, PowerSum, Term
from analysis.laws.precision import PrecisionLaw, PrecisionOfAll


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
        SIZE_EXPONENT,
        EXPERTS,
        MIXTURE,
        PrecisionLaw(),
        PrecisionOfAll(),
    ]
    return {law.name: law for law in laws}


FORMS: dict[str, Law] = _registry()
"""Every form by name."""


def get_law(form: str) -> Law:
    """The law of that name; "chinchilla[alpha=beta]" is chinchilla with these exponents equal.

    Raises:
        AnalysisError: unknown name; the message lists the names.
    """
    base, bracket, tie = form.removesuffix("]").partition("[")
    if bracket and base in FORMS:
        return tie_exponents(FORMS[base], *tie.split("=", 1))
    if form not in FORMS:
        raise AnalysisError(f"form {form!r} is not known; choose one of {', '.join(FORMS)}")
    return FORMS[form]


def tie_exponents(law: Law, first: str, second: str = "") -> Law:
    """A sum of power laws with two of its exponents made one, which keeps the first name.

    Raises:
        AnalysisError: another kind of law, or not two of its exponents.
    """
    if not isinstance(law, PowerSum) or {first, second} - set(law.exponents) or first == second:
        able = ", ".join(law.exponents) if isinstance(law, PowerSum) else "none"
        raise AnalysisError(
            f"{first} = {second} cannot be held in {law.name}: it takes two different exponents of "
            f"a sum of power laws, here {able}"
        )
    terms = [replace(t, exponent=first) if t.exponent == second else t for t in law.terms]
    name = f"{law.name}[{first}={second}]"
    return PowerSum(name, f"{law.formula} with {second} = {first}", terms)

"""The best N and D of a budget, against SciPy's minimiser of the loss that made the data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize_scalar

from analysis.errors import AnalysisError
from analysis.fit.fitting import fit_law
from analysis.fit.law_fit import LawFit
from analysis.judge.frontier import compute_for_loss

Loss = Callable[[float, float, float], float]
WORLDS: dict[str, tuple[str, str, Loss]] = {
    "experts": ("ratio", "total_params", lambda n, d, r: (
        1.36 + 35.9 * r**0.2285 * n ** -(0.1889 + 0.0098 * np.log(r))
        + 36.0 * r**-0.5529 * d ** -(0.1775 - 0.0259 * np.log(r)))),
    "mixture": ("share", "share", lambda n, d, s: (
        1.5 + 0.3 * np.exp(-1.7 * s) + 406.4 * n**-0.34 + 410.7 * d**-0.28)),
    "precision": ("bits", "bits", lambda n, d, p: (
        1.69 + 406.4 * (n * (1 - np.exp(-p / 2.7))) ** -0.34 + 410.7 * d**-0.28)),
    "precision_all": ("bits", "bits", lambda n, d, p: (
        1.69 + 406.4 * (n * (1 - np.exp(-p / 2.7)) ** 3) ** -0.34 + 410.7 * d**-0.28)),
    "size_exponent": ("", "", lambda n, d, _: (
        1.69 + 406.4 * n**-0.34 + 410.7 * n**0.09 * d ** -(0.2 + 0.004 * np.log(n)))),
}  # fmt: skip
"""Setting, column and loss of (N, D, setting)."""
SETTINGS = {"ratio": (1.5, 2, 4, 8), "share": (0.1, 0.2, 0.5, 0.8), "bits": (2, 3, 4, 8), "": (1,)}


def per_token(n: float) -> float:
    """FLOPs a token that are not 6 N."""
    return 6 * n + 2.5e4 * n ** (2 / 3)


def world(form: str) -> pd.DataFrame:
    setting, column, loss = WORLDS[form]
    table = [
        {"n_params": n, "tokens": d, "flops": per_token(n) * d, "loss": loss(n, d, x),
         **({column: n * x if setting == "ratio" else x} if column else {})}
        for n in np.geomspace(1e7, 3e9, 6) for d in np.geomspace(1e9, 3e11, 5)
        for x in SETTINGS[setting]
    ]  # fmt: skip
    return pd.DataFrame(table)


def best(loss: Loss, compute: float, x: float) -> tuple[float, float]:
    """N* and its loss by SciPy."""
    found = minimize_scalar(
        lambda y: loss(np.exp(y), compute / per_token(np.exp(y)), x),
        bounds=(np.log(1e6), np.log(1e12)), method="bounded", options={"xatol": 1e-9},
    )  # fmt: skip
    return float(np.exp(found.x)), float(found.fun)


@pytest.fixture(scope="module", params=WORLDS)
def fitted(request: pytest.FixtureRequest) -> tuple[str, LawFit]:
    return request.param, fit_law(request.param, world(request.param))


def test_the_optimum_is_that_of_a_minimiser(fitted: tuple[str, LawFit]) -> None:
    form, fit = fitted
    setting, _, loss = WORLDS[form]
    for x in SETTINGS[setting][1:3] or (1,):
        at = fit.holding(**{setting: x}) if setting else fit
        for compute in (1e20, 1e22):
            size, lowest = best(loss, compute, x)
            found = at.optimal(compute, extrapolate=True)
            assert found["n"][0] == pytest.approx(size, rel=1e-3)
            assert found["d"][0] == pytest.approx(compute / per_token(size), rel=1e-3)
            assert found["loss"][0] == pytest.approx(lowest, rel=1e-6)
        low, high = np.nanmin(fit.observations.compute), np.nanmax(fit.observations.compute)
        slope = np.log(best(loss, high, x)[0] / best(loss, low, x)[0]) / np.log(high / low)
        assert at.params["a"] == pytest.approx(slope, abs=2e-3)


def test_compute_for_a_loss_goes_back_or_is_refused(fitted: tuple[str, LawFit]) -> None:
    form, fit = fitted
    lowest = fit.frontier(np.array([1e21]))
    if form == "size_exponent":
        with pytest.raises(AnalysisError, match="does not come apart into a term in N and one"):
            compute_for_loss(fit, lowest)
    else:
        assert compute_for_loss(fit, lowest)[0] == pytest.approx(1e21, rel=1e-6)


def test_the_setting_is_one_that_runs_have_and_others_are_checked(
    fitted: tuple[str, LawFit],
) -> None:
    form, fit = fitted
    setting = WORLDS[form][0]
    assert dict(fit.held) == ({setting: SETTINGS[setting][1]} if setting else {})
    with pytest.raises(AnalysisError, match=f"{form} has no 'depth' to hold"):
        fit.holding(depth=3)
    if setting:
        with pytest.raises(AnalysisError, match="is no setting"):
            fit.holding(**{setting: -1.0})
    assert LawFit.from_json(fit.to_json()).optimal(1e21)["n"][0] == fit.optimal(1e21)["n"][0]


def test_a_law_without_a_best_size_says_so() -> None:
    """Where larger models learn ever faster from each token, no size of a budget is the best."""
    data = world("size_exponent")
    n, d = (data[c].to_numpy(dtype=float) for c in ("n_params", "tokens"))
    data["loss"] = 1.69 + 4.0 * n**-0.05 + 10.0 * n**-0.4 * d**-0.05
    fit = fit_law("size_exponent", data)
    assert "no_optimum" in {w.code for w in fit.warnings}
    assert "a" not in fit.params
    with pytest.raises(AnalysisError, match="it has no best N and D"):
        fit.optimal(1e20)

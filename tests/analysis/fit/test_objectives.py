"""Held parameters, objectives and known noise; oracles are scipy and the truth of the data."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import least_squares

from analysis.errors import AnalysisError
from analysis.fit.fitting import fit_law
from analysis.fit.law_fit import LawFit
from analysis.fit.robust import Robust
from analysis.laws.registry import get_law
from tests.support.worlds import TRUTH, suite

OVERTRAINED = {"E": 1.8366, "A": 166.2, "B": 366.7, "eta": 0.2729 / 2}


def _overtraining(noise: float = 0.0) -> pd.DataFrame:
    """104 models over compute and tokens per parameter: L = E + (a M^eta + b M^-eta) C^-eta."""
    p = OVERTRAINED
    ratio, compute = np.meshgrid(np.geomspace(5, 640, 8), np.geomspace(1e16, 1e20, 13))
    m, c = ratio.ravel(), compute.ravel()
    loss = p["E"] + (p["A"] * m ** p["eta"] + p["B"] * m ** -p["eta"]) * c ** -p["eta"]
    loss += noise * np.random.default_rng(0).standard_normal(len(m))
    n = np.sqrt(c / (6 * m))
    return pd.DataFrame({"n_params": n, "tokens": m * n, "flops": c, "loss": loss})


def test_raw_least_squares_reproduces_the_overtraining_law() -> None:
    fit = fit_law("overtraining", _overtraining(), objective="raw_least_squares")
    assert fit.params["A"] == pytest.approx(166.2, rel=1e-5)
    assert fit.params["B"] == pytest.approx(366.7, rel=1e-5)
    assert 2 * fit.params["eta"] == pytest.approx(0.2729, rel=1e-5)
    assert fit.params["E"] == pytest.approx(1.8366, rel=1e-5)


@pytest.mark.parametrize("noisy", [False, True])
def test_raw_least_squares_is_scipys(noisy: bool) -> None:
    data = _overtraining(noise=0.02)
    spread = np.where(data["flops"] < 1e18, 0.05, 0.02) if noisy else np.ones(len(data))
    fit = fit_law("overtraining", data.assign(sd=spread), objective="raw_least_squares",
                  noise="sd" if noisy else None)  # fmt: skip
    m, c, loss = (data["tokens"] / data["n_params"]).to_numpy(), data["flops"], data["loss"]

    def errors(p: np.ndarray) -> np.ndarray:
        law = p[0] + (np.exp(p[1]) * m ** p[3] + np.exp(p[2]) * m ** -p[3]) * c ** -p[3]
        return np.asarray((law - loss) / spread)

    start = [1.8, np.log(160.0), np.log(360.0), 0.136]
    found = least_squares(errors, start, xtol=1e-14, ftol=1e-14, gtol=1e-14, x_scale="jac").x
    values = [found[0], np.exp(found[1]), found[3], np.exp(found[2])]
    np.testing.assert_allclose(fit.values, values, rtol=1e-4)


def test_asymmetric_finds_the_lower_envelope_of_badly_tuned_rungs() -> None:
    rng = np.random.default_rng(3)
    data = suite(sizes=8, noise=0.001)
    bad = rng.random(len(data)) < 0.4
    data.loc[bad, "loss"] *= 1 + 0.06 * rng.random(int(bad.sum()))
    plain = fit_law("chinchilla", data, objective="least_squares")
    lower = fit_law("chinchilla", data, objective="asymmetric", delta=1e-4, below=0.2)
    below = (lower.residuals()["residual"] < 0).mean()
    assert below == pytest.approx(0.2, abs=0.08)
    far = {"n": 1e10, "d": 2e11}
    truth = TRUTH["E"] + TRUTH["A"] / 1e10 ** TRUTH["alpha"] + TRUTH["B"] / 2e11 ** TRUTH["beta"]
    errors = [abs(float(f.predict(**far)) - truth) for f in (lower, plain)]
    assert errors[0] < 0.3 * errors[1]
    drawn = lower.bootstrap(50)
    assert drawn.draws is not None
    assert drawn.draws.method == "pairs"
    with pytest.raises(AnalysisError, match="use method='pairs'"):
        lower.bootstrap(50, method="wild")
    assert LawFit.from_json(drawn.to_json()).problem.robust == Robust("asymmetric", 1e-4, 0.2)


def test_a_held_value_stays_and_frees_the_others() -> None:
    data = suite(noise=0.003)
    fit = fit_law("chinchilla", data, fix={"E": 1.6}, bootstrap=40)
    assert fit.params["E"] == pytest.approx(1.6, rel=1e-12)
    np.testing.assert_allclose(fit.draws_of("E"), 1.6, rtol=1e-12)
    assert fit.objective >= fit_law("chinchilla", data).objective
    both = fit_law("chinchilla", data, fix={"A": 406.4, "alpha": 0.34})
    assert both.params["A"] == pytest.approx(406.4, rel=1e-9)
    assert both.params["alpha"] == pytest.approx(0.34, rel=1e-12)
    assert fit.criteria()["aic"] - fit.criteria()["bic"] == pytest.approx(
        5 * (2 - np.log(len(data)))
    )


def test_equal_exponents_are_the_tied_law() -> None:
    data = suite(noise=0.003)
    fit = fit_law("chinchilla", data, fix={"alpha": "beta"})
    tied = fit_law("chinchilla_tied", data)
    assert fit.objective == pytest.approx(tied.objective, rel=1e-9)
    assert fit.params["alpha"] == pytest.approx(tied.params["alpha"], rel=1e-6)
    assert LawFit.from_json(fit.to_json()).params == fit.params


@pytest.mark.parametrize(
    ("form", "fix", "message"),
    [
        ("chinchilla", {"A": 400.0}, "cannot fix A alone"),
        ("chinchilla", {"gamma": 1.0}, "cannot fix 'gamma': chinchilla has E, A"),
        ("chinchilla", {"E": -1.0}, "must be a positive number"),
        ("chinchilla", {"alpha": "eta"}, "two different exponents"),
        ("gamma", {"alpha": "beta"}, "sum of power laws, here none"),
        ("chinchilla", {"alpha": "beta", "E": "A"}, "one pair"),
    ],
)
def test_what_cannot_be_held_is_said(form: str, fix: dict[str, float | str], message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        fit_law(form, suite(), fix=fix)


def test_known_noise_is_one_over_its_square() -> None:
    data = suite(noise=0.01).assign(sd=0.01)
    data.loc[data.index[::3], "sd"] = 0.03
    data["w"] = (data["loss"] / data["sd"]) ** 2
    first = fit_law("chinchilla", data, noise="sd", objective="least_squares")
    second = fit_law("chinchilla", data, weights="w", objective="least_squares")
    np.testing.assert_allclose(first.values, second.values, rtol=1e-9)
    assert first.observations.names["weights"] == "1 / sd^2"
    with pytest.raises(AnalysisError, match="not both"):
        fit_law("chinchilla", data, noise="sd", weights="w")


@pytest.mark.parametrize("name", ["asymmetric", "raw_least_squares"])
def test_derivatives_of_losses(name: str) -> None:
    loss = Robust(name, 0.05)  # type: ignore[arg-type]
    r = np.array([-0.4, -0.03, 0.02, 0.3])
    step = 1e-6
    slope = (loss.rho(r + step) - loss.rho(r - step)) / (2 * step)
    bend = (loss.psi(r + step) - loss.psi(r - step)) / (2 * step)
    np.testing.assert_allclose(loss.psi(r), slope, rtol=1e-6)
    np.testing.assert_allclose(loss.curvature(r), bend, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(loss.scale_weight(r) * r, loss.psi(r), rtol=1e-6)


def test_a_tie_is_part_of_the_name_of_a_form() -> None:
    law = get_law("chinchilla_no_e[alpha=beta]")
    assert law.parameters == ("A", "alpha", "B")

"""Forms against printed formulas, derivatives against differences, optima against search."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis.errors import AnalysisError
from analysis.laws.compute_model import ComputeModel, fit_compute_model, optimum
from analysis.laws.power_sum import Inner, PowerSum
from analysis.laws.registry import FORMS, get_law

N = np.geomspace(2e7, 3e9, 23)
D = np.geomspace(4e11, 3e8, 23) * np.tile([1.0, 3.0], 12)[:23]
COLUMNS = {
    "n": N, "d": D, "c": 6 * N * D, "u": np.minimum(D, 3e10), "t": N * (1 + np.arange(23) % 9),
    "p": 2.0 + np.arange(23) % 15, "s": (np.arange(23) % 5) / 4,
}  # fmt: skip
GAUSS_NEWTON = ("data_constrained", "broken_c", "precision", "precision_all")
VALUES = {
    "power_c": [30.0, 0.05],
    "power_n": [11.0, 0.07],
    "power_d": [15.0, 0.07],
    "power_c_e": [1.7, 1600.0, 0.16],
    "power_n_e": [1.9, 150.0, 0.26],
    "power_d_e": [1.5, 73.0, 0.18],
    "chinchilla": [1.69, 406.4, 0.34, 410.7, 0.28],
    "chinchilla_tied": [1.8, 500.0, 0.35, 1700.0],
    "chinchilla_no_e": [700.0, 0.37, 9.4, 0.06],
    "overtraining": [1.8, 770.0, 0.178, 2400.0],
    "kaplan": [8.8e13, 0.076, 5.4e13, 0.095],
    "gamma": [1.75, 2300.0, 0.42, 9900.0, 0.43, 0.77],
    "data_constrained": [1.87, 521.0, 0.353, 1488.0, 0.35, 15.4, 5.3],
    "broken_c": [1.7, 1600.0, 0.16, 1e20, 0.05, 0.7],
    "size_exponent": [1.69, 406.4, 0.34, 410.7, 0.2, -0.09, 0.004],
    # Signs as of negative exponents; published in 2502.05172
    "experts": [1.3637, 35.91, 0.1889, -0.2285, 0.0098, 35.98, 0.1775, 0.5529, -0.0259],
    "mixture": [1.5, 406.4, 0.34, 410.7, 0.28, 0.3, 1.7],
    "precision": [1.69, 406.4, 0.34, 410.7, 0.28, 2.7],
    "precision_all": [1.69, 406.4, 0.34, 410.7, 0.28, 2.7],
}


def test_every_form_is_covered() -> None:
    assert set(VALUES) == set(FORMS)


def _written_out(form: str, v: list[float]) -> np.ndarray:
    n, d, c, u = COLUMNS["n"], COLUMNS["d"], COLUMNS["c"], COLUMNS["u"]
    match form:
        case "power_c":
            return v[0] * c ** -v[1]
        case "power_n":
            return v[0] * n ** -v[1]
        case "power_d":
            return v[0] * d ** -v[1]
        case "power_c_e":
            return v[0] + v[1] * c ** -v[2]
        case "power_n_e":
            return v[0] + v[1] * n ** -v[2]
        case "power_d_e":
            return v[0] + v[1] * d ** -v[2]
        case "chinchilla":
            return v[0] + v[1] / n ** v[2] + v[3] / d ** v[4]
        case "chinchilla_tied":
            return v[0] + v[1] / n ** v[2] + v[3] / d ** v[2]
        case "chinchilla_no_e":
            return v[0] / n ** v[1] + v[2] / d ** v[3]
        case "overtraining":  # Gadre et al. equation 4 with C = 6 N D, M = D / N
            m = d / n
            return v[0] + (v[1] * m ** v[2] + v[3] * m ** -v[2]) * c ** -v[2]
        case "kaplan":  # Kaplan et al. equation 1.5
            return ((v[0] / n) ** (v[1] / v[3]) + v[2] / d) ** v[3]
        case "gamma":
            return v[0] + (v[1] / n ** v[2] + v[3] / d ** v[4]) ** v[5]
        case "data_constrained":  # Muennighoff et al. equations 5 and 6
            e, a, alpha, b, beta, r_d, r_n = v
            g = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
            u_n = np.minimum(g * (u * g) ** (beta / alpha), n)
            d_eff = u + u * r_d * (1 - np.exp(-(d / u - 1) / r_d))
            n_eff = u_n + u_n * r_n * (1 - np.exp(-(n / u_n - 1) / r_n))
            return e + a / n_eff**alpha + b / d_eff**beta
        case "size_exponent":
            e, a, alpha, b, beta, eta, kappa = v
            return e + a / n**alpha + b * n**-eta * d ** -(beta + kappa * np.log(n))
        case "experts":
            e, a, alpha, delta, gamma, b, beta, omega, zeta = v
            r = COLUMNS["t"] / n
            first = a * r**-delta * n ** -(alpha + gamma * np.log(r))
            return e + first + b * r**-omega * d ** -(beta + zeta * np.log(r))
        case "mixture":
            return (v[0] + v[5] * np.exp(-v[6] * COLUMNS["s"]) + v[1] / n ** v[2]
                    + v[3] / d ** v[4])  # fmt: skip
        case "precision":
            worth = n * (1 - np.exp(-COLUMNS["p"] / v[5]))
            return v[0] + v[1] / worth ** v[2] + v[3] / d ** v[4]
        case "precision_all":  # 2411.04330, equation 5 at one precision for all three
            worth = n * (1 - np.exp(-COLUMNS["p"] / v[5])) ** 3
            return v[0] + v[1] / worth ** v[2] + v[3] / d ** v[4]
        case "broken_c":  # Caballero et al. equation 1 with one break
            e, a, alpha, c_b, step, width = v
            return e + a * c**-alpha * (1 + (c / c_b) ** (1 / width)) ** (-step * width)
    raise AssertionError(form)


@pytest.mark.parametrize("form", FORMS)
def test_prediction_equals_the_printed_formula(form: str) -> None:
    predicted = FORMS[form].predict(np.array(VALUES[form]), COLUMNS)
    np.testing.assert_allclose(predicted, _written_out(form, VALUES[form]), rtol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_natural_and_internal_are_inverse_in_any_centre(form: str) -> None:
    law = FORMS[form]
    x, centres = law.features(COLUMNS)
    theta = law.internal(np.array(VALUES[form]), centres)
    np.testing.assert_allclose(law.natural(theta, centres), VALUES[form], rtol=1e-12)
    # and the loss is the same in centred coordinates
    np.testing.assert_allclose(
        np.exp(law.log_loss(theta, x)), _written_out(form, VALUES[form]), rtol=1e-12
    )


@pytest.mark.parametrize("form", FORMS)
def test_jacobian_equals_central_differences(form: str) -> None:
    law = FORMS[form]
    x, centres = law.features(COLUMNS)
    theta = law.internal(np.array(VALUES[form]), centres)
    value, jacobian, _ = law.evaluate(theta[None], x)
    np.testing.assert_allclose(value[0], law.log_loss(theta, x), rtol=1e-13, atol=1e-13)
    for j in range(law.size):
        step = np.zeros(law.size)
        step[j] = 1e-6
        slope = (law.log_loss(theta + step, x) - law.log_loss(theta - step, x)) / 2e-6
        # Differences of numbers near 1 carry 1e-16 / 1e-6 = 1e-10 of rounding each
        np.testing.assert_allclose(jacobian[0, j], slope, atol=3e-8 * max(1, abs(slope).max()))


@pytest.mark.parametrize("form", [f for f in FORMS if f not in GAUSS_NEWTON])
def test_hessian_equals_differences_of_the_gradient(form: str) -> None:
    law = FORMS[form]
    x, centres = law.features(COLUMNS)
    theta = law.internal(np.array(VALUES[form]), centres)
    rng = np.random.default_rng(0)
    curvature, slope = rng.random((1, len(N))), rng.standard_normal((1, len(N)))
    _, jacobian, state = law.evaluate(theta[None], x)
    gauss_newton = (jacobian[0] * curvature) @ jacobian[0].T
    expected = np.empty((law.size, law.size))
    for j in range(law.size):
        step = np.zeros(law.size)
        step[j] = 1e-5
        up = law.evaluate((theta + step)[None], x)[1][0] @ slope[0]
        down = law.evaluate((theta - step)[None], x)[1][0] @ slope[0]
        expected[:, j] = (up - down) / 2e-5
    found = law.hessian(state, curvature, slope)[0]
    np.testing.assert_allclose(found, gauss_newton + expected, atol=1e-7 * np.abs(found).max())


@pytest.mark.parametrize(
    "form", ["chinchilla", "chinchilla_tied", "overtraining", "kaplan", "gamma"]
)
def test_optimum_is_the_minimum_along_the_budget(form: str) -> None:
    law = FORMS[form]
    values = np.array(VALUES[form])
    inner = law.inner(values)
    assert inner is not None
    compute = 3.0e21
    n, d = optimum(inner, np.array([compute]))
    assert float(6 * n[0] * d[0]) == pytest.approx(compute, rel=1e-12)
    grid = np.geomspace(n[0] / 50, n[0] * 50, 200_001)
    losses = law.predict(values, {"n": grid, "d": compute / (6 * grid)})
    # The grid is 4e-5 wide in log N; flat minimum, so allow a few steps
    assert grid[losses.argmin()] == pytest.approx(float(n[0]), rel=2e-4)


def test_optimum_under_other_flops() -> None:
    """A head and attention make small models dearer; the oracle is a search."""
    inner = Inner(*(np.array(v) for v in (406.4, 0.34, 410.7, 0.28)))

    def per_token(n: np.ndarray) -> np.ndarray:
        return 6 * n + 2.5e4 * n ** (2 / 3) + 3e5 * np.cbrt(n)

    sizes = np.geomspace(1e7, 1e10, 6)
    compute = np.array([1e17, 1e20, 1e23])
    n, d = optimum(inner, compute, fit_compute_model(sizes, per_token(sizes)))
    np.testing.assert_allclose(per_token(n) * d, compute, rtol=1e-12)
    for c, found in zip(compute, n, strict=True):
        grid = np.geomspace(found / 30, found * 30, 400_001)
        loss = 406.4 / grid**0.34 + 410.7 / (c / per_token(grid)) ** 0.28
        assert grid[loss.argmin()] == pytest.approx(float(found), rel=1e-3)


def test_optimum_reduces_to_the_closed_form() -> None:
    inner = Inner(*(np.array(v) for v in (406.4, 0.34, 410.7, 0.28)))
    compute = np.geomspace(1e18, 1e25, 5)
    straight = ComputeModel("column", (math.log(6.0), 1.0, 0.0), 1.0, "curve", (0.0, 60.0))
    closed, searched = optimum(inner, compute), optimum(inner, compute, straight)
    np.testing.assert_allclose(searched, closed, rtol=1e-10)


def test_projection_solves_the_linear_part_exactly() -> None:
    law = FORMS["chinchilla"]
    assert isinstance(law, PowerSum)
    values = np.array(VALUES["chinchilla"])
    x, centres = law.features(COLUMNS)
    loss = law.predict(values, COLUMNS)
    theta, cost = law.project(np.array([[0.34, 0.28]]), x, loss, np.ones(len(N)))
    np.testing.assert_allclose(law.natural(theta[0], centres), values, rtol=1e-6)
    assert cost[0] < 1e-12


def test_projection_never_returns_negative_coefficients() -> None:
    """A pure power law leaves nothing for E: its coefficient must stop at zero, not below."""
    law = FORMS["power_c_e"]
    assert isinstance(law, PowerSum)
    loss = 30.0 * COLUMNS["c"] ** -0.05
    x, _ = law.features(COLUMNS)
    theta, _ = law.project(np.array([[0.03]]), x, loss, np.ones(len(N)))
    assert np.isfinite(theta).all()


def test_unknown_form_lists_the_known() -> None:
    with pytest.raises(AnalysisError, match=r"'chinchila' is not known.*chinchilla"):
        get_law("chinchila")

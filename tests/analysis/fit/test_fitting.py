"""Fits of known laws: recovery, invariances, records, warnings."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from analysis.errors import AnalysisError
from analysis.fit.fitting import fit_groups, fit_law
from analysis.fit.law_fit import LawFit
from analysis.laws.registry import FORMS
from tests.support.worlds import TRUTH, loss_of, optimum_of, suite


def _codes(fit: LawFit) -> set[str]:
    return {w.code for w in fit.warnings}


@pytest.mark.parametrize("objective", ["huber", "lad", "least_squares", "logcosh"])
def test_noise_free_law_is_recovered(objective: str) -> None:
    fit = fit_law("chinchilla", suite(), objective=objective)  # type: ignore[arg-type]
    for name, value in TRUTH.items():
        # lad stops at residuals of 1e-8, the width of its last Huber
        assert fit.params[name] == pytest.approx(value, rel=1e-5 if objective == "lad" else 1e-8)
    assert fit.params["a"] == pytest.approx(0.28 / 0.62, rel=1e-6)


@pytest.mark.parametrize(
    ("form", "values"),
    [
        ("power_c", [30.0, 0.05]),
        ("power_n", [11.0, 0.07]),
        ("power_d", [15.0, 0.07]),
        ("power_c_e", [1.7, 1600.0, 0.16]),
        ("power_n_e", [1.9, 150.0, 0.26]),
        ("power_d_e", [1.5, 73.0, 0.18]),
        ("chinchilla_tied", [1.8, 500.0, 0.35, 1700.0]),
        ("chinchilla_no_e", [70.0, 0.25, 9.4, 0.06]),
        ("overtraining", [1.8, 770.0, 0.178, 2400.0]),
        ("kaplan", [8.8e13, 0.076, 5.4e13, 0.095]),
        ("gamma", [1.75, 2300.0, 0.42, 9900.0, 0.43, 0.77]),
        ("broken_c", [1.2, 300.0, 0.13, 3e19, 0.10, 0.6]),
    ],
)
def test_every_form_is_recovered_without_noise(form: str, values: list[float]) -> None:
    data = suite(sizes=7)
    law = FORMS[form]
    columns = {k: data[v].to_numpy() for k, v in
               (("n", "n_params"), ("d", "tokens"), ("c", "flops"))}  # fmt: skip
    data["loss"] = law.predict(np.array(values), columns)
    fit = fit_law(form, data, starts=16)
    predicted = fit.predict(**{k: columns[k] for k in law.columns})
    np.testing.assert_allclose(predicted, data["loss"], rtol=1e-7)
    tolerance = 1e-2 if form == "broken_c" else 1e-4  # a break is only weakly determined
    np.testing.assert_allclose(fit.values, values, rtol=tolerance)


def test_data_constrained_law_is_recovered() -> None:
    rows = []
    for n in np.geomspace(1e7, 3e9, 5):
        for unique in (1e8, 1e9, 1e10):
            for epochs in (1, 4, 16, 64):
                rows.append({"n_params": n, "tokens": unique * epochs, "unique_tokens": unique})
    data = pd.DataFrame(rows)
    values = np.array([1.87, 521.0, 0.353, 1488.0, 0.353, 15.4, 5.3])
    law = FORMS["data_constrained"]
    names = {"n": "n_params", "d": "tokens", "u": "unique_tokens"}
    data["loss"] = law.predict(values, {k: data[v].to_numpy() for k, v in names.items()})
    fit = fit_law("data_constrained", data)
    np.testing.assert_allclose(fit.values, values, rtol=1e-3)


laws = st.fixed_dictionaries({
    "E": st.floats(1.0, 3.0), "A": st.floats(50.0, 2000.0), "alpha": st.floats(0.2, 0.5),
    "B": st.floats(50.0, 4000.0), "beta": st.floats(0.2, 0.5),
})  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(law=laws)
def test_any_plausible_law_is_recovered(law: dict[str, float]) -> None:
    data = suite(law=law, ratios=(2.0, 10.0, 40.0, 160.0))
    # A term that is nowhere 1 % of the loss is not there to be found: its two parameters are free.
    for scale, exponent, column in (("A", "alpha", "n_params"), ("B", "beta", "tokens")):
        term = law[scale] * data[column] ** -law[exponent]
        assume((term / data["loss"]).max() > 0.01)
    fit = fit_law("chinchilla", data)
    for name, value in law.items():
        assert fit.params[name] == pytest.approx(value, rel=1e-3)


@settings(max_examples=20, deadline=None)
@given(
    law=laws, weak=st.sampled_from(["A", "B"]), share=st.floats(0.0005, 0.0095),
    noise=st.sampled_from([0.0, 0.003]), seed=st.integers(0, 1000),
)  # fmt: skip
def test_a_term_that_is_hardly_there_is_found_or_warned_of(
    law: dict[str, float], weak: str, share: float, noise: float, seed: int
) -> None:
    """A term nowhere above 1 % of the loss: its parameters are right, or a warning says that they
    are open; the loss inside the data is right in any case."""
    exponent, column = {"A": ("alpha", "n_params"), "B": ("beta", "tokens")}[weak]
    ratios = (2.0, 10.0, 40.0, 160.0)
    smallest = suite(ratios=ratios)[column].min()
    law = {**law, weak: share * law["E"] * smallest ** law[exponent]}
    data = suite(law=law, ratios=ratios, noise=noise, seed=seed)
    fit = fit_law("chinchilla", data)
    truth = loss_of(data["n_params"].to_numpy(), data["tokens"].to_numpy(), law)
    error = np.log(fit.predict(n=data["n_params"], d=data["tokens"]) / truth)
    # 5 parameters from 20 points: the error of a fit is about half the noise, 3 times at worst
    assert np.abs(error).max() < max(3 * noise, 1e-3)
    open_ = {"flat_direction", "not_converged", "weak_term", "at_bound"} & _codes(fit)
    found = all(fit.params[k] == pytest.approx(v, rel=0.05) for k, v in law.items())
    assert found or open_


@settings(max_examples=15, deadline=None)
@given(n_unit=st.floats(0.01, 1.0), d_unit=st.floats(0.01, 1.0), seed=st.integers(0, 50))
def test_units_only_rescale_the_coefficients(n_unit: float, d_unit: float, seed: int) -> None:
    """N -> u N leaves E, alpha and beta alone and multiplies A by u^alpha."""
    data = suite(noise=0.003, seed=seed)
    scaled = data.assign(n_params=data["n_params"] * n_unit, tokens=data["tokens"] * d_unit)
    first, second = fit_law("chinchilla", data), fit_law("chinchilla", scaled)
    for name in ("E", "alpha", "beta"):
        assert second.params[name] == pytest.approx(first.params[name], rel=1e-5)
    expected = first.params["A"] * n_unit ** first.params["alpha"]
    assert second.params["A"] == pytest.approx(expected, rel=1e-3)
    assert second.objective == pytest.approx(first.objective, rel=1e-7)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_row_order_does_not_matter(seed: int) -> None:
    data = suite(noise=0.003, seed=3)
    shuffled = data.sample(frac=1.0, random_state=seed)
    first, second = fit_law("chinchilla", data), fit_law("chinchilla", shuffled)
    np.testing.assert_allclose(second.values, first.values, rtol=1e-5)
    assert second.objective == pytest.approx(first.objective, rel=1e-9)


def test_draws_do_not_depend_on_row_order() -> None:
    data = suite(noise=0.003, seed=3)
    first = fit_law("chinchilla", data, bootstrap=40)
    second = fit_law("chinchilla", data.iloc[::-1], bootstrap=40)
    np.testing.assert_allclose(first.draws_of("a"), second.draws_of("a"), rtol=1e-3)


def test_groups_are_fitted_as_if_alone() -> None:
    x = suite(noise=0.003, seed=1)
    y = suite(noise=0.003, seed=2, arch="y", law={**TRUTH, "A": 450.0})
    both = fit_groups(
        "chinchilla", pd.concat([x, y], ignore_index=True), group="arch", bootstrap=50
    )
    alone = fit_law("chinchilla", y, bootstrap=50)
    np.testing.assert_array_equal(both["y"].values, alone.values)
    np.testing.assert_array_equal(both["y"].draws_of("a"), alone.draws_of("a"))


def test_a_group_that_cannot_be_fitted_is_named() -> None:
    data = pd.concat([suite(), suite(arch="y").head(3)], ignore_index=True)
    with pytest.raises(AnalysisError, match="arch = y: chinchilla has 5 parameters and 3 usable"):
        fit_groups("chinchilla", data, group="arch")


def test_weights_equal_repetition() -> None:
    """A weight of two is the same as a second, independent, equal run."""
    data = suite(noise=0.003, seed=4)
    data["w"] = 1.0 + (np.arange(len(data)) % 3 == 0)
    extra = data[data["w"] == 2.0].assign(run_id=lambda f: f["run_id"] + "-again")
    doubled = pd.concat([data, extra], ignore_index=True)
    first, second = fit_law("chinchilla", data, weights="w"), fit_law("chinchilla", doubled)
    np.testing.assert_allclose(first.values, second.values, rtol=1e-5)


def test_record_predicts_exactly_what_the_fit_predicts() -> None:
    """Rounded parameters in a record would fail this: nothing is rounded."""
    fit = fit_law("chinchilla", suite(noise=0.003), bootstrap=30)
    again = LawFit.from_json(fit.to_json())
    n, d = np.geomspace(1e7, 1e12, 9), np.geomspace(1e9, 1e13, 9)
    predicted = fit.predict(n=n, d=d, extrapolate=True)
    np.testing.assert_array_equal(again.predict(n=n, d=d, extrapolate=True), predicted)
    np.testing.assert_array_equal(again.predict_draws(n=n, d=d), fit.predict_draws(n=n, d=d))
    assert again.interval("a") == fit.interval("a")
    np.testing.assert_array_equal(
        again.bootstrap(20).draws_of("E"), fit.bootstrap(20).draws_of("E")
    )
    assert json.loads(fit.to_json())["parameters"] == fit.params
    rounded = {k: float(f"{v:.3g}") for k, v in fit.params.items()}
    values = np.array([[rounded[k] for k in fit.law.parameters]])
    error = np.log(fit.law.predict(values, {"n": n, "d": d}) / predicted)
    assert np.abs(error).max() > 1e-3, "three digits are visibly not enough"


def test_optimal_agrees_with_brute_force() -> None:
    fit = fit_law("chinchilla", suite(noise=0.002, seed=1), bootstrap=50)
    law = {k: fit.params[k] for k in TRUTH}
    n, d, loss = optimum_of(1e21, law)
    row = fit.optimal(1e21).iloc[0]
    assert row["n"] == pytest.approx(n, rel=1e-4)
    assert row["d"] == pytest.approx(d, rel=1e-4)
    assert row["loss"] == pytest.approx(loss, rel=1e-10)
    assert row["tokens_per_param"] == pytest.approx(d / n, rel=1e-3)
    assert row["n_lo"] < row["n"] < row["n_hi"]
    assert row["loss_lo"] < row["loss"] < row["loss_hi"]


def test_frontier_draws_equal_predictions_at_each_draws_optimum() -> None:
    fit = fit_law("gamma", suite(noise=0.002, seed=1), bootstrap=10)
    compute = np.array([1e19, 1e22])
    found = fit.frontier_draws(compute)
    assert fit.draws is not None
    for i, values in enumerate(fit.draws.values):
        n, d = fit.optimum_at(values, compute)
        np.testing.assert_allclose(found[i], fit.law.predict(values, {"n": n, "d": d}), rtol=1e-10)


def test_bands_widen_for_a_run_and_outside_the_data() -> None:
    fit = fit_law("chinchilla", suite(noise=0.005, seed=2), bootstrap=400)
    place = {"n": [1e8, 1e11], "d": [2e9, 2e12], "extrapolate": True}
    mean, run = fit.band(**place), fit.band(kind="run", **place)
    width = (mean["hi"] - mean["lo"]) / mean["loss"]
    assert width[1] > 2 * width[0]
    assert (run["hi"] - run["lo"])[0] > 1.5 * (mean["hi"] - mean["lo"])[0]
    # The noise of a run is 0.5 %: a 90 % interval of about 2 x 1.64 x 0.5 % = 1.6 %
    assert 0.01 < float((run["hi"] - run["lo"])[0] / run["loss"][0]) < 0.04


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f.predict(n=1e9), "d not given"),
        (lambda f: f.predict(n=-1.0, d=1e9), "must be positive"),
        (lambda f: f.optimal(-1.0), "compute must be positive"),
        (lambda f: f.interval("a"), "has no bootstrap"),
        (lambda f: f.bootstrap(50).interval("gamma"), "no parameter 'gamma'"),
        (lambda f: f.bootstrap(50).interval("a", 90), "level must lie between 0 and 1"),
        (lambda f: f.profile("A", [1.0]), "can be profiled over E, alpha, beta"),
    ],
)
def test_wrong_requests_are_explained(call, message: str) -> None:
    fit = fit_law("chinchilla", suite(noise=0.002))
    with pytest.raises(AnalysisError, match=message):
        call(fit)


def test_power_law_in_compute_has_no_split() -> None:
    fit = fit_law("power_c_e", suite(noise=0.002))
    with pytest.raises(AnalysisError, match="no N and D to trade"):
        fit.optimal(1e21)
    np.testing.assert_allclose(fit.frontier([1e20]), fit.predict(c=[1e20]))


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"A": (1.0, 2.0)}, "takes bounds on E, alpha, beta"),
        ({"alpha": (0.5, 0.1)}, "low <= high"),
    ],
)
def test_bounds_that_cannot_be_held(bounds, message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        fit_law("chinchilla", suite(), bounds=bounds)


def test_good_fit_has_evidence_and_no_warnings() -> None:
    fit = fit_law("chinchilla", suite(noise=0.002, sizes=8), starts=20)
    assert fit.warnings == []
    assert fit.evidence.reached >= 15
    assert fit.evidence.gradient < 1e-6
    assert fit.evidence.condition < 200


def test_pure_power_law_reports_no_irreducible_loss() -> None:
    data = suite()
    data["loss"] = 30 * data["flops"] ** -0.05
    assert "no_irreducible" in _codes(fit_law("power_c_e", data))


def test_no_floor_is_not_said_twice() -> None:
    """Over four decades of a law without E nothing is open: 0.001 against 0.003 is no question."""
    rng = np.random.default_rng(0)
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e6, 1e10, 8), np.geomspace(1e8, 1e12, 8)))
    loss = (400 * n**-0.34 + 410 * d**-0.28) * np.exp(0.002 * rng.normal(size=n.size))
    fit = fit_law("chinchilla", pd.DataFrame({"n_params": n, "tokens": d, "loss": loss}))
    assert fit.params["alpha"] == pytest.approx(0.34, abs=0.005)
    assert "no_irreducible" in _codes(fit)
    assert "flat_direction" not in _codes(fit)


def test_short_range_reports_a_flat_direction() -> None:
    data = suite(sizes=4, ratios=(18.0, 20.0, 22.0, 24.0), noise=0.01, seed=1)
    data = data[data["n_params"] < 4e8]
    fit = fit_law("chinchilla", data)
    flat = [w for w in fit.warnings if w.code == "flat_direction"]
    assert flat
    assert "not determined" in flat[0].message


def test_outlier_is_reported_by_row_and_not_dropped() -> None:
    data = suite(noise=0.001, sizes=6)
    data.loc[7, "loss"] *= 1.3
    fit = fit_law("chinchilla", data)
    (warning,) = [w for w in fit.warnings if w.code == "outliers"]
    assert warning.data["rows"] == ["7"]
    assert len(fit.observations.loss) == len(data)


def test_heteroscedastic_weights_reduce_the_error() -> None:
    """Cheap runs are ten times as noisy: inverse-variance weights help least squares."""
    plain, weighted = [], []
    for seed in range(20):
        data = suite(sizes=6)
        spread = np.where(data["n_params"] < 2e8, 0.03, 0.003)
        rng = np.random.default_rng(seed)
        data["loss"] *= np.exp(spread * rng.standard_normal(len(data)))
        data["w"] = 1 / spread**2
        for weights, errors in ((None, plain), ("w", weighted)):
            fit = fit_law("chinchilla", data, objective="least_squares", weights=weights)
            errors.append(float(fit.frontier([1e21])[0]) - optimum_of(1e21)[2])
    assert np.abs(weighted).mean() < 0.7 * np.abs(plain).mean()


def test_predict_broadcasts() -> None:
    fit = fit_law("chinchilla", suite())
    grid = fit.predict(n=np.array([[1e8], [1e9]]), d=np.array([1e9, 1e10, 1e11]))
    assert grid.shape == (2, 3)
    np.testing.assert_allclose(grid[1, 2], loss_of(np.array(1e9), np.array(1e11)), rtol=1e-8)


def test_tables_and_html_name_every_parameter() -> None:
    fit = fit_law("chinchilla", suite(noise=0.002), bootstrap=30)
    table = fit.table()
    assert table["parameter"].to_list() == ["E", "A", "alpha", "B", "beta", "a", "b"]
    assert (table["lo"] <= table["hi"]).all()
    assert "alpha" in fit._repr_html_()
    residuals = fit.residuals()
    np.testing.assert_allclose(
        np.exp(residuals["residual"]), residuals["loss"] / residuals["predicted"]
    )


@pytest.mark.parametrize("objective", ["huber", "least_squares", "lad", "logcosh"])
@pytest.mark.parametrize("form", ["chinchilla", "gamma", "power_c_e"])
def test_exact_data_are_fitted_at_once_and_without_doubt(form: str, objective) -> None:
    """Rounding errors of 1e-16 are not optima to tell apart, nor decreases to go on for."""
    fit = fit_law(form, suite(sizes=9), objective=objective)
    assert {"several_optima", "not_converged"}.isdisjoint(w.code for w in fit.warnings)
    assert fit.evidence.iterations < 60
    if form == "chinchilla":
        assert fit.params["alpha"] == pytest.approx(0.34, rel=1e-10)


def test_far_predictions_are_refused_unless_asked_for() -> None:
    """Beyond ten times the compute fitted: by N and D, by C, along the optimum, and in a band."""
    data = suite()
    largest = float(data["flops"].max())
    fit = fit_law("chinchilla", data, bootstrap=20)
    far = {"n": 7e9, "d": 11 * largest / (6 * 7e9)}
    for ask in (
        lambda **k: fit.predict(**far, **k),
        lambda **k: fit.optimal(11 * largest, **k),
        lambda **k: fit.band(**far, **k),
        lambda **k: fit_law("power_c_e", data).predict(c=11 * largest, **k),
    ):
        with pytest.raises(AnalysisError, match=r"11 times .* extrapolate=True"):
            ask()
        assert np.isfinite(np.asarray(ask(extrapolate=True), dtype=float)).all()
    fit.optimal(9 * largest)
    fit.predict(n=7e9, d=9 * largest / (6 * 7e9))

"""Comparison, choice of form, forecasts, sensitivity, checklist."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.errors import AnalysisError
from analysis.fit.fitting import fit_groups, fit_law
from analysis.judge import compare
from analysis.judge.checklist import NOT_RECORDED, checklist
from analysis.judge.compare import CompareResult, compute_multiplier
from analysis.judge.crossing import Crossing, _first_zero, crossing
from analysis.judge.forecast import forecast
from analysis.judge.form_selection import compare_forms, holdout, holdout_summary
from analysis.judge.frontier import compute_for_loss
from analysis.judge.sensitivity import sensitivity
from analysis.judge.shared_exponents import shared_exponents
from analysis.laws.compute_model import fit_compute_model
from tests.support.worlds import TRUTH, optimum_of, suite


def _two(noise: float = 0.0, factor: float = 1.1, seed: int = 0) -> pd.DataFrame:
    """Two architectures whose runs of one size share their noise; y has larger A and B."""
    law = {**TRUTH, "A": TRUTH["A"] * factor, "B": TRUTH["B"] * factor}
    x = suite(noise=noise, seed=seed, runs="size", sizes=9)
    y = suite(noise=noise, seed=seed, runs="size", sizes=9, law=law, arch="y")
    own = np.random.default_rng(seed + 100)
    for part in (x, y):
        part["loss"] *= np.exp(0.1 * noise * own.standard_normal(len(part)))
    return pd.concat([x, y], ignore_index=True)


def _factor_of(factor: float) -> float:
    """Both terms scaled by f: E + f K C^-s meets E + K C'^-s at C = f^(1/s) C'."""
    return factor ** (1 / (0.34 * 0.28 / 0.62))


def test_multiplier_of_a_known_pair_is_exact() -> None:
    fits = fit_groups("chinchilla", _two(), group="arch")
    result = compute_multiplier(fits["x"], fits["y"], names=("x", "y"))
    np.testing.assert_allclose(result.frame["multiplier"], _factor_of(1.1), rtol=1e-5)
    assert np.isnan(result.crossing.compute)
    assert "nothing can be said about significance" in result.verdict
    other = compute_multiplier(fits["y"], fits["x"])
    np.testing.assert_allclose(other.frame["multiplier"], 1 / _factor_of(1.1), rtol=1e-5)


@pytest.mark.parametrize("form", ["chinchilla", "chinchilla_tied", "gamma", "kaplan", "power_c_e"])
def test_frontier_is_a_power_law_and_is_inverted(form: str) -> None:
    fit = fit_law(form, suite(noise=0.002, sizes=6))
    compute = np.geomspace(1e18, 1e22, 5)
    floor = fit.params.get("E", 0.0)
    slopes = np.diff(np.log(fit.frontier(compute) - floor)) / np.diff(np.log(compute))
    np.testing.assert_allclose(slopes, slopes[0], rtol=1e-6)
    np.testing.assert_allclose(compute_for_loss(fit, fit.frontier(compute)), compute, rtol=1e-8)


def test_frontier_is_inverted_under_own_flops() -> None:
    n = np.geomspace(1e6, 1e11, 30)
    compute = np.geomspace(1e18, 1e22, 5)
    for form in ("chinchilla", "gamma", "kaplan"):
        for cost in (6 * n + 9e4 * n ** (2 / 3), 4 * n**1.2, 6 * n - 2e2 * n ** (2 / 3)):
            fit = fit_law(form, suite(noise=0.002), bootstrap=20)
            fit = fit.under(fit_compute_model(n, cost))
            found = compute_for_loss(fit, fit.frontier(compute))
            np.testing.assert_allclose(found, compute, rtol=1e-8)
            drawn = fit.frontier_draws(compute)
            for row in (0, 19):
                again = compute_for_loss(fit, drawn[row], draws=True)[row]
                np.testing.assert_allclose(again, compute, rtol=1e-8)


def test_a_loss_below_the_floor_is_out_of_reach() -> None:
    fit = fit_law("chinchilla", suite())
    assert compute_for_loss(fit, np.array([1.0]))[0] == np.inf


def test_pairing_narrows_the_interval() -> None:
    data = _two(noise=0.01)
    options = {"group": "arch", "bootstrap": 300, "objective": "least_squares"}
    paired = fit_groups("chinchilla", data, clusters="size", **options)
    single = fit_groups("chinchilla", data, **options)
    first = compute_multiplier(paired["x"], paired["y"], names=("x", "y"))
    second = compute_multiplier(single["x"], single["y"], names=("x", "y"))
    assert first.paired
    assert not second.paired
    assert "one_draw_source" in {w.code for w in second.warnings}
    width = [float((r.frame["hi"] - r.frame["lo"]).iloc[12]) for r in (first, second)]
    assert width[0] < 0.5 * width[1]
    assert "x is more efficient" in first.verdict


def test_paired_intervals_cover() -> None:
    """20 worlds; 18 hits expected of a 90 % interval, 1.3 standard deviation."""
    hits = 0
    for seed in range(20):
        fits = fit_groups("chinchilla", _two(noise=0.01, seed=seed), group="arch", clusters="size",
                          bootstrap=100, objective="least_squares")  # fmt: skip
        row = compute_multiplier(fits["x"], fits["y"]).frame.iloc[12]
        hits += row["lo"] <= _factor_of(1.1) <= row["hi"]
    assert hits >= 14


def test_verdict_does_not_exceed_the_interval() -> None:
    data = _two(noise=0.01, factor=1.002, seed=5)
    fits = fit_groups("chinchilla", data, group="arch", bootstrap=300, objective="least_squares")
    result = compute_multiplier(fits["x"], fits["y"], names=("x", "y"))
    last = result.frame[result.frame["inside"]].iloc[-1]
    assert last["lo"] < 1 < last["hi"]
    assert "do not separate x and y" in result.verdict
    same = fit_groups("chinchilla", _two(noise=1e-5, factor=1.0), group="arch", bootstrap=50)
    assert "the same compute within 5%" in compute_multiplier(same["x"], same["y"]).verdict


def test_crossing_is_found_where_it_was_put() -> None:
    steep = {**TRUTH, "A": TRUTH["A"] * 3.0, "alpha": 0.40, "B": TRUTH["B"] * 2.2, "beta": 0.32}
    data = pd.concat([suite(noise=1e-4), suite(noise=1e-4, law=steep, arch="y", seed=1)])
    fits = fit_groups("chinchilla", data, group="arch", bootstrap=100, objective="least_squares")
    found = crossing(fits["x"], fits["y"])
    grid = np.geomspace(1e15, 1e26, 23)
    gap = [optimum_of(c)[2] - optimum_of(c, steep)[2] for c in grid]
    expected = np.exp(np.interp(0, np.array(gap), np.log(grid)))
    assert found.compute == pytest.approx(expected, rel=0.1)
    assert found.lo < found.compute < found.hi
    assert found.share > 0.95


def test_compare_record_is_read_back() -> None:
    fits = fit_groups("chinchilla", _two(noise=0.003), group="arch", bootstrap=40)
    result = compute_multiplier(fits["x"], fits["y"], names=("x", "y"))
    again = CompareResult.from_json(result.to_json())
    pd.testing.assert_frame_equal(again.frame, result.frame)
    assert again.verdict == result.verdict


def test_disjoint_ranges_need_losses() -> None:
    far = suite(sizes=5)
    for name in ("n_params", "tokens"):
        far[name] *= 1e3
    far["flops"] *= 1e6
    far["loss"] = 1.69 + 406.4 / far["n_params"] ** 0.34 + 410.7 / far["tokens"] ** 0.28
    near, other = fit_law("chinchilla", suite()), fit_law("chinchilla", far)
    with pytest.raises(AnalysisError, match="share no range of compute"):
        compute_multiplier(near, other)
    result = compute_multiplier(near, other, losses=np.array([2.0, 2.5]))
    assert not result.frame["inside"].any()
    assert "beyond the data" in result.verdict


def test_exponents_that_are_shared_are_preferred_shared() -> None:
    fits = fit_groups("chinchilla", _two(noise=0.003), group="arch", objective="least_squares",
                      clusters="size", bootstrap=200)  # fmt: skip
    result = shared_exponents(fits)
    assert result.aicc_shared < result.aicc_free
    assert "prefers shared" in result.verdict
    assert result.exponents["alpha"] == pytest.approx(0.34, abs=0.06)
    assert not result.differences["differs"].all()


def test_exponents_that_differ_are_told_apart() -> None:
    steep = {**TRUTH, "alpha": 0.5, "A": 5000.0}
    data = pd.concat([suite(noise=0.002), suite(noise=0.002, law=steep, arch="y", seed=1)])
    fits = fit_groups("chinchilla", data, group="arch", objective="least_squares", bootstrap=200)
    result = shared_exponents(fits)
    assert result.aicc_free < result.aicc_shared
    assert result.p_value < 1e-3
    assert result.differences.set_index("parameter").loc["alpha", "differs"]


def test_shared_needs_comparable_fits() -> None:
    one = fit_law("chinchilla", suite(noise=0.002))
    with pytest.raises(AnalysisError, match="at least two groups"):
        shared_exponents({"x": one})
    with pytest.raises(AnalysisError, match="same form and objective"):
        shared_exponents({"x": one, "y": fit_law("gamma", suite(noise=0.002))})


# ---- choice of form ------------------------------------------------------------------------------


def test_holdout_of_the_true_form_is_exact_and_the_wrong_one_is_biased() -> None:
    data = suite(sizes=7)
    right, wrong = holdout("chinchilla", data), holdout("chinchilla_no_e", data)
    assert np.abs(right["error"]).max() < 1e-6
    # Without a floor the loss of larger runs is predicted too low
    assert wrong["error"].mean() < -0.002
    assert (right["leap"] >= 1).all()
    assert holdout_summary(right)["points"].sum() == len(right)


def test_the_verdict_ends_at_the_lowest_loss_within_the_data() -> None:
    """The last row is the lowest loss that both have reached, and its optimum lies beyond the
    largest size: the sentence names the lowest loss whose optimum does not."""
    x, y = (
        fit_law("chinchilla", suite(noise=0.004, seed=s), bootstrap=100, clusters="run_id")
        for s in (1, 2)
    )
    reached = max(float(f.observations.loss.min()) for f in (x, y))
    result = compute_multiplier(x, y, names=("X", "Y"))
    inside = result.frame[result.frame["inside"]]
    assert result.frame["loss"].iloc[-1] == reached < inside["loss"].iloc[-1]
    judged = result.frame.iloc[result.judged]
    assert judged["loss"] == inside["loss"].iloc[-1]
    assert f"At loss {judged['loss']:.3f}, the lowest within the data of both" in result.verdict
    for fit, spent in ((x, "c_x"), (y, "c_y")):
        at = fit.optimal(inside[spent])
        assert at["n"].max() <= 1e9 * 1.001
        assert fit.optimal(result.frame[spent].iloc[-1:])["n"].max() > 1e9


def test_the_clearest_stretch_comes_first() -> None:
    """Y needs 1.9 and 2.1 times the compute where the interval excludes 1, and nothing is claimed
    of the losses where it does not."""
    frame = pd.DataFrame(
        {"loss": [3.0, 2.5, 2.0, 1.5], "c_y": [1e10, 1e11, 1e12, 1e13],
         "multiplier": [1.9, 2.1, 1.3, 1.0], "lo": [1.5, 1.6, 0.9, 0.7],
         "hi": [2.2, 2.6, 1.8, 1.4], "inside": [True, True, True, True]}
    )  # fmt: skip
    said = compare._verdict(frame, ("X", "Y"), 0.9, True)
    first, second = said.split("(every 90% interval excludes 1). ")
    assert first.startswith("From loss 3.000 down to 2.500, X is more efficient: ")
    assert first.endswith("Y needs 1.90 to 2.10 times its compute ")
    assert second.startswith("At loss 1.500, the lowest within the data of both, the data do not")
    level = frame.assign(lo=0.8, hi=1.3)
    assert compare._verdict(level, ("X", "Y"), 0.9, True).startswith("At loss 1.500")


def test_a_baseline_that_is_not_there_is_refused() -> None:
    assert compare.baseline_of(["tnl", "llama"]) == "llama"
    assert compare.baseline_of(["tnl", "hgrn2"]) == "tnl"
    with pytest.raises(AnalysisError, match="did you mean llama"):
        compare.baseline_of(["tnl", "llama"], "lama")


def test_forms_are_ranked_by_holdout() -> None:
    table = compare_forms(["chinchilla_no_e", "chinchilla", "kaplan"], suite(noise=0.001, sizes=7))
    assert table["form"].iloc[0] == "chinchilla"
    assert table["aicc"].idxmin() == 0
    tiny = compare_forms(["gamma", "power_c"], suite(sizes=2, ratios=(5.0, 20.0, 80.0)))
    assert tiny.set_index("form").loc["gamma", "note"].startswith("gamma has 6 parameters")


def test_holdout_refuses_what_it_cannot_do() -> None:
    with pytest.raises(AnalysisError, match="too few to hold any out"):
        holdout("chinchilla", suite(sizes=3, ratios=(5.0, 20.0)))


def test_forecast_states_its_leap_and_refuses_beyond_the_limit() -> None:
    fit = fit_law("chinchilla", suite(noise=0.003), bootstrap=200)
    near = forecast(fit, n=[1e9, 2e9], d=[1.5e11, 3e11])
    assert near["inside"].to_list() == [True, False]
    assert near["leap"].iloc[1] == pytest.approx(6e20 / 1.8e20)
    assert (near["lo"] < near["loss"]).all()
    assert (near["loss"] < near["hi"]).all()
    with pytest.raises(AnalysisError, match=r"beyond the limit of 10.*Pass limit=56"):
        forecast(fit, n=1e10, d=1e12)
    assert len(forecast(fit, n=1e10, d=1e12, limit=56)) == 1


def test_forecast_of_the_next_run_covers() -> None:
    """80 worlds, one new run each at twice the largest compute: 90 % +- 3.4 % (1 sd)."""
    hits = 0
    for seed in range(80):
        fit = fit_law("chinchilla", suite(noise=0.005, seed=seed), bootstrap=100,
                      objective="least_squares")  # fmt: skip
        rng = np.random.default_rng(1000 + seed)
        truth = 1.69 + 406.4 / 2e9**0.34 + 410.7 / 2e11**0.28
        row = forecast(fit, n=2e9, d=2e11).iloc[0]
        hits += row["lo"] <= truth * np.exp(0.005 * rng.standard_normal()) <= row["hi"]
    assert 0.80 <= hits / 80 <= 1.0


# ---- sensitivity and checklist -------------------------------------------------------------------


def test_sensitivity_covers_every_kind_of_choice() -> None:
    data = suite(noise=0.003, runs="size", sizes=9).assign(
        n_total=lambda f: f["n_params"] + 2e7, flops_paper=lambda f: f["flops"] * 0.9
    )
    reference = fit_law("chinchilla", data, bootstrap=50)
    table = sensitivity("chinchilla", data, reference=reference, n_columns={"total": "n_total"},
                        c_columns={"paper": "flops_paper"})  # fmt: skip
    kinds = set(table["choice"])
    assert kinds == {"reference", "highest losses dropped", "delta", "objective", "form",
                     "counting of N", "counting of C", "checkpoints", "run left out"}  # fmt: skip
    first = table.iloc[0]
    assert first["change"] == 0.0
    other = fit_law("chinchilla", data, n="n_total")
    row = table[table["choice"] == "counting of N"].iloc[0]
    assert row["a"] == pytest.approx(other.params["a"], rel=1e-9)
    assert row["shift"] == pytest.approx(row["change"] / reference.draws_of("a").std(ddof=1))


def test_sensitivity_keeps_alternatives_that_fail_with_their_reason() -> None:
    data = suite(noise=0.003, sizes=3, ratios=(5.0, 10.0, 20.0, 40.0))
    table = sensitivity("chinchilla", data)
    assert (table["note"].str.len() > 0).any()
    with pytest.raises(AnalysisError, match="no parameter 'omega'"):
        sensitivity("chinchilla", data, quantity="omega")


def test_checklist_is_filled_from_the_fit_and_open_questions_stay_visible() -> None:
    data = suite(noise=0.003)
    data.loc[3, "loss"] = np.nan
    fit = fit_law("chinchilla", data, bootstrap=50)
    table = checklist(fit, context={"Which architecture?": "TNL"}).set_index("question")["answer"]
    assert table["Which law?"].startswith("chinchilla: L = E + A")
    assert table["Which rows were excluded, and why?"] == "1 x loss is not a number"
    assert "wild bootstrap over 24 runs" in table["How were intervals computed?"]
    assert repr(fit.params["alpha"]) in table["Parameters at full precision?"]
    assert table["Which architecture?"] == "TNL"
    assert table["Which learning-rate schedule?"] == NOT_RECORDED


def test_crossings_on_a_grid_point_and_of_equal_frontiers() -> None:
    x = np.array([0.0, 1.0, 2.0, 3.0])
    gap = np.array([[2.0, 0.0, -1.0, -2.0], [-2.0, -1.0, 0.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(_first_zero(x, gap), [1.0, 2.0, np.nan])


def test_a_crossing_that_no_refit_sees_is_said_so() -> None:
    nan = float("nan")
    text = Crossing(nan, nan, nan, nan, 0.0, inside=False).describe("x", "y", 0.9)
    assert text.endswith("do not cross in the range searched, nor do those of any refit.")


def test_a_loss_that_one_never_reaches_is_no_number() -> None:
    low = {**TRUTH, "E": 1.2}
    data = pd.concat([suite(law=low), suite(arch="y")])
    fits = fit_groups("chinchilla", data, group="arch")
    result = compute_multiplier(fits["x"], fits["y"], names=("x", "y"), losses=np.array([1.5]))
    assert result.verdict.endswith("y does not reach it by the point estimates.")
    result = compute_multiplier(fits["x"], fits["y"], names=("x", "y"), losses=np.array([1.0]))
    assert "neither of the two reaches it" in result.verdict

"""Bootstraps over runs: unit, pairing, coverage; profile and jackknife."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.errors import AnalysisError
from analysis.fit.fitting import fit_law
from analysis.fit.uncertainty import Draws, inflated_residuals, quantiles
from tests.support.worlds import TRUTH, optimum_of, suite


def test_same_seed_same_draws_other_seed_others() -> None:
    data = suite(noise=0.004)
    first = fit_law("chinchilla", data, bootstrap=50, seed=3)
    again = fit_law("chinchilla", data, bootstrap=50, seed=3)
    other = fit_law("chinchilla", data, bootstrap=50, seed=4)
    np.testing.assert_array_equal(first.draws_of("a"), again.draws_of("a"))
    assert not np.array_equal(first.draws_of("a"), other.draws_of("a"))


def test_draws_survive_a_record() -> None:
    fit = fit_law("chinchilla", suite(noise=0.004), bootstrap=20)
    assert fit.draws is not None
    again = Draws.from_dict(fit.draws.as_dict())
    np.testing.assert_array_equal(again.values, fit.draws.values)
    assert again.paired_with(fit.draws)


def test_pairs_refit_equals_a_fit_to_the_resampled_table() -> None:
    """One draw, redone by hand: repeat the runs as often as they were drawn, and fit."""
    data = suite(noise=0.004, runs="size", sizes=8)
    fit = fit_law("chinchilla", data, bootstrap=4, method="pairs", seed=1)
    assert fit.draws is not None
    from analysis.fit.uncertainty import _plan

    counts = next(_plan("pairs", fit.observations.labels, 4, 1))[2]
    labels = fit.observations.labels
    weight = data["run_id"].map(dict(zip(labels, counts, strict=True)))
    drawn = data.assign(w=weight)[weight > 0]
    by_hand = fit_law("chinchilla", drawn, weights="w")
    np.testing.assert_allclose(fit.draws.values[2], by_hand.values, rtol=1e-4)


def test_wild_keeps_every_run_and_moves_it_as_one() -> None:
    """With noise common to a run and rows resampled instead, intervals come out far too narrow."""
    data = suite(noise=0.01, runs="size", sizes=9, ratios=tuple(np.geomspace(5, 40, 12)), seed=2)
    by_run = fit_law("chinchilla", data, bootstrap=300, objective="least_squares")
    rows = fit_law("chinchilla", data.drop(columns="run_id"), bootstrap=300,
                   objective="least_squares")  # fmt: skip
    assert by_run.draws is not None
    assert rows.draws is not None
    assert by_run.draws.method == "wild"
    assert by_run.draws.cluster_name == "run_id"
    assert by_run.draws_of("alpha").std() > 2 * rows.draws_of("alpha").std()


def test_method_follows_the_number_of_runs() -> None:
    few = fit_law("chinchilla", suite(noise=0.004), bootstrap=10)
    many = fit_law("chinchilla", suite(noise=0.004, sizes=9), bootstrap=10)
    assert few.draws is not None
    assert many.draws is not None
    assert (few.draws.method, many.draws.method) == ("wild", "pairs")


def test_few_runs_warn_and_fewer_are_refused() -> None:
    data = suite(noise=0.004, runs="size", sizes=6)
    assert "few_clusters" in {w.code for w in fit_law("chinchilla", data, bootstrap=20).warnings}
    with pytest.raises(AnalysisError, match=r"3 run\(s\) in 'run_id'.*at least 4"):
        fit_law("chinchilla", data[data["size"] < "s03"], bootstrap=20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bootstrap": 1}, "at least 2 samples"),
        ({"bootstrap": 10, "method": "rows"}, "'rows' is not one of"),
    ],
)
def test_wrong_bootstraps_are_explained(options, message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        fit_law("chinchilla", suite(noise=0.004), **options)


def test_progress_is_reported_to_the_end() -> None:
    seen: list[tuple[int, int]] = []
    fit_law("power_c_e", suite(noise=0.004), bootstrap=2500,
            progress=lambda done, total: seen.append((done, total)))  # fmt: skip
    assert seen == [(1000, 2500), (2000, 2500), (2500, 2500)]


def test_inflated_residuals_equal_the_jackknife_for_a_linear_law() -> None:
    """log L = a - alpha log C is linear: (I - H_gg)^-1 r is the error of the left-out run."""
    data = suite(noise=0.01, runs="size", sizes=8, ratios=(5.0, 20.0, 80.0))
    data["loss"] = (
        30
        * data["flops"] ** -0.05
        * np.exp(0.01 * np.random.default_rng(0).standard_normal(len(data)))
    )
    fit = fit_law("power_c", data, objective="least_squares")
    found = inflated_residuals(fit.problem, fit.theta)
    for run in data["run_id"].unique():
        inside = (data["run_id"] == run).to_numpy()
        other = fit_law("power_c", data[~inside], objective="least_squares")
        error = np.log(data["loss"] / other.predict(c=data["flops"])).to_numpy()[inside]
        np.testing.assert_allclose(found[inside], error, atol=1e-9)


def test_jackknife_finds_the_run_that_decides() -> None:
    data = suite(noise=0.001, sizes=6)
    data.loc[data["run_id"] == "x-05-04", "loss"] *= 1.05
    fit = fit_law("chinchilla", data, objective="least_squares", bootstrap=50)
    (warning,) = [w for w in fit.warnings if w.code == "one_run_decides"]
    assert warning.data["run"] == "x-05-04"
    table = fit.influence()
    assert "x-05-04" in table["left_out"].to_list()[:2]
    assert len(table) == data["run_id"].nunique()


def test_profile_touches_the_optimum_and_rises_on_both_sides() -> None:
    fit = fit_law("chinchilla", suite(noise=0.004), objective="least_squares")
    centre = fit.params["alpha"]
    grid = np.linspace(centre * 0.8, centre * 1.2, 21)
    curve = fit.profile("alpha", grid)["objective"].to_numpy()
    assert curve.argmin() == 10
    assert curve[10] == pytest.approx(fit.objective, rel=1e-8)
    assert (np.diff(curve[:11]) < 0).all()
    assert (np.diff(curve[10:]) > 0).all()


def test_profile_of_the_irreducible_loss() -> None:
    fit = fit_law("chinchilla", suite(noise=0.001), objective="least_squares")
    curve = fit.profile("E", [1.6, fit.params["E"], 1.8])["objective"].to_numpy()
    assert curve[1] == pytest.approx(fit.objective, rel=1e-8)
    assert curve[0] > curve[1] < curve[2]
    with pytest.raises(AnalysisError, match="must be positive"):
        fit.profile("E", [0.0])


def test_quantiles_are_central() -> None:
    low, high = quantiles(np.arange(1001.0), 0.9)
    assert (low, high) == (pytest.approx(50.0), pytest.approx(950.0))


FRESH = 50_000
"""First seed of the worlds: none below it was looked at while the method was chosen."""


def _coverage(trials: int, samples: int, **world) -> dict[str, float]:
    """Share of 90 % intervals that hold the truth: parameters, a, the frontier 100 times out."""
    objective = world.pop("objective")
    truth = {k: TRUTH[k] for k in ("E", "alpha", "beta")} | {"a": 0.28 / 0.62}
    target = optimum_of(1e22)[2]
    hits = dict.fromkeys([*truth, "loss"], 0)
    for seed in range(FRESH, FRESH + trials):
        fit = fit_law("chinchilla", suite(noise=0.004, seed=seed, **world), objective=objective,
                      bootstrap=samples, seed=seed)  # fmt: skip
        for name, value in truth.items():
            low, high = fit.interval(name, 0.9)
            hits[name] += low <= value <= high
        row = fit.optimal(1e22, extrapolate=True).iloc[0]
        hits["loss"] += row["loss_lo"] <= target <= row["loss_hi"]
    shares = {k: v / trials for k, v in hits.items()}
    print(objective, world, shares)
    return shares


def test_ninety_percent_intervals_cover_in_a_small_design() -> None:
    """Nine runs of four horizons, noise in common within a run. 60 trials: a coverage of 85 % (the
    least allowed) falls short of 0.75 in 1.4 % of samples (binomial), one of 70 % in 76 %."""
    found = _coverage(60, 200, objective="least_squares", sizes=9, ratios=(5.0, 10.0, 20.0, 40.0),
                      runs="size")  # fmt: skip
    assert min(found.values()) >= 0.75, found


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["huber", "least_squares"])
@pytest.mark.parametrize(
    "world",
    [
        {"sizes": 5},
        {"sizes": 9, "ratios": (5.0, 10.0, 20.0, 40.0), "runs": "size"},
        {"sizes": 9, "ratios": tuple(np.geomspace(5, 180, 6))},
    ],
    ids=["25 runs", "9 runs x 4 horizons", "54 runs"],
)
def test_ninety_percent_intervals_cover(objective: str, world) -> None:
    """Nominal 90 % covers 85 to 95 %. The sampling error of 200 trials is 2.5 % at 85 % and 1.5 %
    at 95 %: one of them is allowed on either side."""
    found = _coverage(200, 400, objective=objective, **world)
    assert all(0.825 <= share <= 0.965 for share in found.values()), found

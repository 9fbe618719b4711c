"""From loss to accuracy, and which runs to make next."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import curve_fit

from analysis.errors import AnalysisError
from analysis.fit.downstream import DownstreamFit, fit_downstream
from analysis.fit.fitting import fit_law
from analysis.judge.design import noise_of, quantity, rank_rungs
from analysis.judge.forecast import predict_task
from tests.support.worlds import suite


def _tasks(noise: float = 0.01, count: int = 40, ceiling: float = 1.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    loss = np.linspace(2.0, 3.6, count)
    accuracy = 0.25 + (ceiling - 0.25) / (1 + np.exp(4.0 * (loss - 2.7)))
    return pd.DataFrame({"loss": loss, "accuracy": np.clip(
        accuracy + noise * rng.standard_normal(count), 0, 1)})  # fmt: skip


@pytest.mark.parametrize(("ceiling", "free"), [(1.0, False), (0.9, True)])
def test_sigmoid_is_recovered(ceiling: float, free: bool) -> None:
    fit = fit_downstream(_tasks(0.0, ceiling=ceiling), chance=0.25, free_ceiling=free)
    assert fit.params["midpoint"] == pytest.approx(2.7, rel=1e-5)
    assert fit.params["slope"] == pytest.approx(4.0, rel=1e-4)
    assert fit.params["ceiling"] == pytest.approx(ceiling, rel=1e-5)


def test_sigmoid_equals_scipy() -> None:
    data = _tasks(0.03)
    fit = fit_downstream(data, chance=0.25)
    oracle, _ = curve_fit(lambda x, m, k: 0.25 + 0.75 / (1 + np.exp(k * (x - m))), data["loss"],
                          data["accuracy"], p0=[2.7, 4.0])  # fmt: skip
    assert fit.params["midpoint"] == pytest.approx(oracle[0], rel=1e-5)
    assert fit.params["slope"] == pytest.approx(oracle[1], rel=1e-4)


def test_sigmoid_intervals_cover_and_survive_a_record() -> None:
    hits = 0
    for seed in range(40):
        fit = fit_downstream(_tasks(0.02, seed=seed), chance=0.25, bootstrap=200, seed=seed)
        low, high = fit.interval("midpoint", 0.9)
        hits += low <= 2.7 <= high
    assert hits >= 30  # 36 expected, 1.9 standard deviation
    again = DownstreamFit.from_json(fit.to_json())
    assert again.params == fit.params
    assert again.interval("slope") == fit.interval("slope")


def test_nothing_is_predicted_at_chance() -> None:
    data = _tasks()
    data["accuracy"] = 0.25 + 0.005 * np.random.default_rng(0).standard_normal(len(data))
    with pytest.raises(AnalysisError, match=r"every model is at chance.*not predictable yet"):
        fit_downstream(data, chance=0.25)
    data.loc[0, "accuracy"] = 0.4
    assert "at_chance" in {w.code for w in fit_downstream(data, chance=0.25).warnings}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"accuracy": lambda f: f["accuracy"] * 100}, {}, "divide percentages by 100"),
        ({}, {"chance": 1.5}, "chance must be in"),
        ({}, {"accuracy": "acc"}, "no column 'acc'"),
        ({"loss": 2.0}, {}, "a sigmoid of 2 parameters needs more"),
    ],
)
def test_bad_tasks_are_explained(change, options, message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        fit_downstream(_tasks().assign(**change), **{"chance": 0.25, **options})


def test_two_step_prediction_carries_both_uncertainties() -> None:
    law = fit_law("chinchilla", suite(noise=0.005), bootstrap=300)
    sharp = fit_downstream(_tasks(0.002), chance=0.25, bootstrap=300)
    rough = fit_downstream(_tasks(0.05), chance=0.25, bootstrap=300)
    place = {"n": [1e9, 2e9], "d": [1e11, 5e11]}
    first, second = predict_task(law, sharp, **place), predict_task(law, rough, **place)
    assert (first["accuracy"].diff().dropna() > 0).all()
    assert ((second["hi"] - second["lo"]) > (first["hi"] - first["lo"])).all()
    assert (first["lo"] <= first["accuracy"]).all()
    assert (first["accuracy"] <= first["hi"]).all()
    with pytest.raises(AnalysisError, match="beyond the limit"):
        predict_task(law, sharp, n=1e11, d=1e13)


# ---- design --------------------------------------------------------------------------------------


def _candidates() -> pd.DataFrame:
    sizes = np.geomspace(3e7, 2e9, 5)
    return pd.DataFrame([{"n_params": n, "tokens": n * r} for n in sizes for r in (5.0, 40.0)])


def test_ranking_agrees_with_refits_of_enlarged_designs() -> None:
    """The run ranked most informative for E shrinks its simulated spread more than the least."""
    fit = fit_law("chinchilla", suite(noise=0.004, sizes=4), objective="least_squares")
    candidates = _candidates()
    ranked = rank_rungs(fit, candidates, quantity_name="E")
    by_gain = ranked.sort_values("se_alone")
    spread = []
    for row in (by_gain.iloc[0], by_gain.iloc[-1]):
        values = []
        for seed in range(80):
            data = suite(noise=0.004, sizes=4, seed=seed)
            rng = np.random.default_rng(5000 + seed)
            n, d = row["n_params"], row["tokens"]
            loss = 1.69 + 406.4 / n**0.34 + 410.7 / d**0.28
            more = pd.DataFrame(
                {
                    "run_id": [f"new{i}" for i in range(6)],
                    "n_params": n,
                    "tokens": d,
                    "flops": 6 * n * d,
                    "loss": loss * np.exp(0.004 * rng.standard_normal(6)),
                }
            )
            both = pd.concat([data, more], ignore_index=True)
            values.append(fit_law("chinchilla", both, objective="least_squares").params["E"])
        spread.append(np.subtract(*np.quantile(values, [0.8, 0.2])))
    assert spread[0] < spread[1]


def test_gains_are_positive_and_never_exceed_the_whole() -> None:
    fit = fit_law("chinchilla", suite(noise=0.004))
    for name in ("a", "alpha", "E", "loss@1e22", "n@1e22", "d@1e22", "loss@1e10,1e12"):
        table = rank_rungs(fit, _candidates(), quantity_name=name)
        assert table["gain"].between(0, 1).all()
        assert (table["order"] == 0).all()


def test_plan_stays_within_the_budget_and_only_improves() -> None:
    fit = fit_law("chinchilla", suite(noise=0.004))
    table = rank_rungs(fit, _candidates(), quantity_name="loss@1e22", budget=1e21)
    bought = table[table["order"] > 0].sort_values("order")
    assert 0 < bought["cost"].sum() <= 1e21
    assert (bought["se_planned"].diff().dropna() <= 0).all()
    assert bought["se_planned"].iloc[-1] < table["se_now"].iloc[0]


def test_extremes_beat_the_middle_for_an_exponent() -> None:
    """A classic of optimal design: slopes are learnt at the ends of the range."""
    data = suite(noise=0.004, sizes=6)
    data["loss"] = (
        30
        * data["flops"] ** -0.05
        * np.exp(0.004 * np.random.default_rng(0).standard_normal(len(data)))
    )
    fit = fit_law("power_c", data)
    middle = float(np.exp(np.log(data["flops"]).mean()))
    candidates = pd.DataFrame({"flops": [middle, middle * 1e3]})
    table = rank_rungs(fit, candidates, quantity_name="alpha")
    assert table.sort_values("se_alone")["flops"].iloc[0] == middle * 1e3


def test_noise_is_estimated() -> None:
    fit = fit_law("chinchilla", suite(noise=0.004, sizes=9))
    assert noise_of(fit) == pytest.approx(0.004, rel=0.35)


@pytest.mark.parametrize(
    ("candidates", "options", "message"),
    [
        (_candidates().head(0), {}, "no candidate rungs"),
        (_candidates().drop(columns="tokens"), {}, "no column tokens"),
        (_candidates(), {"budget": 1.0}, "no candidate fits a budget of 1"),
        (_candidates(), {"quantity_name": "speed"}, "'speed' is not known; use a parameter"),
    ],
)
def test_wrong_requests_are_explained(candidates, options, message: str) -> None:
    fit = fit_law("chinchilla", suite(noise=0.004))
    with pytest.raises(AnalysisError, match=message):
        rank_rungs(fit, candidates, **options)


def test_quantities_agree_with_the_fit() -> None:
    fit = fit_law("chinchilla", suite(noise=0.004))
    values = fit.values
    assert quantity(fit, "a")(values[None])[0] == pytest.approx(fit.params["a"])
    row = fit.optimal(1e22).iloc[0]
    assert quantity(fit, "n@1e22")(values[None])[0] == pytest.approx(np.log(row["n"]))
    assert quantity(fit, "loss@1e22")(values[None])[0] == pytest.approx(row["loss"])


def test_three_runs_are_too_few_to_redraw() -> None:
    data = _tasks().assign(run_id=lambda f: [f"r{i % 3}" for i in range(len(f))])
    with pytest.raises(AnalysisError, match=r"3 run\(s\) with this task.*at least 4"):
        fit_downstream(data, chance=0.25, bootstrap=50)


@pytest.mark.parametrize("name", ["loss@-1e20", "loss@1e9,-5", "n@inf", "d@nan"])
def test_quantities_at_impossible_places(name: str) -> None:
    with pytest.raises(AnalysisError, match="positive numbers in place of C, N and D"):
        quantity(fit_law("chinchilla", suite()), name)

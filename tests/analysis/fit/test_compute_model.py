"""Optima under the runs' own FLOPs; the truth comes from scipy on the written-out law."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.interpolate import PchipInterpolator
from scipy.optimize import minimize_scalar, nnls

from analysis.fit.approaches import three_approaches
from analysis.fit.fitting import fit_law
from analysis.fit.law_fit import LawFit
from analysis.io.frames import where
from analysis.io.records import load_sweep
from analysis.judge.checklist import checklist
from analysis.judge.design import quantity
from analysis.laws.compute_model import SIX_ND, fit_compute_model
from tests.support.worlds import loss_of, suite

ROOT = Path(__file__).parents[3]
Cost = Callable[[np.ndarray], np.ndarray]


def attention(n: np.ndarray) -> np.ndarray:
    """6 N, and attention over a context: 2.5e4 N^(2/3)."""
    return 6 * n + 2.5e4 * n ** (2 / 3)


def embeddings(n: np.ndarray) -> np.ndarray:
    """6 FLOPs for every parameter but the embeddings, where N counts them too."""
    return 6 * (n - 2e4 * n ** (1 / 3))


def _best(compute: float, cost: Cost) -> tuple[float, float]:
    """N*, D* by minimising the law along the budget."""

    def loss(log_n: float) -> float:
        n = np.exp(np.array(log_n))
        return float(loss_of(n, compute / cost(n)))

    found = minimize_scalar(loss, bounds=(np.log(2e6), np.log(1e13)), method="bounded",
                            options={"xatol": 1e-12})  # fmt: skip
    n = float(np.exp(found.x))
    return n, compute / float(cost(np.array(n)))


def _runs(cost: Cost, noise: float = 0.0) -> pd.DataFrame:
    """Six sizes from 1e7 to 1e9 with four token counts each, C from `cost`."""
    rng = np.random.default_rng(0)
    n = np.repeat(np.geomspace(1e7, 1e9, 6), 4)
    d = n * np.tile([5.0, 10.0, 20.0, 60.0], 6)
    loss = loss_of(n, d) * np.exp(noise * rng.standard_normal(len(n)))
    return pd.DataFrame({"n_params": n, "tokens": d, "flops": cost(n) * d, "loss": loss})


def _slope(cost: Cost, low: float, high: float) -> float:
    return float(np.log(_best(high, cost)[0] / _best(low, cost)[0]) / np.log(high / low))


def test_optimum_follows_the_compute_column() -> None:
    fit = fit_law("chinchilla", _runs(attention))
    spent = fit.observations.compute
    assert fit.params["a"] == pytest.approx(_slope(attention, spent.min(), spent.max()), abs=1e-6)
    assert fit.params["a"] == pytest.approx(0.506, abs=0.002)
    row = fit.optimal(1e20).iloc[0]
    assert row["n"] == pytest.approx(_best(1e20, attention)[0], rel=1e-5)
    assert row["d"] == pytest.approx(5.6e9, rel=0.02)
    assert row["loss"] == pytest.approx(loss_of(row["n"], row["d"]), rel=1e-9)
    assert "column 'flops'" in fit.compute_model.describe()


def test_without_compute_six_nd_is_assumed_and_said() -> None:
    fit = fit_law("chinchilla", _runs(attention).drop(columns="flops"))
    assert fit.params["a"] == pytest.approx(0.28 / 0.62, abs=1e-6)
    assert fit.compute_model.describe() == "C = 6 N D (assumed)"
    answers = checklist(fit).set_index("question")["answer"]
    assert answers["Under which compute are optima taken?"] == "C = 6 N D (assumed)"


def test_a_column_of_six_nd_gives_the_closed_form() -> None:
    fit = fit_law("chinchilla", suite())
    assert fit.compute_model.power == 6.0
    assert fit.params["a"] == pytest.approx(0.28 / 0.62, rel=1e-6)


def test_sizes_that_count_embeddings_bend_the_other_way() -> None:
    fit = fit_law("chinchilla", _runs(embeddings))
    assert fit.compute_model.shape == "signed"
    row = fit.optimal(1e19).iloc[0]
    assert row["n"] == pytest.approx(_best(1e19, embeddings)[0], rel=1e-5)


def test_any_other_cost_is_followed_by_a_curve() -> None:
    fit = fit_law("chinchilla", _runs(lambda n: 4 * n**1.3))
    assert fit.compute_model.shape == "curve"
    assert fit.params["a"] == pytest.approx(0.28 / (0.34 + 1.3 * 0.28), rel=1e-5)
    assert fit.params["b"] == pytest.approx(1 - 1.3 * fit.params["a"], rel=1e-5)


def test_draws_parameters_and_designs_take_the_same_compute() -> None:
    fit = fit_law("chinchilla", _runs(attention, noise=0.002), bootstrap=200)
    low, high = fit.interval("a")
    assert low < 0.506 < high
    assert quantity(fit, "a")(fit.values[None])[0] == pytest.approx(fit.params["a"])
    assert quantity(fit, "d@1e20")(fit.values[None])[0] == pytest.approx(
        np.log(fit.optimal(1e20)["d"].iloc[0]), rel=1e-9
    )
    again = LawFit.from_json(fit.to_json())
    assert again.params == fit.params
    assert again.compute_model == fit.compute_model


def test_approaches_agree_and_none_is_blamed_for_it() -> None:
    parts: list[pd.DataFrame] = []
    for budget in np.geomspace(1e18, 1e21, 5):
        n = _best(budget, attention)[0] * np.geomspace(0.5, 2.0, 7)
        d = budget / attention(n)
        parts.append(pd.DataFrame({"n_params": n, "tokens": d, "flops": budget,
                                   "loss": loss_of(n, d)}))  # fmt: skip
    found = three_approaches(pd.concat(parts, ignore_index=True), at=1e20)
    assert found.isoflop is not None
    assert found.parametric is not None
    assert found.isoflop.params["a"] == pytest.approx(found.parametric.params["a"], abs=0.002)
    codes = {w.code for w in found.isoflop.warnings}
    assert "isoflop_bias" not in codes
    assert "optimum_bends" in codes
    assert not found.warnings
    assert found.as_dict()["compute_model"]["source"] == "column"


def test_rows_without_compute_take_it_from_the_others() -> None:
    data = _runs(attention)
    whole = fit_law("chinchilla", data)
    data.loc[[3, 7, 20], "flops"] = np.nan
    fit = fit_law("chinchilla", data)
    assert fit.params["a"] == pytest.approx(whole.params["a"], rel=1e-9)
    assert any(w.code == "assumed_compute" and "3 of 24 rows" in w.message for w in fit.warnings)


def test_compute_that_follows_no_function_of_n_and_d_is_said() -> None:
    data = _runs(attention)
    data["flops"] *= np.exp(0.3 * np.random.default_rng(1).standard_normal(len(data)))
    fit = fit_law("chinchilla", data)
    (warning,) = [w for w in fit.warnings if w.code == "compute_scatter"]
    assert "flops" in warning.message


def test_widths_are_recovered_exactly() -> None:
    n = np.geomspace(1e7, 1e9, 5)
    model = fit_compute_model(n, attention(n))
    far = np.array([1e6, 1e11])
    np.testing.assert_allclose(model(far), attention(far), rtol=1e-9)


def test_the_small_ladders_optimum_follows_its_own_flops() -> None:
    """By brute force along budgets, with the runs' exact FLOPs interpolated between their sizes.

    a is the mean slope over the compute of the runs, .549; from 1e11 to 1e12 FLOPs it is .552, and
    under 6 N D, which is no cost of these models, it would be .525.
    """
    sweep = load_sweep(ROOT / "experiments" / "results" / "small_ladder.zip")
    points = where(sweep.points, arch="llama")
    fit = fit_law("chinchilla", points, clusters="size_seed", accounting=True)
    cost = (points["flops"] / points["tokens"]).groupby(points["n_params"]).mean()
    log_cost = PchipInterpolator(np.log(cost.index.to_numpy(float)), np.log(cost.to_numpy()))
    n = np.geomspace(cost.index.min(), cost.index.max(), 200_001)
    per_token, p = np.exp(log_cost(np.log(n))), fit.params

    def best(compute: float) -> tuple[float, float]:
        d = compute / per_token
        i = int((p["A"] / n ** p["alpha"] + p["B"] / d ** p["beta"]).argmin())
        return float(n[i]), float(d[i])

    slope = np.log(best(1e12)[0] / best(1e11)[0]) / np.log(10)
    assert slope == pytest.approx(0.552, abs=0.02)
    ours = fit.optimal([1e11, 1e12])
    assert np.log(ours["n"][1] / ours["n"][0]) / np.log(10) == pytest.approx(0.552, abs=5e-4)
    assert ours["d"][1] == pytest.approx(best(1e12)[1], rel=0.05)
    assert p["a"] == pytest.approx(0.549, abs=5e-4)
    six = fit.under(SIX_ND)
    assert six.params["a"] == pytest.approx(0.525, abs=1e-3)
    assert six.optimal(1e12)["d"].iloc[0] == pytest.approx(1.6 * ours["d"][1], rel=0.1)


def test_widths_are_non_negative_least_squares() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        n = np.exp(rng.uniform(10, 20, 8))
        per_token = 6 * n * np.exp(rng.normal(0, 0.5, 8)) + rng.uniform(0, 1e5) * n ** (1 / 3)
        model = fit_compute_model(n[:3], per_token[:3])  # three sizes: no other shape is tried
        wide = np.exp((np.log(n[:3]) - np.log(model.scale)) / 3)
        basis = np.stack([wide**3, wide**2, wide], axis=1) / per_token[:3, None]
        assert model.coefficients == pytest.approx(nnls(basis, np.ones(3))[0], abs=1e-6, rel=1e-6)

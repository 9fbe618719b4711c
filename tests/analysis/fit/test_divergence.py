"""Runs that diverged without being marked: left out by name, and harmless where they are kept."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.errors import AnalysisError
from analysis.fit.approaches import three_approaches
from analysis.fit.divergence import find_diverged
from analysis.fit.fitting import fit_law
from analysis.fit.isoflop import isoflop
from analysis.laws.polynomials import find_outlying
from tests.support.worlds import loss_of, optimum_of, suite


def _profiles(sizes: int = 6) -> pd.DataFrame:
    """Four budgets of `sizes` sizes each about the optimum, noise-free, rows named by run."""
    parts: list[pd.DataFrame] = []
    for budget in np.geomspace(1e19, 1e21, 4):
        n = optimum_of(budget)[0] * np.geomspace(0.3, 3.0, sizes)
        d = budget / (6 * n)
        parts.append(pd.DataFrame({"n_params": n, "tokens": d, "flops": budget,
                                   "loss": loss_of(n, d)}))  # fmt: skip
    table = pd.concat(parts, ignore_index=True)
    return table.assign(run_id=[f"run-{i:02d}" for i in range(len(table))])


def test_one_diverged_cell_does_not_move_approach_two() -> None:
    clean = isoflop(_profiles())
    data = _profiles()
    data.loc[9, "loss"] = 9.0
    fit = isoflop(data)
    assert fit.params["a"] == pytest.approx(clean.params["a"], abs=0.003)
    assert fit.minima["loss"].min() > clean.minima["loss"].min() - 1e-3
    (warning,) = [w for w in fit.warnings if w.code == "rows_excluded"]
    assert "run-09 with loss 9" in warning.message


def test_a_point_far_above_its_profile_is_left_out() -> None:
    """Not diverged, 10 % too high: enough to bend a parabola."""
    clean = isoflop(_profiles(8))
    data = _profiles(8)
    data.loc[11, "loss"] *= 1.1
    fit = isoflop(data)
    assert fit.params["a"] == pytest.approx(clean.params["a"], abs=0.003)
    assert any("run-11" in w.message and "profile" in w.message for w in fit.warnings)


def test_a_floor_that_nobody_measured_is_refused() -> None:
    """Two clusters of sizes on steep flanks: a parabola finds a floor far below them."""
    data = _profiles()
    own = data["flops"] == data["flops"].min()
    n = data.loc[own, "n_params"].to_numpy()
    middle = float(np.exp(np.log(n).mean()))
    sides = middle * np.array([0.1, 0.101, 0.102, 9.7, 9.8, 9.9])
    data.loc[own, "n_params"] = sides
    data.loc[own, "loss"] = 3.0 + 0.4 * (np.abs(np.log(sides / middle)) - 2.25)
    data.loc[own, "loss"] += [0.0, -0.03, -0.06, -0.06, -0.03, 0.0]
    fit = isoflop(data.drop(columns="tokens"))
    refused = dict(zip(fit.refused["budget"].round(-10), fit.refused["reason"], strict=True))
    assert len(refused) == 1
    assert "below the lowest loss" in next(iter(refused.values()))


def test_diverged_rows_are_left_out_of_a_law_by_name() -> None:
    data = suite(noise=0.003)
    before = fit_law("chinchilla", data, bootstrap=300)
    data.loc[7, "loss"] = 9.0
    fit = fit_law("chinchilla", data, bootstrap=300)
    (warning,) = [w for w in fit.warnings if w.code == "rows_excluded"]
    assert data.loc[7, "run_id"] in warning.message
    assert "far above its neighbours in N and D" in warning.message
    assert fit.params["a"] == pytest.approx(before.params["a"], abs=0.02)
    kept = fit_law("chinchilla", data, keep_diverged=True)
    assert len(kept.observations.loss) == len(data)


def test_wild_intervals_survive_a_run_that_is_kept() -> None:
    data = suite(noise=0.003)
    low, high = fit_law("chinchilla", data, bootstrap=400).interval("a")
    data.loc[7, "loss"] *= 2.5
    fit = fit_law("chinchilla", data, bootstrap=400, keep_diverged=True)
    assert fit.draws is not None
    assert fit.draws.method == "wild"
    worse = fit.interval("a")
    assert worse[1] - worse[0] < 2.0 * (high - low)


def test_nothing_is_far_in_clean_or_tiny_tables() -> None:
    wide = suite(sizes=9, ratios=(1.0, 5.0, 20.0, 100.0, 500.0), noise=0.02)
    axes = [wide["n_params"].to_numpy(), wide["tokens"].to_numpy()]
    assert not find_diverged(axes, wide["loss"].to_numpy())[0].any()
    few = wide.iloc[:5]
    far, _ = find_diverged([few["n_params"].to_numpy()], few["loss"].to_numpy() * [1, 1, 9, 1, 1])
    assert not far.any()


@pytest.mark.parametrize("count", [7, 30])
def test_outlying_points_of_a_profile(count: int) -> None:
    x = np.linspace(-2.0, 2.0, count)
    y = 3.0 + 0.1 * x**2 + 0.002 * np.random.default_rng(0).standard_normal(count)
    assert not find_outlying(x, y, 2).any()
    y[4] += 0.5
    assert np.flatnonzero(find_outlying(x, y, 2)).tolist() == [4]


def test_repeats_of_few_places_have_no_outlying_points() -> None:
    """Seeds of two sizes: no parabola passes through three different places."""
    x = np.repeat([1.0, 2.0], 4)
    assert not find_outlying(x, np.array([3.0, 3.1, 3.0, 9.0, 2.0, 2.1, 2.0, 2.1]), 2).any()


def test_approaches_agree_in_spite_of_a_diverged_cell() -> None:
    data = _profiles()
    data.loc[9, "loss"] = 9.0
    found = three_approaches(data)
    values = found.frame["a"].dropna()
    assert values.max() - values.min() < 0.01
    with pytest.raises(AnalysisError, match="two are needed"):
        isoflop(data.iloc[:6])

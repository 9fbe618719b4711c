"""The law of loss over tokens: against the multi-power law summed step by step, and on records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.errors import AnalysisError
from analysis.forecast.decays import coverage, decay_forecast, rolling_errors
from analysis.forecast.health import health
from analysis.forecast.paths import stretches
from analysis.forecast.scoring import Seal, score
from analysis.forecast.seal import seal
from analysis.forecast.trajectory_fit import fit_trajectory
from analysis.forecast.trajectory_law import NAMES, Rates, gain, gain_slopes, trunk_loss, values
from analysis.io.frames import where
from analysis.io.records import load_sweep
from tests.support.trajectories import STEP, TRUE, Run, cosine, decayed, losses, sweep_of

THETA = np.array([np.log(TRUE[name]) for name in NAMES[:-1]] + [TRUE["kappa"]])
SIZES = (2e4, 5e4, 1e5, 2e5)


@pytest.mark.parametrize("shape", [decayed, cosine])
def test_law_is_the_sum_over_steps(shape: object) -> None:
    shares = shape(200)  # pyright: ignore[reportCallIssue]
    expected = np.array(losses(2e5, shares))
    middles = np.arange(0.5, 200.0) * STEP
    rates = Rates(np.concatenate([[0.0], middles]), np.array([shares[0], *shares]), 0.0)
    ends = np.arange(1.0, 201.0) * STEP
    p = TRUE
    won = gain(rates, ends, p["c"], p["beta"], p["gamma"]) * p["K"] * 2 ** p["kappa"]
    # S at the last step's end lies half a step beyond the last knot, at a rate of almost 0.
    law = trunk_loss(np.full(200, 2e5), rates.at(ends), THETA) - won
    np.testing.assert_allclose(law[20:], expected[20:], rtol=0.004)
    assert values(THETA) == pytest.approx(TRUE)


@pytest.mark.parametrize("shape", [decayed, cosine])
def test_slopes_are_those_of_differences(shape: object) -> None:
    shares = np.array(shape(200))  # pyright: ignore[reportCallIssue]
    knots = np.arange(0.0, 200.0) * STEP
    rates = Rates(knots, shares, 0.0)
    tokens = np.linspace(20 * STEP, 199 * STEP, 40)
    for i, name in ((1, "c"), (2, "beta"), (3, "gamma")):
        up, down = ({**TRUE, name: TRUE[name] * np.exp(step)} for step in (1e-5, -1e-5))
        found = [gain(rates, tokens, p["c"], p["beta"], p["gamma"]) for p in (up, down)]
        slope = gain_slopes(rates, tokens, TRUE["c"], TRUE["beta"], TRUE["gamma"])[i]
        np.testing.assert_allclose(slope, (found[0] - found[1]) / 2e-5, atol=1e-8)


def test_decays_of_a_larger_model_are_foretold() -> None:
    world = sweep_of([Run(n, 200) for n in SIZES] + [Run(4e5, 200, done=False)])
    body = decay_forecast(world)
    assert [f["state"] for f in body["forecasts"]] == ["running", "running"]
    for forecast, steps in zip(body["forecasts"], (100, 200), strict=True):
        truth = losses(4e5, decayed(steps))[-1]
        assert forecast["loss"] == pytest.approx(truth, rel=0.01)
        low, high = forecast["interval_90"]
        assert low < truth < high
        assert high / low < 1.08
        assert not forecast["measured_before"]
    assert {row["run_id"][:8] for row in body["data"]["used"]} == {f"llama-n{i}" for i in range(4)}


def test_hidden_decays_are_not_looked_at_and_can_be_scored() -> None:
    world = sweep_of([Run(n, 200) for n in SIZES])
    body = decay_forecast(world, hide="n3")
    other = replace(world, points=world.points.assign(
        loss=[row.loss * (9.0 if row.n_params == 2e5 else 1.0) for row in world.points.itertuples()]
    ))  # fmt: skip
    curves = world.curves.copy()
    lie = (curves["n_params"] == 2e5) & curves["segment"].str.startswith("decay")
    curves.loc[lie, "loss"] *= 9.0
    again = decay_forecast(replace(other, curves=curves), hide="n3")
    assert again["forecasts"] == body["forecasts"]
    record = seal({"sealed_at": "2026-01-01T00:00:00+00:00", "git_revision": None, **body})
    scores = score([Seal("f.json", record, [])], world)
    assert len(scores.table) == 2
    assert scores.table["error"].abs().max() < 1.0
    assert scores.seals[0]["inputs"] == "intact"


def test_nothing_to_ask_or_to_learn_from_is_said() -> None:
    world = sweep_of([Run(n, 200) for n in SIZES])
    with pytest.raises(AnalysisError, match="no trunk waits for its decay"):
        decay_forecast(world)
    with pytest.raises(AnalysisError, match="a trunk and a decay to learn from"):
        decay_forecast(sweep_of([Run(1e5, 200, done=False)]))


def test_a_run_that_leaves_its_law_is_marked() -> None:
    finished = [Run(n, 200) for n in SIZES]
    spoilt = Run(3e5, 200, done=False, spoil=lambda share, loss: loss * (1.1 if share > 0.9 else 1))
    found = health(sweep_of([*finished, Run(4e5, 200, done=False), spoilt]))
    good, bad = found["llama-n4-0123abcd"], found["llama-n5-0123abcd"]
    assert not good.outside
    assert abs(good.deviation) < 1.0
    assert bad.outside
    assert 4.0 < bad.deviation < 11.0  # a window before the change is among those looked at
    assert "outside the band" in bad.words
    assert health(sweep_of(finished)) == {}


@pytest.mark.slow
def test_small_ladder_decays_from_smaller_sizes() -> None:
    path = Path(__file__).parents[3] / "experiments" / "results" / "small_ladder.zip"
    own = stretches(where(load_sweep(path).curves, arch="hgrn2"))
    errors = rolling_errors(own, 1.0, fit_trajectory(own))
    assert [len(e) for e in errors] == [12, 12, 4, 4, 4]
    assert np.sqrt(np.mean(np.concatenate(errors) ** 2)) < 0.012
    inside, count, sizes = coverage(errors)
    assert (count, sizes) == (12, 3)
    assert inside >= 9

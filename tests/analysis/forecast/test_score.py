"""Scores against closed forms, and baselines by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from analysis.forecast.baselines import baselines, envelope
from analysis.forecast.score import LEVELS, binomial_interval, crps, interval, pinball


def test_crps_of_a_normal_forecast() -> None:
    """Gneiting and Raftery 2007, equation 21, for a log-normal loss scored in its logarithm."""
    sigma, outcomes = 0.02, np.array([2.0, 2.05, 1.9])
    quantiles = np.exp(np.log(2.0) + sigma * norm.ppf(LEVELS))[:, None] * np.ones(3)
    z = np.log(outcomes / 2.0) / sigma
    exact = 100 * sigma * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
    np.testing.assert_allclose(crps(quantiles, outcomes), exact, rtol=0.015)


def test_crps_of_a_point_is_its_error() -> None:
    quantiles = np.full((99, 1), 2.0)
    assert crps(quantiles, np.array([2.2]))[0] == pytest.approx(100 * np.log(1.1))


def test_pinball_by_hand() -> None:
    """An outcome 1 % above the 90 % quantile costs .9, one 1 % below it .1."""
    quantiles = np.ones((99, 2))
    outcomes = np.exp([0.01, -0.01])
    np.testing.assert_allclose(pinball(quantiles, outcomes)[89], [0.9, 0.1])


def test_intervals_are_the_quantiles() -> None:
    low, high = interval(LEVELS, 0.9)
    assert (low, high) == (0.05, 0.95)
    assert interval(LEVELS, 0.5) == (0.25, 0.75)


def test_binomial_interval() -> None:
    """Clopper and Pearson: 9 of 10 at 90 % is (.6058, .9949); 0 of 10 ends at 1 - .05^(1/10)."""
    assert binomial_interval(9, 10) == pytest.approx((0.60584, 0.99488), abs=1e-4)
    assert binomial_interval(0, 10) == pytest.approx((0.0, 1 - 0.05**0.1))
    assert binomial_interval(0, 0) == (0.0, 1.0)


def test_envelope_keeps_the_rows_no_cheaper_row_beats() -> None:
    compute = np.array([1.0, 2.0, 2.0, 4.0, 4.4, 8.0])
    loss = np.array([3.0, 2.5, 2.7, 2.6, 2.2, 2.0])
    c, low = envelope(compute, loss, 1.0)
    assert c.tolist() == [1.0, 2.0, 4.4, 8.0]
    assert low.tolist() == [3.0, 2.5, 2.2, 2.0]
    assert envelope(compute, loss, 2.1)[0].tolist() == [2.0, 8.0]


def test_baselines_of_a_power_law() -> None:
    """On L = 8 C^-0.25 exactly, the power law and the ratio both go on; the nearest stays."""
    n = np.array([1.0, 10.0, 100.0])
    d = np.array([20.0, 200.0, 2000.0])
    loss = 8 * (6 * n * d) ** -0.25
    found = baselines({"n": n, "d": d, "loss": loss}, {"n": 1000.0, "d": 20000.0, "c": None})
    truth = 8 * (6 * 1000 * 20000) ** -0.25
    assert found["power"] == pytest.approx(truth)
    assert found["ratio"] == pytest.approx(truth)
    assert found["nearest"] == loss[2]
    alone = baselines({"n": n, "loss": loss}, {"n": 5.0, "d": None, "c": None})
    assert alone["nearest"] == loss[1]
    assert np.isnan(alone["power"])

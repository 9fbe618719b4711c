"""Large tables: rows spread over runs, and what refits and left-out runs say of all of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.fit import fitting, uncertainty
from analysis.fit.fitting import fit_law
from analysis.fit.thinning import spread
from tests.support.worlds import suite


def test_every_run_keeps_its_first_and_last_rows() -> None:
    cluster = np.repeat([0, 1, 2], [10, 3, 100])
    order = np.tile(np.arange(113.0), 1)
    keep = spread(cluster, order, 30)
    counts = np.bincount(cluster[keep])
    assert counts.tolist() == [10, 3, 13] or counts.tolist() == [10, 3, 17]
    assert counts.sum() <= 30
    assert keep[[0, 9, 10, 12, 13, 112]].all()
    gaps = np.diff(np.flatnonzero(keep[13:]))
    assert gaps.max() - gaps.min() <= 1


def test_more_runs_than_rows_are_taken_evenly_over_their_order() -> None:
    order = np.random.default_rng(0).permutation(1000).astype(float)
    keep = spread(np.arange(1000), order, 11)
    assert sorted(order[keep]) == pytest.approx(np.linspace(0, 999, 11), abs=1)


def test_few_rows_all_stay() -> None:
    assert spread(np.zeros(5, dtype=np.int64), np.arange(5.0), 5).all()


def _many(rows: int = 40) -> pd.DataFrame:
    """20 runs of `rows` checkpoints with most of their noise in common."""
    rng = np.random.default_rng(3)
    parts: list[pd.DataFrame] = []
    for k in range(20):
        part = suite(sizes=1, ratios=tuple(np.geomspace(5, 200, rows)))
        n = float(np.exp(rng.uniform(np.log(3e7), np.log(1e9))))
        d = n * np.geomspace(5, 200, rows)
        loss = 1.69 + 406.4 / n**0.34 + 410.7 / d**0.28
        noise = 0.004 * rng.standard_normal() + 0.001 * rng.standard_normal(rows)
        parts.append(part.assign(n_params=n, tokens=d, flops=6 * n * d, run_id=f"r{k:02d}",
                                 loss=loss * np.exp(noise)))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def test_the_estimate_rests_on_all_rows_and_intervals_are_those_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = _many()
    whole = fit_law("chinchilla", data, bootstrap=200)
    monkeypatch.setattr(fitting, "MOST_STARTED", 200)
    monkeypatch.setattr(uncertainty, "MOST_REFITTED", 200)
    thin = fit_law("chinchilla", data, bootstrap=200)
    assert thin.params == pytest.approx(whole.params, rel=1e-6)
    for name in ("alpha", "beta", "E"):
        (low, high), (least, most) = whole.interval(name), thin.interval(name)
        assert most - least == pytest.approx(high - low, rel=0.35)
        assert abs(least + most - low - high) / 2 < 0.3 * (high - low)


def test_runs_left_out_to_first_order_agree_with_refits(monkeypatch: pytest.MonkeyPatch) -> None:
    data = suite(sizes=8, noise=0.005)
    fit = fit_law("chinchilla", data, objective="least_squares")
    labels, exact = uncertainty.jackknife(fit.problem, fit.theta)
    monkeypatch.setattr(uncertainty, "MOST_LEFT_OUT", 5)
    same, near = uncertainty.jackknife(fit.problem, fit.theta)
    assert same == labels
    moved = exact - fit.values
    column = list(fit.law.parameters).index("beta")
    assert np.corrcoef(near[:, column] - fit.values[column], moved[:, column])[0, 1] > 0.95
    worst = int(np.abs(moved[:, column]).argmax())
    assert near[worst] == pytest.approx(exact[worst], rel=1e-6)

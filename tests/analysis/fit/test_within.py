"""What counts as within the data, on tables made by hand.

The law is L = E + A/N^a + B/D^b with a = b = 1/2 and A = B under C = 6 N D, so the optimum is
N* = D* = sqrt(C / 6): every expected place is computed by hand.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.figures import loss_compute
from analysis.fit.fitting import fit_law
from analysis.fit.law_fit import LawFit
from analysis.fit.within import frontier_reach, frontier_within, in_interval, measured, within
from analysis.judge.compare import compute_multiplier, judged_row
from analysis.judge.crossing import crossing


def table(sizes: list[float], tokens: list[float], scale: float = 100.0) -> pd.DataFrame:
    """Losses without noise at every pair of a size and a number of tokens."""
    n, d = (a.ravel() for a in np.meshgrid(sizes, tokens))
    loss = 1.5 + scale / np.sqrt(n) + scale / np.sqrt(d)
    return pd.DataFrame({"n_params": n, "tokens": d, "flops": 6 * n * d, "loss": loss})


def law_of(sizes: list[float], tokens: list[float], scale: float = 100.0) -> LawFit:
    fit = fit_law("chinchilla", table(sizes, tokens, scale), bootstrap=20)
    assert fit.params["alpha"] == pytest.approx(0.5, abs=1e-3)
    return fit


SMALL = [1e4, 3e4, 1e5, 3e5]
LONG = [1e6, 3e6, 1e7, 3e7]


def test_a_point_is_within_in_all_three() -> None:
    data = {"n": np.array([10.0, 30.0]), "d": np.array([100.0, 900.0]), "c": np.array([5e3, 2e5])}
    n = [10, 9, 31, 20, 20, 20, 20, 10 * (1 - 1e-6)]
    d = [100, 200, 200, 99, 901, 200, 200, 200]
    c = [6e3, 6e3, 6e3, 6e3, 6e3, 4e3, np.inf, 6e3]
    found = within(data, n=n, d=d, c=c)
    assert found.tolist() == [True, False, False, False, False, False, False, True]
    assert within({"c": data["c"]}, n=1e9, c=6e3)  # what nobody measured sets no limit


def test_small_models_on_much_data_never_show_their_optimum() -> None:
    """Sizes to 3e5 and tokens from 1e6: N* = D* would need both in one range."""
    fit = law_of(SMALL, LONG)
    spent = fit.observations.compute
    assert within(measured(fit), c=np.geomspace(spent.min(), spent.max(), 9)).all()
    assert not frontier_within(fit, np.geomspace(spent.min(), spent.max(), 50)).any()
    assert np.isnan(frontier_reach(fit)).all()


def test_the_optimum_leaves_through_the_largest_size() -> None:
    """N to 1e6 and D to 3e7: N* = sqrt(C/6) reaches 1e6 at C = 6e12, the runs go to 1.8e14."""
    fit = law_of([1e4, 1e5, 1e6], [1e4, 1e5, 1e6, 3e7])
    budgets = np.array([6e8 * 0.9, 6e8 * 1.02, 1e11, 6e12 * 0.98, 6e12 * 1.02, 1e14, 1e16])
    assert frontier_within(fit, budgets).tolist() == [False, True, True, True, False, False, False]
    low, high = frontier_reach(fit)
    assert low == pytest.approx(6e8, rel=0.05)
    assert high == pytest.approx(6e12, rel=0.05)


def test_figures_dash_where_the_size_was_not_trained() -> None:
    fit = law_of([1e4, 1e5, 1e6], [1e4, 1e5, 1e6, 3e7])
    compute = np.geomspace(6e8, 1e15, 40)
    law = pd.DataFrame({"group": "x", "x": compute, "y": fit.frontier(compute),
                        "inside": frontier_within(fit, compute)})  # fmt: skip
    points = table([1e4, 1e5, 1e6], [1e4, 1e5, 1e6, 3e7]).assign(arch="x", size="s")
    (axes,) = loss_compute(points, law).axes
    solid = next(line for line in axes.lines if line.get_linestyle() == "-")
    x, y = (np.asarray(v, dtype=float) for v in solid.get_data())
    assert x[np.isfinite(y)].max() <= 6e12 * 1.01 < points["flops"].max()


def test_verdict_and_crossing_do_not_claim_an_optimum_that_nobody_trained() -> None:
    """Two laws whose optima leave the data at N = 1e6: the verdict ends there, not at the lowest
    loss that both have reached."""
    sizes, tokens = [1e4, 1e5, 1e6], [1e4, 1e5, 1e6, 3e7]
    better, worse = law_of(sizes, tokens, 90.0), law_of(sizes, tokens, 100.0)
    result = compute_multiplier(better, worse, names=("x", "y"))
    last = result.frame.iloc[judged_row(result.frame)]
    assert max(last["c_x"], last["c_y"]) <= 6e12 * 1.01
    assert last["loss"] > result.frame["loss"].min()
    assert f"At loss {last['loss']:.3f}, the lowest within the data of both" in result.verdict
    # L = 1.5 + 2 k (6/C)^(1/4): the same loss at (k_y / k_x)^4 times the compute.
    assert last["multiplier"] == pytest.approx((100 / 90) ** 4, rel=0.02)

    # Steeper in N, with the same term at N = 3e6: they cross where N* is near that.
    def steep(frame: pd.DataFrame) -> pd.DataFrame:
        n, d = frame["n_params"], frame["tokens"]
        return frame.assign(loss=1.5 + 100 * (3e6 / n) ** 0.6 / 3e6**0.5 + 100 / np.sqrt(d))

    other = fit_law("chinchilla", steep(table(sizes, tokens)), bootstrap=20)
    found = crossing(other, worse)
    assert 6e12 < found.compute < 1.8e14  # within the compute of both
    assert not found.inside
    assert "outside the data" in found.describe("x", "y", 0.9)


def test_intervals_as_narrow_as_rounding_hold_what_they_are_about() -> None:
    """Of points without noise the two ends and the value differ in the last digits."""
    values = np.array([2.0, 2.0 * (1 + 1e-12), 2.0 * (1 - 1e-6), 3.0])
    low = high = np.full(4, 2.0)
    assert in_interval(values, low, high).tolist() == [True, True, False, False]

"""The gate on simulated worlds: how often its intervals hold the truth, and its verdicts err."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from analysis.errors import AnalysisError
from analysis.io.sweep import Sweep
from analysis.judge.gate import DOES_NOT, NOT_DETERMINED, TRANSFERS, judge, paired

SIZES = (1e7, 4e7)


def world(
    rng: np.random.Generator, seeds: int, *, first: float, slope: float,
    noise: tuple[float, ...] = (0.3, 0.3), sizes: tuple[float, ...] = SIZES,
) -> pd.DataFrame:  # fmt: skip
    """Differences around a line in log N: `first` at the first size, `slope` for ten times it."""
    return pd.DataFrame([
        {"size": f"{n:g}", "seed": seed, "n_params": n,
         "difference": first + slope * math.log10(n / sizes[0]) + sigma * rng.standard_normal()}
        for n, sigma in zip(sizes, noise, strict=True) for seed in range(seeds)
    ])  # fmt: skip


@pytest.mark.parametrize("noise", [(0.3, 0.3), (0.5, 0.1)])
@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_hold_the_truth_nine_times_in_ten(seeds: int, noise: tuple[float, ...]) -> None:
    """90 % intervals at the target and of the trend, over 1000 worlds: within what 1000 draws of
    a true 90 % scatter (three standard errors: 2.8 %), or above by what Welch's rounding gives."""
    rng, held, trends = np.random.default_rng(seeds), 0, 0
    truth = -1.0 + 0.4 * math.log10(4e8 / 1e7)
    for _ in range(1000):
        found = judge(world(rng, seeds, first=-1.0, slope=0.4, noise=noise))
        held += found.target.low <= truth <= found.target.high
        trends += found.trend.low <= 0.4 <= found.trend.high
    assert 872 <= held <= 945
    assert 872 <= trends <= 945


def test_a_change_without_an_effect_passes_rarely() -> None:
    """The upper bound of a 90 % interval errs in 5 % of worlds; both bounds must agree."""
    rng = np.random.default_rng(0)
    verdicts = [judge(world(rng, 4, first=0.0, slope=0.0)).verdict for _ in range(500)]
    assert verdicts.count(TRANSFERS) <= 0.05 * 500 + 3 * math.sqrt(500 * 0.05 * 0.95)
    assert verdicts.count(DOES_NOT) <= 0.05 * 500 + 3 * math.sqrt(500 * 0.05 * 0.95)
    assert verdicts.count(NOT_DETERMINED) > 400


@pytest.mark.parametrize(
    ("first", "slope", "verdict"),
    [(-3.0, 0.0, TRANSFERS), (-1.0, 2.0, DOES_NOT), (3.0, 0.0, DOES_NOT)],
)
def test_large_effects_are_found(first: float, slope: float, verdict: str) -> None:
    """A gain that stays, one that is lost at ten times the size, and a loss."""
    rng = np.random.default_rng(1)
    found = [judge(world(rng, 4, first=first, slope=slope)).verdict for _ in range(50)]
    assert found.count(verdict) >= 48


def test_numbers_of_two_sizes_by_hand() -> None:
    """Means -1 and -2, variances of the means 0.5/2 and 2/2; the target is one step further.

    value = 2 (-2) - (-1) = -3; variance = 4 (1) + 0.25 = 4.25; freedom = 4.25^2 / (4^2 + 0.25^2)
    = 1.1245; t(0.95, 1.1245) = 5.2503, from its density integrated by hand."""
    rows = [(1e6, -0.5), (1e6, -1.5), (1e7, -1.0), (1e7, -3.0)]
    pairs = pd.DataFrame([{"size": f"{n:g}", "seed": i % 2, "n_params": n, "difference": value}
                          for i, (n, value) in enumerate(rows)])  # fmt: skip
    found = judge(pairs)
    assert found.target.value == pytest.approx(-3)
    assert found.target.high - found.target.value == pytest.approx(5.2503 * 4.25**0.5, rel=1e-4)
    assert found.trend.value == pytest.approx(-1)
    assert found.verdict == NOT_DETERMINED
    assert found.seeds_needed is not None
    assert found.seeds_needed > 2


def test_a_bend_leaves_it_open() -> None:
    rng = np.random.default_rng(2)
    pairs = world(rng, 4, first=-1.0, slope=0.0, noise=(0.05,) * 3, sizes=(1e6, 1e7, 1e8))
    pairs.loc[pairs["n_params"] == 1e7, "difference"] -= 2.0
    assert judge(pairs).bent
    assert judge(pairs).verdict == NOT_DETERMINED


def sweep(name: str, rows: list[tuple[str, int, float, float]], arch: str = "llama") -> Sweep:
    points = pd.DataFrame([
        {"run_id": f"{name}-{size}-s{seed}", "arch": arch, "size": size, "seed": seed,
         "n_params": float(size[1:]), "tokens": tokens, "loss": loss}
        for size, seed, tokens, loss in rows
    ])  # fmt: skip
    empty = pd.DataFrame()
    return Sweep(name, empty, points, empty, empty, "")


def test_pairs_are_of_one_size_seed_and_budget() -> None:
    base = sweep("a", [("d16", 0, 1e6, 2.0), ("d16", 0, 2e6, 1.5), ("d16", 1, 2e6, 1.6),
                       ("d32", 0, 2e6, 1.2)])  # fmt: skip
    changed = sweep("b", [("d16", 0, 2e6, 1.5 * math.exp(-0.01)), ("d16", 1, 3e6, 1.5),
                          ("d64", 0, 2e6, 1.0)], "hgrn2")  # fmt: skip
    pairs, unpaired = paired(base, changed)
    assert list(pairs["difference"]) == pytest.approx([-1.0])
    assert [text.partition(":")[0] for text in unpaired] == ["a-d16-s1", "a-d32-s0", "b-d64-s0"]


def test_what_cannot_be_judged_is_explained() -> None:
    one = pd.DataFrame({"size": ["a", "a", "b"], "seed": [0, 1, 0], "n_params": [1e6, 1e6, 1e7],
                        "difference": [-1.0, -2.0, -1.0]})  # fmt: skip
    with pytest.raises(AnalysisError, match=r"size b: one seed"):
        judge(one)
    rng = np.random.default_rng(3)
    with pytest.raises(AnalysisError, match="at least the largest size"):
        judge(world(rng, 3, first=-1, slope=0), at=1e6)
    both = sweep("a", [("d16", 0, 1e6, 2.0), ("d16", 1, 1e6, 2.0)])
    both.points["arch"] = ["llama", "tnl"]
    with pytest.raises(AnalysisError, match="--only arch=NAME"):
        paired(both, both)

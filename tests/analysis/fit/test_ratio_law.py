"""The law of shares on data made from it, by formulas written here again."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.errors import AnalysisError
from analysis.figures import shares as draw
from analysis.fit.ratio_law import fit_ratio_law
from analysis.io.frames import numbers
from analysis.judge.shares import shares_of

RATIOS = (0.0, 0.125, 0.25, 0.5, 1.0)
PATTERNS = ("hgrn2", "hgrn2*7+llama", "hgrn2*3+llama", "hgrn2+llama", "llama on hgrn2")
BUDGETS = (1e17, 4e17, 1.6e18, 6.4e18)
B1, B2, ALPHA, FLOOR = -0.4, 0.34, 0.25, 1.1
BEST = (B1 / (2 * B2)) ** 2


def made(noise: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """Every share and budget with four sizes that move with the budget."""
    rng = np.random.default_rng(seed)
    rows = []
    for pattern, ratio in zip(PATTERNS, RATIOS, strict=True):
        for number, size in enumerate((1e6, 2e6, 4e6, 8e6)):
            for budget in BUDGETS:
                log_c, log_n = np.log(budget / 8e17), np.log(size / 3e6)
                reducible = 1.3 * np.exp(-ALPHA * log_c + B1 * ratio**0.5 + B2 * ratio)
                reducible *= np.exp(0.05 * (log_n - 0.5 * log_c) ** 2)
                loss = (FLOOR + reducible) * np.exp(noise * rng.normal())
                rows.append(
                    {"arch": pattern, "run_id": f"{pattern}-{number}", "size": str(number),
                     "flops": budget, "n_params": size, "ratio": ratio, "loss": loss}
                )  # fmt: skip
    return pd.DataFrame(rows)


def test_finds_what_the_data_were_made_from() -> None:
    law = fit_ratio_law(made())
    for name, value in (("E", FLOOR), ("alpha", ALPHA), ("b1", B1), ("b2", B2), ("nu", 0.5)):
        assert law.params[name] == pytest.approx(value, rel=1e-3)
    assert law.best(1e18)[0] == pytest.approx(BEST, abs=0.003)
    points = made()
    n, c, ratio = (numbers(points, name) for name in ("n_params", "flops", "ratio"))
    np.testing.assert_allclose(law.predict_at(n, c, ratio), points["loss"], rtol=1e-5)
    # Worth in compute: where share 0 takes C, a share takes C exp((b1 s + b2 s^2) / alpha).
    band = law.band(1e18, np.array([0.0, 0.25]))
    worth = np.exp((B1 * 0.5 + B2 * 0.25) / ALPHA)
    assert list(band["compute"]) == pytest.approx([1, worth], rel=1e-3)
    assert law.predict(1e18 * worth, 0.25) == pytest.approx(law.predict(1e18, 0.0), rel=1e-4)


def test_a_best_share_that_moves_with_compute() -> None:
    points = made()
    log_c = np.log(points["flops"] / 8e17)
    moved = FLOOR + (points["loss"] - FLOOR) * np.exp(0.03 * log_c * points["ratio"] ** 0.5)
    law = fit_ratio_law(points.assign(loss=moved), drift=True)
    for budget in (1e17, 6.4e18):
        slope = B1 + 0.03 * np.log(budget / 8e17)
        assert law.best(budget)[0] == pytest.approx((slope / (2 * B2)) ** 2, abs=0.004)


def test_intervals_hold_the_truth_and_ties_are_ties() -> None:
    """Over a few draws of noise: not a proof of coverage, but a wrong scale would show."""
    hits = 0
    for seed in range(4):
        law = fit_ratio_law(made(0.004, seed), bootstrap=16, seed=seed)
        _, low, high = law.best(1e18)
        hits += low - 0.01 <= BEST <= high + 0.01
        assert 0.005 < high - low < 0.3
        tied = law.tied(1e18, np.array(RATIOS))
        assert 0.25 in tied or 0.5 in tied
        assert 0.0 not in tied
    assert hits >= 3


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t[t["ratio"] < 0.2], "2 shares"),
        (lambda t: t[t["flops"] == 1e17], "1 budgets"),
        (lambda t: t[t["n_params"] < 3e6], "2 sizes"),
        (lambda t: t.assign(ratio=2.0), "between 0 and 1"),
        (lambda t: t.assign(loss=-1.0), "positive numbers"),
    ],
)
def test_what_is_refused(change, match) -> None:
    with pytest.raises(AnalysisError, match=match):
        fit_ratio_law(change(made()))


def test_families_of_a_sweep_and_their_figure() -> None:
    """Patterns are read for their share; budgets that are nearly one are one; others are no
    family."""
    points = made(0.002).drop(columns="ratio")
    points["flops"] *= np.exp(np.random.default_rng(1).uniform(-0.01, 0.01, len(points)))
    others = points[points["arch"] == "hgrn2"].assign(arch="tnl")
    unknown = points[points["arch"] == "hgrn2"].assign(arch="somebody else's")
    found = shares_of(pd.concat([points, others, unknown]), bootstrap=4)
    assert list(found.laws) == ["hgrn2"]
    assert set(found.table["arch"]) == set(PATTERNS)
    lowest = found.lowest()
    assert sorted(set(lowest["ratio"])) == list(RATIOS)
    assert len(np.unique(numbers(lowest, "budget"))) == len(BUDGETS)
    best = found.best(0.9)
    assert len(best) == len(BUDGETS)
    assert (numbers(best, "lo") <= numbers(best, "ratio")).all()
    recall = pd.DataFrame(
        {"family": "hgrn2", "ratio": RATIOS, "task": "mqar", "accuracy": 0.5, "stderr": 0.01}
    )
    figure = draw(lowest, found.bands(0.9), best, recall)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "HGRN2: loss at equal compute", "HGRN2: recall",
    ]  # fmt: skip
    with pytest.raises(AnalysisError, match="nothing to draw"):
        draw(lowest.iloc[:0], found.bands(0.9), best)
    assert shares_of(others, bootstrap=4).laws == {}

"""The law of recall on data that follow it: SciPy's normal distribution is the oracle."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from analysis.errors import AnalysisError
from analysis.judge.recall_law import recall_laws


def published(a: float, pairs: int, numbers: int, width: int, values: int) -> float:
    sigma = math.sqrt(a * pairs / numbers + 1 / width)
    return float(norm.cdf(1 / sigma - math.sqrt(2 * math.log(values))))


def answers(a: float, seed: int, *, scatter: float = 0.0, runs: int = 6) -> pd.DataFrame:
    """Runs of three states, four loads, 200 sequences; runs scatter in log a."""
    draw = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for run in range(runs):
        own = a * math.exp(scatter * draw.standard_normal())
        state = (256, 512, 1024)[run % 3]
        for load in (2, 4, 8, 16):
            p = published(own, load, state, 64, 32)
            rows.append(
                {"arch": "tnl", "run": f"r{run}", "load": load, "state_numbers": state,
                 "width": 64, "values": 32, "sequences": 200,
                 "accuracy": draw.binomial(200 * load, p) / (200 * load)}
            )  # fmt: skip
    return pd.DataFrame(rows)


def test_the_number_comes_back_and_answers_scatter_as_coins() -> None:
    law = recall_laws(answers(5.0, 0, runs=12))["tnl"]
    assert law.a == pytest.approx(5.0, rel=0.03)
    assert law.determined
    assert 0.5 < law.deviance < 1.6
    assert law.null > 20 * law.deviance
    assert law.error < 0.03
    expected = published(law.a, 4, 512, 64, 32)
    found = law.accuracy(*(np.array([float(x)]) for x in (4, 512, 64, 32)))
    assert found[0] == pytest.approx(expected, rel=1e-12)


def test_intervals_of_runs_that_differ_hold_what_they_say() -> None:
    """90 % of 60 worlds with 12 runs that scatter by 20 %: 54 expected, at least 48 by chance."""
    held = 0
    for seed in range(60):
        law = recall_laws(answers(5.0, seed, scatter=0.2, runs=12), draws=60)["tnl"]
        assert law.lo is not None
        assert law.hi is not None
        held += law.lo <= 5.0 <= law.hi
    assert held >= 48


def test_perfect_answers_leave_it_open_and_few_runs_have_no_interval() -> None:
    table = answers(5.0, 0, runs=2)
    table["accuracy"] = 1.0
    law = recall_laws(table)["tnl"]
    assert not law.determined
    assert (law.lo, law.hi) == (None, None)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("accuracy", 1.2, "between 0 and 1"),
        ("load", 0, "positive"),
        ("width", float("nan"), "positive"),
    ],
)
def test_values_that_cannot_be_are_named(column: str, value: float, words: str) -> None:
    table = answers(5.0, 0).astype({column: float})
    table.loc[3, column] = value
    with pytest.raises(AnalysisError, match=words):
        recall_laws(table)


def test_a_missing_column_is_named() -> None:
    with pytest.raises(AnalysisError, match="no column 'values'"):
        recall_laws(answers(5.0, 0).drop(columns="values"))

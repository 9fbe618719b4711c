"""Tables that pool several corpora or recipes: the column is named, labels of sizes are not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.errors import FitWarning, alike, worth_reading
from analysis.fit.fitting import fit_law
from analysis.fit.mixtures import explained


def grid(factor: dict[str, float], *, noise: float = 0.002) -> pd.DataFrame:
    """Six sizes at four token counts for each corpus, losses of one law times its factor."""
    rng = np.random.default_rng(3)
    rows = [
        {"n_params": 1e7 * 2.0**i, "tokens": 1e9 * 3.0**j, "corpus": corpus, "size": f"s{i}",
         "loss": times * (1.7 + 400 * (1e7 * 2.0**i) ** -0.34 + 410 * (1e9 * 3.0**j) ** -0.28)
         * np.exp(noise * rng.normal())}
        for corpus, times in factor.items() for i in range(6) for j in range(4)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def codes(data: pd.DataFrame) -> dict[str, FitWarning]:
    return {w.code: w for w in fit_law("chinchilla", data).warnings}


def test_the_column_that_tells_the_laws_apart_is_named() -> None:
    data = grid({"web": 1.0, "code": 0.6, "books": 1.2})
    found = codes(pd.concat([data.iloc[::2], data.iloc[1::2]]).set_axis([0] * len(data)))
    assert found["mixed_groups"].data["column"] == "corpus"
    assert found["mixed_groups"].data["values"] == 3
    assert found["mixed_groups"].data["explained"] > 0.95
    assert "--group corpus" in found["mixed_groups"].message
    (said, *others) = worth_reading(found.values())
    assert said.code == "mixed_groups"
    assert not {w.code for w in others} & {"high_floor", "weak_term", "outliers", "flat_direction"}


def test_of_columns_that_say_the_same_the_coarsest_is_named() -> None:
    data = grid({"web": 1.0, "web2": 1.0, "code": 0.6, "code2": 0.6})
    data["kind"] = [c.rstrip("2") for c in data["corpus"]]
    assert codes(data)["mixed_groups"].data["column"] == "kind"


@pytest.mark.parametrize("times", [{"web": 1.0}, {"web": 1.0, "copy": 1.0}])
def test_one_law_for_all_is_no_mixture(times: dict[str, float]) -> None:
    data = grid(times)
    data["loss"] += 0.2 * np.sin(np.log(data["n_params"]))  # no law: labels of sizes explain it
    assert "mixed_groups" not in codes(data)


def test_numbers_in_a_column_of_words_are_no_kinds() -> None:
    data = grid({"1": 1.0, "2": 0.6, "3": 1.2})
    assert "mixed_groups" not in codes(data)


def test_share_of_variance_by_hand() -> None:
    values = np.array([1.0, 3.0, 7.0, 9.0])  # within 4, in all 40
    group = np.array([0, 0, 1, 1])
    assert explained(values, group) == pytest.approx(1 - 4 / 40 * 3 / 2)


def test_what_follows_from_another_warning_is_not_read() -> None:
    made = [FitWarning(c, "") for c in ("few_clusters", "flat_direction", "weak_term",
                                        "unstable_resamples", "outliers")]  # fmt: skip
    assert [w.code for w in worth_reading(made)] == ["few_clusters", "flat_direction", "outliers"]
    assert worth_reading(made[2:3]) == made[2:3]
    assert alike({"a": "x", "b": "y", "c": "x"}) == [("a, c", "x"), ("b", "y")]


def test_own_counts_have_no_doubtful_units() -> None:
    data = grid({"web": 1.0})
    data[["n_params", "tokens"]] = data[["n_params", "tokens"]] / 1e5
    assert "units_suspect" in codes(data)
    own = fit_law("chinchilla", data, accounting=True)
    assert "units_suspect" not in {w.code for w in own.warnings}

"""Bad data: each kind is a clear error or a visible exclusion with its reason."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.errors import AnalysisError
from analysis.fit.fitting import fit_law
from tests.support.worlds import suite


def _fit(data: pd.DataFrame, form: str = "chinchilla", **options):
    return fit_law(form, data, **options)


def _reasons(fit) -> list[str]:
    return fit.observations.exclusions["reason"].to_list()


@pytest.mark.parametrize("role", ["n", "d", "c", "u", "loss"])
def test_a_column_that_is_named_and_absent_is_refused(role: str) -> None:
    """Nothing is computed in the place of a name that was misspelt."""
    data = suite(noise=0.002)
    with pytest.raises(AnalysisError, match=r"no column 'misspelt' for .*the table has: "):
        _fit(data, **{role: "misspelt"})


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("loss", np.nan, "loss is not a number"),
        ("loss", np.inf, "the loss is infinite (diverged)"),
        ("loss", 0.0, "loss is zero"),
        ("loss", -1.0, "loss is negative"),
        ("n_params", np.nan, "n_params is not a number"),
        ("n_params", -5.0, "n_params is negative"),
        ("tokens", 0.0, "tokens is zero"),
        ("tokens", "many", "tokens is not a number"),
    ],
)
def test_bad_values_are_excluded_with_their_reason(column: str, value: object, reason: str) -> None:
    data = suite(noise=0.002).astype({column: object})
    data.loc[4, column] = value
    fit = _fit(data)
    assert _reasons(fit) == [reason]
    assert fit.observations.exclusions["row"].to_list() == [4]
    (warning,) = [w for w in fit.warnings if w.code == "rows_excluded"]
    assert reason in warning.message
    # and the rest is fitted as if the row had never been there
    np.testing.assert_allclose(fit.values, _fit(suite(noise=0.002).drop(index=4)).values, rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    bad=st.dictionaries(
        st.integers(0, 24),
        st.tuples(st.sampled_from(["loss", "n_params", "tokens"]),
                  st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -3.0])),
        max_size=8,
    )
)  # fmt: skip
def test_any_mixture_of_bad_rows_never_reaches_the_fit(bad) -> None:
    data = suite(noise=0.002)
    for row, (column, value) in bad.items():
        data.loc[row, column] = value
    fit = _fit(data)
    assert len(fit.observations.loss) + len(bad) == len(data)
    assert set(fit.observations.exclusions["row"]) == set(bad)
    assert np.isfinite(fit.values).all()


def test_diverged_runs_are_excluded_by_state() -> None:
    data = suite(noise=0.002).assign(state="done")
    data.loc[[2, 9], "state"] = ["diverged", "failed"]
    assert _reasons(_fit(data)) == ["the run diverged", "the run failed"]


def test_identical_rows_count_once() -> None:
    data = suite(noise=0.002)
    again = pd.concat([data, data.iloc[[3, 3]]], ignore_index=True)
    fit = _fit(again)
    assert _reasons(fit) == ["identical to an earlier row"] * 2
    np.testing.assert_allclose(fit.values, _fit(data).values, rtol=1e-9)


def test_seeds_of_one_configuration_are_not_duplicates() -> None:
    data = suite(noise=0.002)
    again = data.assign(loss=data["loss"] * 1.001, run_id=data["run_id"] + "-seed1")
    assert len(_fit(pd.concat([data, again])).observations.loss) == 2 * len(data)


def test_too_few_points() -> None:
    with pytest.raises(AnalysisError, match=r"5 parameters and 5 usable points.*at least 6"):
        _fit(suite().head(5))
    with pytest.raises(AnalysisError, match="0 usable points"):
        _fit(suite().head(0))
    ratios = suite(sizes=3, ratios=(5.0, 20.0, 80.0))
    assert "few_points" in {w.code for w in _fit(ratios.head(7)).warnings}


def test_one_size_only() -> None:
    data = suite(sizes=1, ratios=tuple(np.geomspace(2, 300, 12)))
    with pytest.raises(AnalysisError, match=r"n_params takes 1 distinct value.*at least 3"):
        _fit(data)
    assert _fit(data, "power_d_e").params["alpha"] > 0


def test_three_sizes_are_few() -> None:
    assert "few_sizes" in {w.code for w in _fit(suite(sizes=3, noise=0.001)).warnings}


def test_constant_tokens_per_parameter_is_not_separable() -> None:
    data = suite(sizes=10, ratios=(20.0,), noise=0.001)
    warnings = {w.code for w in _fit(data).warnings}
    assert "collinear" in warnings


def test_mixed_units_are_refused() -> None:
    data = suite(noise=0.002)
    data.loc[data.index[::2], "tokens"] /= 1e9
    with pytest.raises(AnalysisError, match="tokens mixes units: it jumps from"):
        _fit(data)


def test_billions_are_suspected() -> None:
    data = suite(noise=0.002)
    data["tokens"] /= 1e9
    codes = {w.code: w for w in _fit(data).warnings}
    assert "units_suspect" in codes
    assert "1e9" in codes["units_suspect"].message


def test_inconsistent_compute_is_reported() -> None:
    data = suite(noise=0.002)
    data["flops"] *= 1e3
    codes = {w.code: w for w in _fit(data).warnings}
    assert codes["compute_inconsistent"].data["median"] == pytest.approx(1e3)
    mixed = suite(noise=0.002)
    mixed.loc[mixed.index[:5], "flops"] *= 500
    assert "compute_inconsistent" in {w.code for w in _fit(mixed).warnings}
    days = suite(noise=0.002)
    days["flops"] /= 8.64e19
    text = {w.code: w.message for w in _fit(days).warnings}["compute_inconsistent"]
    assert "PFLOP/s-days" in text


def test_missing_tokens_follow_from_compute_and_say_so() -> None:
    data = suite(noise=0.002)
    fit = _fit(data.drop(columns="tokens"))
    assert "assumed_compute" in {w.code for w in fit.warnings}
    np.testing.assert_allclose(fit.values, _fit(data).values, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": "size_in_b"}, "no column 'size_in_b' for N"),
        ({"loss": "val"}, "no column 'val' for the loss; the table has: arch, size"),
        ({"clusters": "run"}, "no column 'run' for clusters"),
        ({"weights": "w"}, "no column 'w' for weights"),
    ],
)
def test_absent_columns_are_named(options: dict[str, str], message: str) -> None:
    data = suite().drop(columns="flops")
    with pytest.raises(AnalysisError, match=message):
        _fit(data, **options)


def test_two_columns_of_one_name() -> None:
    data = suite()
    data = pd.concat([data, data[["loss"]]], axis=1)
    with pytest.raises(AnalysisError, match="several columns named 'loss'"):
        _fit(data)


def test_the_callers_table_is_left_alone() -> None:
    data = suite(noise=0.002)
    before = data.copy(deep=True)
    _fit(data, bootstrap=10)
    pd.testing.assert_frame_equal(data, before)


def test_rows_without_a_cluster_are_units_of_their_own() -> None:
    data = suite(runs="size").assign(unit=["u", None, None, "u"] + ["v"] * 21)
    assert fit_law("chinchilla", data, clusters="unit").observations.labels == [
        "row 1", "row 2", "u", "v"]  # fmt: skip

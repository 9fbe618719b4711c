"""The rolling hold-out in words, on laws whose form is right and whose form is wrong."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.errors import AnalysisError
from analysis.fit.fitting import fit_law
from analysis.judge import rolling_holdout
from analysis.judge import sensitivity as sensitivity_room
from analysis.judge.rolling_holdout import roll
from analysis.judge.sensitivity import sensitivity
from tests.support.worlds import suite


def _roll(data: pd.DataFrame, form: str = "chinchilla") -> tuple[float, float, str]:
    found = roll(fit_law(form, data), data)
    return found.error, found.coverage, " ".join(found.describe())


def test_the_right_form_is_neither_pessimistic_nor_optimistic() -> None:
    error, coverage, text = _roll(suite(sizes=8, noise=0.001))
    assert abs(error) < 0.005
    assert coverage > 0.6
    assert "rolling hold-out" in text


def test_a_law_without_a_floor_is_too_optimistic_and_another_form_predicts_better() -> None:
    error, coverage, text = _roll(suite(sizes=8, noise=0.0005), "chinchilla_no_e")
    assert error < -0.01
    assert coverage < 0.6
    assert "too optimistic: larger runs came out worse" in text
    assert "chinchilla predicted best" in text or "gamma predicted best" in text


def test_signs_and_coverage_are_those_of_the_forecasts() -> None:
    found = roll(fit_law("chinchilla", suite(noise=0.003)), suite(noise=0.003))
    frame = found.forecasts
    expected = np.log(frame["predicted"] / frame["loss"]).mean()
    assert found.error == pytest.approx(expected)
    inside = (frame["lo"] <= frame["loss"]) & (frame["loss"] <= frame["hi"])
    assert found.coverage == pytest.approx(inside.mean())
    assert found.as_dict()["words"] == found.describe()


def test_a_form_in_compute_is_not_rolled() -> None:
    with pytest.raises(AnalysisError, match="no N and D"):
        roll(fit_law("power_c_e", suite()), suite())


def test_a_floor_near_the_lowest_loss_is_warned_of_with_its_short_runs() -> None:
    data = suite(sizes=6, ratios=(2.0, 5.0, 20.0, 60.0), noise=1e-4,
                 law={"E": 6.0, "A": 406.4, "alpha": 0.34, "B": 410.7, "beta": 0.28})  # fmt: skip
    warnings = {w.code: w.message for w in fit_law("chinchilla", data).warnings}
    assert "of the lowest loss" in warnings["high_floor"]
    assert "12 of 24 points have fewer than 10 tokens" in warnings["undertrained"]
    assert "x-00-00" in warnings["undertrained"]
    low = suite(sizes=6, noise=1e-4, law={"E": 0.5, "A": 406.4, "alpha": 0.34, "B": 410.7,
                                          "beta": 0.28})  # fmt: skip
    assert "high_floor" not in {w.code for w in fit_law("chinchilla", low).warnings}


def test_one_run_that_went_astray_neither_opens_the_law_nor_slants_it() -> None:
    """A robust fit passes it by; so do what is said of open parameters and of larger runs."""
    data = suite(sizes=6, ratios=(5.0, 20.0, 80.0, 320.0), noise=0.0005)
    astray = data.copy()
    last = astray["n_params"].astype(float).idxmax()
    astray.loc[last, "loss"] *= 1.25
    fit = fit_law("chinchilla", astray)
    codes = {w.code for w in fit.warnings}
    assert "outliers" in codes
    assert ("flat_direction" in codes) == (
        "flat_direction" in {w.code for w in fit_law("chinchilla", data).warnings}
    )
    found = roll(fit, astray)
    text = " ".join(found.describe())
    assert found.error < -0.003
    assert "in the median: a few of them err most" in text
    assert "optimistic" not in text


def test_a_floor_above_losses_says_that_rows_do_not_belong_together() -> None:
    data = pd.concat([suite(sizes=6, noise=1e-3),
                      suite(sizes=6, noise=1e-3).assign(loss=lambda t: 0.3 * t["loss"]).iloc[:8]],
                     ignore_index=True)  # fmt: skip
    data["run_id"] = [f"r{i}" for i in range(len(data))]
    fit = fit_law("chinchilla", data, keep_diverged=True)
    (text,) = [w.message for w in fit.warnings if w.code == "floor_above_losses"]
    assert "lies above 8 of" in text
    assert "one law does not describe these rows" in text
    assert "high_floor" not in {w.code for w in fit.warnings}


def test_a_part_that_is_taken_of_many_points_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    data = suite(sizes=8, noise=0.002)
    fit = fit_law("chinchilla", data)
    assert "(on " not in roll(fit, data).describe()[0]
    monkeypatch.setattr(rolling_holdout, "MOST", 20)
    monkeypatch.setattr(sensitivity_room, "MOST", 20)
    found = roll(fit, data)
    assert f"hold-out (on 20 of {len(data)} points):" in found.describe()[0]
    assert (found.as_dict()["used"], found.as_dict()["of"]) == (20, len(data))
    table = sensitivity("chinchilla", data, reference=fit)
    assert (table["points"].iloc[0], table.attrs["of"]) == (20, len(data))

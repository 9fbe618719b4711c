"""`.plot()` and `_repr_html_` of every result object."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis.errors import AnalysisError
from analysis.figures.plots import of_isoflop
from analysis.fit.approaches import NAMES, three_approaches
from analysis.fit.downstream import fit_downstream
from analysis.fit.envelope import envelope
from analysis.fit.fitting import fit_law
from analysis.fit.isoflop import isoflop
from analysis.io.frames import where
from analysis.judge.compare import compute_multiplier
from analysis.judge.shared_exponents import shared_exponents
from analysis.report.report_figures import isoflop_profiles
from tests.support.worlds import optimum_of, suite


def _texts(figure: Figure) -> str:
    """Every text of a figure; drawing it proves that it can be drawn."""
    from matplotlib.text import Text

    figure.canvas.draw()
    return " | ".join(t.get_text() for t in figure.findobj(Text) if isinstance(t, Text))


def _lines(figure: Figure) -> list[np.ndarray]:
    every = [np.asarray(line.get_xydata()) for axes in figure.axes for line in axes.lines]
    return [xy[np.isfinite(xy).all(axis=1)] for xy in every]


def _iso(noise: float = 0.0) -> pd.DataFrame:
    """Five budgets with nine sizes each around the optimum, four checkpoints a run."""
    rng = np.random.default_rng(0)
    parts = []
    for budget in np.geomspace(1e19, 1e21, 5):
        centre = optimum_of(budget)[0]
        n = centre * np.geomspace(0.25, 4, 9)
        d = budget / (6 * n)
        loss = 1.69 + 406.4 / n**0.34 + 410.7 / d**0.28
        parts.append(pd.DataFrame({"n_params": n, "tokens": d, "flops": budget, "loss": loss}))
    table = pd.concat(parts, ignore_index=True)
    return table.assign(loss=table["loss"] * np.exp(noise * rng.standard_normal(len(table))))


@pytest.mark.parametrize("form", ["power_c", "power_n_e", "kaplan", "data_constrained", "broken_c"])
def test_every_form_draws_itself(form: str) -> None:
    data = suite(noise=0.004).assign(unique_tokens=lambda f: f["tokens"] / 4)
    assert "all" in _texts(fit_law(form, data).plot())


def test_law_in_compute_draws_its_prediction_and_band() -> None:
    fit = fit_law("power_c_e", suite(noise=0.004), bootstrap=40)
    figure = fit.plot()
    x, y = max(_lines(figure), key=len).T
    np.testing.assert_allclose(y, fit.predict(c=x), rtol=1e-9)
    assert figure.axes[0].collections  # band and points
    assert "training compute" in _texts(figure).lower()


def test_law_in_tokens_has_tokens_on_its_axis() -> None:
    assert "tokens" in _texts(fit_law("power_d_e", suite(noise=0.004)).plot()).lower()


def test_contours_carry_the_optimal_line() -> None:
    fit = fit_law("chinchilla", suite(noise=0.001))
    solid, dashed = _lines(fit.plot())  # within the data, and beyond, where they share an end
    assert len(solid) > 10
    assert len(dashed) > 10
    line = np.unique(np.concatenate([solid, dashed]), axis=0)
    best = fit.optimal(6 * line[:, 0] * line[:, 1])
    np.testing.assert_allclose(line[:, 0], best["n"], rtol=1e-6)


def test_envelope_and_isoflop_draw_what_they_fitted() -> None:
    data = _iso(0.001)
    curves = suite(sizes=6, ratios=tuple(np.geomspace(1, 400, 24)), runs="size")
    first = envelope(curves, bootstrap=30)
    x, y = max(_lines(first.plot()), key=len).T
    np.testing.assert_allclose(y, first.predict(x), rtol=1e-9)
    second = isoflop(data)
    figure = second.plot()
    stars = [xy for xy in _lines(figure) if len(xy) == 1]
    np.testing.assert_allclose(sorted(s[0, 0] for s in stars), sorted(second.minima["n"]))
    valleys = second.profiles()
    for budget, part in valleys.groupby("budget"):
        minimum = second.minima.set_index("budget").loc[budget]
        best = part.loc[part["loss"].idxmin()]
        assert best["n"] == pytest.approx(minimum["n"], rel=0.05)
        assert best["loss"] == pytest.approx(minimum["loss"], abs=1e-4)


def test_report_draws_valleys_where_there_are_some() -> None:
    ladder, grid = suite(noise=0.004, arch="ladder"), _iso(0.001).assign(arch="grid")
    table = pd.concat([ladder, grid], ignore_index=True)
    laws = {g: fit_law("chinchilla", where(table, arch=g)) for g in ("ladder", "grid")}
    profiles = isoflop_profiles(table, laws)
    assert list(profiles) == ["grid"]
    assert "grid" in _texts(of_isoflop(profiles))


def test_comparison_and_task_draw_bands() -> None:
    x = fit_law("chinchilla", suite(noise=0.002, arch="x"), bootstrap=60, clusters="size")
    y = fit_law("chinchilla", suite(noise=0.002, arch="y", seed=1), bootstrap=60, clusters="size")
    assert "y" in _texts(compute_multiplier(x, y, names=("x", "y")).plot())
    loss = np.linspace(2.0, 3.6, 30)
    data = pd.DataFrame({"loss": loss, "accuracy": 0.25 + 0.75 / (1 + np.exp(4 * (loss - 2.7)))})
    task = fit_downstream(data, chance=0.25, bootstrap=50)
    assert "piqa" in _texts(task.plot(name="piqa"))
    with pytest.raises(AnalysisError, match="no draws"):
        fit_downstream(data, chance=0.25).plot()


def test_approaches_draw_each_applied_approach() -> None:
    result = three_approaches(_iso(0.0005), bootstrap=60)
    assert list(result.fits()) == [NAMES[1], NAMES[2]]
    text = _texts(result.plot())
    assert NAMES[1] in text
    assert NAMES[2] in text
    row = result.frame.set_index("approach").loc[NAMES[2]]
    assert row["n_lo"] < row["n"] < row["n_hi"]
    assert row["n"] == pytest.approx(optimum_of(result.at)[0], rel=0.1)
    assert "needs training curves" in result.frame.set_index("approach").loc[NAMES[0], "note"]
    record = result.as_dict()
    assert record["approaches"][0]["a"] is None


def test_checkpoints_of_runs_serve_as_curves() -> None:
    data = suite(sizes=6, ratios=tuple(np.geomspace(1, 400, 24)), runs="size", noise=0.001)
    assert NAMES[0] in three_approaches(data).fits()


def test_every_result_shows_itself_in_a_notebook() -> None:
    data = suite(noise=0.004)
    fits = {k: fit_law("chinchilla", suite(noise=0.004, seed=i), bootstrap=30)
            for i, k in enumerate("xy")}  # fmt: skip
    results = [
        fits["x"], fit_law("power_c", data), isoflop(_iso(0.001)), three_approaches(_iso(0.001)),
        envelope(suite(sizes=6, ratios=tuple(np.geomspace(1, 400, 24)), runs="size")),
        compute_multiplier(fits["x"], fits["y"]), shared_exponents(fits),
        fit_downstream(pd.DataFrame({"loss": [2, 2.5, 3, 3.5], "accuracy": [.9, .7, .4, .3]}),
                       chance=0.25),
    ]  # fmt: skip
    for result in results:
        assert "<table" in result._repr_html_()

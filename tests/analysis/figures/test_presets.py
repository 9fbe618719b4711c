"""Widths, letters and legibility of figures in every style."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from analysis.errors import AnalysisError
from analysis.figures import presets, style
from analysis.figures.curves import smooth
from analysis.figures.fit_checks import bootstrap_cloud
from analysis.fit.fitting import fit_law
from analysis.io.sweep import Sweep
from tests.analysis.figures.test_figures import MAKERS, make_frontier, make_learning, sweep
from tests.support.overlaps import overlaps
from tests.support.worlds import suite

__all__ = ["sweep"]


@pytest.mark.parametrize("name", MAKERS)
def test_no_word_lies_on_another(sweep: Sweep, name: str) -> None:
    assert overlaps(MAKERS[name][0](sweep)) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["neurips", "neurips-serif", "icml", "icml-single", "icml-double"])
@pytest.mark.parametrize("name", MAKERS)
def test_no_word_lies_on_another_in_print(sweep: Sweep, name: str, kind: str) -> None:
    with presets.use(kind):
        assert overlaps(MAKERS[name][0](sweep)) == []


def test_collisions_are_seen() -> None:
    """A word on a word, a leader through one, words on marks, and one off the figure."""
    with style.context():
        figure, grid = style.panels(1, 1, width=3, height=2)
        axes = grid[0, 0]
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.text(0.3, 0.5, "first")
        axes.text(0.33, 0.52, "second")
        axes.text(0.6, 0.8, "third")
        axes.annotate("fourth", (0.62, 0.95), (0.62, 0.1), arrowprops={"arrowstyle": "-"})
        marks = axes.scatter(np.linspace(0.1, 0.3, 5), np.full(5, 0.25))
        marks.hover_texts = [""] * 5
        axes.text(0.08, 0.22, "fifth, long")
        axes.text(0.9, 0.02, "sixth, too long").set_in_layout(False)
        found = overlaps(style.finish(figure))
    assert any("'first' on 'second'" in each for each in found)
    assert "leader of 'fourth' through 'third'" in found
    assert any(each.startswith("'fifth, long' on ") for each in found)
    assert "'sixth, too long' off the figure" in found
    assert len(found) == 4


def test_a_venue_sets_width_and_letters(sweep: Sweep) -> None:
    widths = {"neurips": 5.5, "icml": 3.25, "icml-double": 6.75, "icml-single-serif": 3.25}
    for name, width in widths.items():
        with presets.use(name):
            figure = make_frontier(sweep)
        assert figure.get_size_inches()[0] == pytest.approx(width)
        sizes = [float(t.get_fontsize()) for t in figure.findobj(Text) if t.get_text()]  # type: ignore[attr-defined]
        assert min(sizes) >= 5.5
        family = figure.axes[0].xaxis.label.get_fontfamily()[0]
        assert family == ("STIXGeneral" if "serif" in name else "DejaVu Sans")
    with presets.use("icml"):
        assert make_learning(sweep).get_size_inches()[0] == pytest.approx(6.75)
    assert presets.current() == presets.preset("house")
    for wrong in ("nature", "icml-triple", "house-single", ""):
        with pytest.raises(AnalysisError, match="icml-single-serif"):
            presets.preset(wrong)


def test_plot_takes_a_style() -> None:
    fit = fit_law("power_c_e", suite(noise=0.004))
    assert fit.plot(style="icml-single").get_size_inches()[0] == pytest.approx(3.25)
    with pytest.raises(AnalysisError, match="style 'x'"):
        fit.plot(style="x")


def test_formats(tmp_path: Path, sweep: Sweep) -> None:
    figure = make_frontier(sweep)
    for kinds in (["svg"], ["png", "pdf", "svg"]):
        paths = style.save(figure, tmp_path / "a.b", caption="what", formats=kinds)
        assert [p.name for p in paths] == [f"a.b.{k}" for k in kinds]
    first = (tmp_path / "a.b.svg").read_bytes()
    style.save(figure, tmp_path / "c", caption="what", formats=["svg"])
    assert (tmp_path / "c.svg").read_bytes() == first
    for wrong in (["jpg"], []):
        with pytest.raises(AnalysisError, match="png, pdf, svg"):
            style.save(figure, tmp_path / "x", formats=wrong)


@pytest.mark.parametrize("decades", [0.9, 1.4, 2, 6])
def test_flops_are_written_in_one_way(decades: float) -> None:
    with style.context():
        figure, grid = style.panels(1, 1, width=4, height=3)
        axes = grid[0, 0]
        axes.set_xscale("log")
        axes.set_xlim(3e11, 3e11 * 10**decades)
        style.log_axis(axes, "x")
        figure.draw_without_rendering()
        labels = [t.get_text() for t in axes.get_xticklabels() if t.get_text()]
    assert labels
    assert all("10^{1" in label for label in labels)


def test_decays_begin_on_their_trunk_and_ends_do_not_hook(sweep: Sweep) -> None:
    figure = make_learning(sweep)
    for axes in figure.axes:
        trunks = [line for line in axes.lines if line.get_gid() and line.get_linewidth() == 1.0]
        decays = [line for line in axes.lines if line.get_gid() and line.get_linewidth() < 1.0]
        assert decays
        for decay in decays:
            x, y = (np.asarray(v, dtype=float) for v in decay.get_data())
            gaps = []
            for trunk in trunks:
                tx, ty = (np.asarray(v, dtype=float) for v in trunk.get_data())
                if tx[0] <= x[0] <= tx[-1] * 1.0001:
                    gaps.append(abs(np.interp(np.log(x[0]), np.log(tx), ty) / y[0] - 1))
            assert min(gaps) < 1e-9
    assert "training loss" in figure.get_supylabel()
    # One batch of noise in a last window of its own would end the curve 5 % up.
    x = np.r_[np.linspace(1e9, 1e10, 200), 1.0001e10]
    y = np.r_[30 * x[:-1] ** -0.1, 30 * x[-1] ** -0.1 * 1.05]
    assert smooth(x, y)[1][-1] == pytest.approx(30 * x[-1] ** -0.1, rel=0.02)


def test_no_region_where_no_draw_is() -> None:
    """Two tight clumps far apart: the region is around each, and nothing lies between."""
    rng = np.random.default_rng(0)
    at = np.r_[np.full(500, 0.2), np.full(500, 0.8)]
    draws = pd.DataFrame({"group": "x", "alpha": at + 0.01 * rng.standard_normal(1000),
                          "beta": 0.5 + 0.01 * rng.standard_normal(1000)})  # fmt: skip
    best = pd.DataFrame([{"group": "x", "alpha": 0.5, "beta": 0.5}])
    (axes,) = bootstrap_cloud(draws, best).axes
    regions = [c for c in axes.collections if type(c).__name__ == "QuadContourSet"]
    inside = np.concatenate([path.vertices for c in regions for path in c.get_paths()])
    nearest = np.abs(inside[:, :1] - [0.2, 0.8]).min(axis=1)
    assert nearest.max() < 0.1

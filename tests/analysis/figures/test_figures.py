"""Figures: what they show (labels, units, lines, hover texts), not their pixels."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis import figures
from analysis.errors import AnalysisError
from analysis.figures import hover, style
from analysis.figures.curves import smooth
from analysis.io.looks import look, ordered
from analysis.io.records import load_sweep
from analysis.io.sweep import Sweep
from analysis.judge.frontier import unbeaten
from tests.support.make_runs import LAWS, write_sweep

ARCHS = list(LAWS)
LABELS = ["LLaMA", "TNL", "HGRN2", "cosFormer2"]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    root = tmp_path_factory.mktemp("runs") / "s"
    return load_sweep(write_sweep(root, dims=(32, 64, 96), seeds=(0, 1), log_lines=40))


def bands(*, extra: float = 3.0, **columns: object) -> pd.DataFrame:
    """A falling law with a band for every architecture."""
    parts = []
    for i, arch in enumerate(ARCHS):
        x = np.geomspace(1e10, 1e13 * extra, 30)
        y = (20 + i) * x**-0.09
        parts.append(
            pd.DataFrame({"group": arch, "x": x, "y": y, "lo": y * 0.98, "hi": y * 1.02,
                          "inside": x <= 1e13, **columns})
        )  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def make_frontier(sweep: Sweep) -> Figure:
    return figures.loss_compute(sweep.points.assign(used=True), bands())


def make_learning(sweep: Sweep) -> Figure:
    return figures.learning_curves(sweep.curves, sweep.points)


def make_collapse(sweep: Sweep) -> Figure:
    return figures.scaling_collapse(sweep.curves, {a: 1.1 for a in ARCHS})


def make_contours(sweep: Sweep) -> Figure:
    lines = pd.concat([pd.DataFrame({"group": a, "n": [1e4, 1e6], "d": [1e5, 1e7]}) for a in ARCHS])
    surfaces = {a: (lambda n, d, law=law: law.loss(n, d)) for a, law in LAWS.items()}
    return figures.contours(sweep.points, surfaces, lines)


def make_optimum(sweep: Sweep) -> Figure:
    laws = pd.concat([bands(quantity="n"), bands(quantity="d")])
    return figures.optimum(laws, published=tuple(figures.laws_in_compute.PUBLISHED))  # type: ignore[attr-defined]


def make_residuals(sweep: Sweep) -> Figure:
    error = 0.01 * np.random.default_rng(0).standard_normal(len(sweep.points))
    return figures.residuals(sweep.points.assign(predicted=sweep.points["loss"] * (1 + error)))


def make_cloud(sweep: Sweep) -> Figure:
    rng = np.random.default_rng(0)
    draws = pd.concat([
        pd.DataFrame({"group": a, "alpha": 0.3 + 0.02 * rng.standard_normal(300),
                      "beta": 0.3 + 0.01 * rng.standard_normal(300)})
        for a in ARCHS
    ])  # fmt: skip
    return figures.bootstrap_cloud(draws, draws.groupby("group", as_index=False).median())


def make_holdout(sweep: Sweep) -> Figure:
    own = sweep.points[sweep.points["size"] == "d96"]
    loss = own["loss"]
    return figures.holdout(
        own.assign(predicted=loss * 1.01, lo=loss * 0.99, hi=loss * 1.03, leap=own["flops"] / 1e12)
    )


def make_multipliers(sweep: Sweep) -> Figure:
    frame = bands()
    frame[["y", "lo", "hi"]] /= frame["y"].to_numpy()[:, None]
    return figures.multipliers(frame, baseline="llama")


def make_throughput(sweep: Sweep) -> Figure:
    return figures.throughput(sweep.runs)


def make_valleys(sweep: Sweep) -> Figure:
    n = np.geomspace(1e6, 1e8, 7)
    parts = []
    for arch in ARCHS:
        for budget in (1e16, 1e17):
            loss = 20 * budget**-0.05 * (1 + 0.01 * np.log(n / 1e7) ** 2)
            parts.append(
                pd.DataFrame({"arch": arch, "n_params": n, "tokens": budget / 6 / n, "x": n,
                              "flops": budget, "budget": budget, "loss": loss, "y": loss})
            )  # fmt: skip
    frame = pd.concat(parts, ignore_index=True)
    lowest = frame.loc[frame.groupby(["arch", "budget"])["loss"].idxmin()]
    return figures.valleys(frame, frame, lowest)


def make_downstream(sweep: Sweep) -> Figure:
    loss = np.linspace(2, 4, 8)
    measured = pd.concat([
        pd.DataFrame({"arch": a, "task": t, "loss": loss, "accuracy": 0.9 - 0.15 * loss})
        for a in ARCHS for t in ("piqa", "boolq")
    ])  # fmt: skip
    accuracy = 0.9 - 0.15 * loss
    laws = pd.concat([
        pd.DataFrame({"group": t, "x": loss, "y": accuracy, "lo": accuracy - 0.02,
                      "hi": accuracy + 0.02})
        for t in ("piqa", "boolq")
    ])  # fmt: skip
    return figures.downstream(measured, laws, chance={"piqa": 0.5, "boolq": 0.5})


def make_accuracy(sweep: Sweep) -> Figure:
    flops = np.geomspace(1e15, 1e18, 8)
    accuracy = np.linspace(0.5, 0.8, 8)
    both = [
        pd.DataFrame({"arch": a, "group": a, "task": t, "flops": flops, "x": flops, "y": accuracy,
                      "accuracy": accuracy, "lo": accuracy - 0.02, "hi": accuracy + 0.02,
                      "inside": flops < 1e17})
        for a in ARCHS for t in ("piqa", "boolq")
    ]  # fmt: skip
    frame = pd.concat(both)
    return figures.accuracy_compute(frame, frame, chance={"piqa": 0.5, "boolq": 0.5})


def make_rolling(sweep: Sweep) -> Figure:
    leap = np.geomspace(1.1, 20, 8)
    frame = [
        pd.DataFrame({"arch": a, "leap": leap, "error": 0.001 * leap, "pure": 0.01 * leap})
        for a in ARCHS
    ]
    return figures.rolling(pd.concat(frame))


def make_varied(sweep: Sweep) -> Figure:
    points = sweep.points.rename(columns={"n_params": "x", "loss": "value"})
    shapes = points.assign(panel="accuracy (%)", x=points["seed"] + 3.0, stderr=0.1)
    both = pd.concat([points.assign(panel="loss (nats/token)", stderr=np.nan), shapes])
    return figures.varied(both, x="parameters N", chance={"accuracy (%)": 1.5})


MAKERS: dict[str, tuple[Callable[[Sweep], Figure], str, str]] = {
    "frontier": (make_frontier, "FLOPs", "nats/token"),
    "learning": (make_learning, "FLOPs", "nats/token"),
    "collapse": (make_collapse, "share of the run's compute", "L"),
    "contours": (make_contours, "parameters N", "training tokens D"),
    "optimum": (make_optimum, "FLOPs", ""),
    "residuals": (make_residuals, "FLOPs", "predicted loss"),
    "cloud": (make_cloud, "exponent of N", "exponent of D"),
    "holdout": (make_holdout, "largest compute fitted", "measured loss"),
    "multipliers": (make_multipliers, "FLOPs", "multiplier over LLaMA"),
    "throughput": (make_throughput, "parameters N", "tokens/s"),
    "valleys": (make_valleys, "parameters N", "nats/token"),
    "downstream": (make_downstream, "nats/token", "accuracy"),
    "accuracy": (make_accuracy, "FLOPs", "accuracy"),
    "rolling": (make_rolling, "largest compute fitted", "predicted / measured"),
    "varied": (make_varied, "parameters N", "nats/token"),
}


@pytest.fixture(scope="module")
def drawn(sweep: Sweep) -> dict[str, Figure]:
    return {name: make(sweep) for name, (make, _, _) in MAKERS.items()}


def all_text(figure: Figure) -> str:
    return " | ".join(t.get_text() for t in figure.findobj(Text) if t.get_text())  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", MAKERS)
def test_axes_have_units(drawn: dict[str, Figure], name: str) -> None:
    figure, (_, x, y) = drawn[name], MAKERS[name]
    shared = (figure.get_supxlabel(), figure.get_supylabel())
    panels = figure.axes
    x_labels = [shared[0], *(a.get_xlabel() for a in panels)]
    y_labels = [shared[1], *(a.get_ylabel() for a in panels)]
    assert any(x in label for label in x_labels)
    assert any(y in label for label in y_labels)
    for axes in panels:  # every panel is labelled, itself or through the figure
        assert axes.get_xlabel() or shared[0]
        assert axes.get_ylabel() or shared[1] or axes.get_title(loc="left")


@pytest.mark.parametrize("name", MAKERS)
def test_every_architecture_is_named(drawn: dict[str, Figure], name: str) -> None:
    text = all_text(drawn[name])
    for label in LABELS:
        assert label in text


@pytest.mark.parametrize("name", MAKERS)
def test_every_point_says_what_it_is(drawn: dict[str, Figure], name: str) -> None:
    figure = drawn[name]
    scatters = [
        a for a in figure.findobj(PathCollection) if getattr(a, "hover_texts", None) is not None
    ]
    texts = [t for a in scatters for t in a.hover_texts]  # type: ignore[attr-defined]
    assert sum(len(a.get_offsets()) for a in scatters) == len(texts)  # type: ignore[attr-defined]
    root = ET.fromstring(hover.svg(figure, "x"))
    titles = [t.text for t in root.iter(f"{SVG}title")]
    assert sorted(titles) == sorted(texts)  # type: ignore[type-var]


def test_svg_is_safe_to_inline(drawn: dict[str, Figure]) -> None:
    one, two = (hover.svg(drawn["frontier"], prefix) for prefix in ("a", "b"))
    ids = [set(re.findall(r'\bid="([^"]+)"', s)) for s in (one, two)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for text, own in ((one, ids[0]), (two, ids[1])):
        for target in re.findall(r'(?:href="#|url\(#)([^")]+)', text):
            assert target in own
    classes = set(re.findall(r'class="([^"]+)"', one))
    assert classes == {f"g-{a}" for a in ARCHS}
    assert "<script" not in one
    # Drawing twice gives the same, and leaves the figure as it was.
    assert hover.svg(drawn["frontier"], "a") == one


def test_frontier_lines_are_solid_inside_and_dashed_beyond(drawn: dict[str, Figure]) -> None:
    (axes,) = drawn["frontier"].axes
    solid = [line for line in axes.lines if line.get_linestyle() == "-"]
    dashed = [line for line in axes.lines if line.get_linestyle() != "-"]
    assert len(solid) == len(dashed) == len(ARCHS)
    for line in solid:
        x, y = (np.asarray(v, dtype=float) for v in line.get_data())
        assert np.isfinite(y[x <= 1e13]).all()
        assert np.isnan(y[x > 1e13]).all()
    for line in dashed:
        x, y = (np.asarray(v, dtype=float) for v in line.get_data())
        assert np.isfinite(y[x > 1e13]).all()
    assert "beyond the data" in all_text(drawn["frontier"])


def test_learning_curves_have_a_line_per_segment(drawn: dict[str, Figure], sweep: Sweep) -> None:
    train = sweep.curves[sweep.curves["split"] == "train"]
    for axes, arch in zip(drawn["learning"].axes, ARCHS, strict=True):
        own = train[train["arch"] == arch]
        segments = own.groupby(["run_id", "segment"], observed=True).ngroups
        sizes = own["size"].nunique()
        curves = [line for line in axes.lines if line.get_gid()]
        assert len(curves) == segments
        legend = axes.get_legend()
        assert legend is not None
        assert len(legend.get_texts()) == sizes


def test_varied_joins_means_and_ticks_what_was_varied(drawn: dict[str, Figure]) -> None:
    sizes, shapes = drawn["varied"].axes
    assert [label.get_text() for label in shapes.get_xticklabels()] == ["3", "4"]
    assert len(shapes.collections) > len(sizes.collections)  # bars, where errors are known
    for line in shapes.lines[: len(ARCHS)]:
        assert list(np.asarray(line.get_xdata())) == [3, 4]
    assert shapes.lines[-1].get_linestyle() == ":"


def test_varied_does_not_join_two_sources() -> None:
    frame = pd.DataFrame({"panel": "loss", "arch": "tnl", "x": [1.0, 2, 8, 9], "value": 1.0})
    one = figures.varied(frame, x="N")
    two = figures.varied(frame.assign(source=["ours", "ours", "theirs", "theirs"]), x="N")
    assert [len(line.get_xdata()) for line in one.axes[0].lines] == [4]  # pyright: ignore
    assert [len(line.get_xdata()) for line in two.axes[0].lines] == [2, 2]  # pyright: ignore


def test_published_line_is_named_where_it_leaves() -> None:
    laws = bands(quantity="n")
    both = pd.concat([laws, laws.assign(quantity="d")])
    figure = figures.optimum(both, published=("Kaplan",))
    for axes in figure.axes:
        drawn = [line for line in axes.lines if line.get_linestyle() == ":"]
        y = np.asarray(drawn[0].get_ydata(), dtype=float)
        low, high = axes.get_ylim()
        seen = any(low < value < high for value in y)
        assert ("Kaplan" in [text.get_text() for text in axes.texts]) == seen


def test_published_laws_are_the_papers() -> None:
    from analysis.figures.laws_in_compute import PUBLISHED
    from analysis.units import PFLOP_S_DAY

    rule = PUBLISHED["Chinchilla"]
    compute = 5.76e23  # Chinchilla 70B on 1.4T tokens, under C = 6ND
    n = rule.n_factor * (compute / PFLOP_S_DAY) ** rule.n_power
    d = rule.d_factor * (compute / PFLOP_S_DAY) ** rule.d_power
    assert d / n == pytest.approx(20)
    assert 6 * n * d == pytest.approx(compute)
    assert n == pytest.approx(70e9, rel=0.02)
    assert PUBLISHED["LLaMA (paper)"].n_power == 0.7118
    assert PUBLISHED["Kaplan"].n_power == 0.73


def test_an_architecture_keeps_its_look() -> None:
    looks = [look(a, ["llama", "x"]) for a in ARCHS]
    assert len({look.color for look in looks}) == len({look.marker for look in looks}) == 4
    assert look("tnl") == look("tnl", ["tnl", "zebra"])
    assert look("mamba", ["mamba", "rwkv"]) != look("rwkv", ["mamba", "rwkv"])
    assert ordered(["b", "tnl", "a", "llama", "tnl"]) == ["llama", "tnl", "a", "b"]


def test_saving_is_byte_stable_and_says_its_runs(tmp_path: Path, sweep: Sweep) -> None:
    def save(stem: str) -> list[bytes]:
        paths = style.save(
            make_throughput(sweep), tmp_path / stem, title="speed", caption="n = 24", runs=["r1"]
        )
        assert [p.suffix for p in paths] == [".png", ".pdf"]
        return [p.read_bytes() for p in paths]

    png, pdf = save("one")
    assert [png, pdf] == save("two")
    assert b"n = 24" in png
    assert b"r1" in png
    assert b"n = 24" in pdf


@given(wanted=st.lists(st.floats(-0.2, 1.2), min_size=1, max_size=9), gap=st.floats(0.01, 0.1))
def test_labels_never_overlap_and_stay_in_order(wanted: list[float], gap: float) -> None:
    wanted = sorted(wanted)
    placed = style._spread(np.array(wanted), gap)
    assert (np.diff(placed) >= gap * (1 - 1e-9)).all()
    assert placed[0] >= -1e-9
    assert placed[-1] <= 1 + 1e-9
    if len(wanted) == 1 or ((np.diff(wanted) >= gap).all() and 0 <= wanted[0] <= wanted[-1] <= 1):
        np.testing.assert_allclose(placed, np.clip(wanted, 0, 1), atol=1e-12)


@given(low=st.floats(1e-3, 1e15), decades=st.floats(0.02, 12))
def test_log_ticks_are_few_and_readable(low: float, decades: float) -> None:
    with style.context():
        _, grid = style.panels(1, 1, width=3, height=2)
        axes: Axes = grid[0, 0]
        axes.set_xlim(low, low * 10**decades)
        style.log_axis(axes, "x")
        left, right = axes.get_xlim()
        ticks = [t for t in axes.xaxis.get_major_locator()() if left <= t <= right]
        formatter = axes.xaxis.get_major_formatter()
        labels = [formatter(t, i) for i, t in enumerate(ticks)]
    assert 1 <= len(ticks) <= 13
    assert len(set(labels)) == len(labels)


def test_frontier_mask_keeps_only_unbeaten_points() -> None:
    frame = pd.DataFrame({"flops": [4.0, 1.0, 2.0, 3.0], "loss": [2.0, 5.0, 3.0, 3.5]})
    assert unbeaten(frame).tolist() == [True, True, True, False]


def test_smoothing_keeps_a_power_law() -> None:
    rng = np.random.default_rng(0)
    x = np.geomspace(1e9, 1e12, 3000)
    y = 30 * x**-0.1
    at, got = smooth(x, y * np.exp(0.01 * rng.standard_normal(3000)))
    assert 55 <= len(at) <= 65  # 3 decades in windows of 0.05
    # The median of about 50 values of 1 % noise has a standard error of 0.18 %; five of them.
    np.testing.assert_allclose(got, 30 * at**-0.1, rtol=0.01)


def test_an_empty_table_is_an_error(sweep: Sweep) -> None:
    with pytest.raises(AnalysisError, match="nothing to draw"):
        figures.loss_compute(sweep.points.iloc[:0], bands())


def test_open_ends_of_multipliers_do_not_stretch_the_axis() -> None:
    frame = bands()
    frame[["y", "lo", "hi"]] /= frame["y"].to_numpy()[:, None]
    limits = [
        figures.multipliers(frame.assign(lo=lo, hi=hi), baseline="llama").axes[0].get_ylim()
        for lo, hi in ((0.0, np.inf), (np.nan, np.nan), (0.9, 1.1))
    ]
    assert np.isfinite(limits).all()
    assert (np.array(limits)[:, 0] > 0.5).all()
    assert (np.array(limits)[:, 1] < 2.0).all()


def test_resamples_of_points_without_noise_are_one_value() -> None:
    """Draws that differ by rounding, or lie on a line, have no region; the estimate is shown."""
    rng = np.random.default_rng(0)
    rounding = 1 + 1e-14 * rng.standard_normal(200)
    drawn = rng.normal(0.3, 0.02, 200)
    for alpha, beta in ((0.34 * rounding, 0.28 * rounding), (drawn, drawn)):
        draws = pd.DataFrame({"group": "all", "alpha": alpha, "beta": beta})
        figure = figures.bootstrap_cloud(
            draws, pd.DataFrame({"group": ["all"], "alpha": [0.34], "beta": [0.28]})
        )
        (axes,) = figure.axes
        low, high = axes.get_xlim()
        assert low < 0.34 < high
        assert high - low > 3e-4

"""Training curves: loss against compute for every run, and the curves collapsed on one another."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from analysis import style
from analysis.figures.common import FLOPS, LOSS, band, groups_of, note, shades
from analysis.figures.hover import points, tag
from analysis.style import look


def learning_curves(
    curves: pd.DataFrame, milestones: pd.DataFrame, envelopes: pd.DataFrame | None = None
) -> Figure:
    """A panel an architecture: trunk curves shaded by size, decayed checkpoints, the envelope.

    Args:
        curves: arch, size, run_id, n_params, segment, split, flops, loss (as `Sweep.curves`).
        milestones: arch, size, n_params, tokens, flops, loss (as `Sweep.points`).
        envelopes: bands by `group`: the fitted envelope of each architecture (FLOPs, loss).
    """
    groups = groups_of(milestones)
    columns = min(2, len(groups))
    rows = math.ceil(len(groups) / columns)
    with style.context():
        figure, grid = style.panels(
            rows, columns, width=style.DOUBLE if columns > 1 else style.SINGLE + 0.4,
            height=0.35 + 2.45 * rows, sharex=True, sharey=True,
        )  # fmt: skip
        for axes, group in zip(grid.flat, groups, strict=False):
            kind = look(group, groups)
            mine = curves[(curves["arch"] == group) & (curves["split"] == "train")]
            own = milestones[milestones["arch"] == group]
            sizes = own.groupby("size", observed=True)["n_params"].first().sort_values()
            tones = dict(zip(sizes.index, shades(kind.color, len(sizes)), strict=True))
            for size, count in sizes.items():
                axes.plot([], [], color=tones[size], label=style.si_text(float(count)))
                for _, run in mine[mine["size"] == size].groupby("run_id", observed=True):
                    for segment, part in run.groupby("segment"):
                        x, y = smooth(part["flops"].to_numpy(float), part["loss"].to_numpy(float))
                        width = 0.7 if str(segment).startswith("decay") else 1.0
                        axes.plot(x, y, color=tones[size], linewidth=width, gid=tag(group))
            points(
                axes, own["flops"], own["loss"], group=group, texts=hover_texts(own),
                s=16, color=[tones[s] for s in own["size"]], edgecolors="white",
            )  # fmt: skip
            if envelopes is not None and (envelopes["group"] == group).any():
                law = envelopes[envelopes["group"] == group]
                band(axes, law, group, among=groups, color="black", linewidth=1.0)
            axes.legend(title="N", fontsize=7, title_fontsize=7, loc="upper right")
            axes.set_title(kind.label, color=kind.color)
        for axes in list(grid.flat)[len(groups) :]:
            axes.remove()
        first = grid.flat[0]
        low = float(milestones["loss"].min())
        top = min(1.5 * float(milestones["loss"].max()), float(curves["loss"].max()) * 1.03)
        first.set_ylim(low * 0.93, top)
        left = float(milestones["flops"].min())
        first.set_xlim(left / 4, float(milestones["flops"].max()) * 2)
        for axes in grid.flat:
            if axes.figure is not None:
                style.log_axis(axes, "x")
                style.log_axis(axes, "y")
        law_note = "\nblack: law of the envelope" if envelopes is not None else ""
        note(first, f"markers: end of decay{law_note}")
        figure.supxlabel(FLOPS, fontsize=8.5)
        figure.supylabel(LOSS, fontsize=8.5)
    return figure


def scaling_collapse(curves: pd.DataFrame, floors: dict[str, float]) -> Figure:
    """Reducible loss over its final value against the share of compute spent, all sizes together.

    Runs that follow one recipe fall on one curve; one that does not is mistuned or broken
    (arXiv 2507.02119). `floors` is the irreducible loss E of each architecture.
    """
    groups = [g for g in groups_of(curves) if g in floors]
    columns = min(2, len(groups))
    rows = math.ceil(len(groups) / columns)
    with style.context():
        figure, grid = style.panels(
            rows, columns, width=style.DOUBLE if columns > 1 else style.SINGLE,
            height=0.35 + 2.3 * rows, sharex=True, sharey=True,
        )  # fmt: skip
        for axes, group in zip(grid.flat, groups, strict=False):
            kind = look(group, groups)
            trunks = curves[
                (curves["arch"] == group)
                & (curves["split"] == "train")
                & ~curves["segment"].astype(str).str.startswith("decay")
            ]
            sizes = trunks.groupby("size", observed=True)["n_params"].first().sort_values()
            tones = dict(zip(sizes.index, shades(kind.color, len(sizes)), strict=True))
            for size, count in sizes.items():
                for _, run in trunks[trunks["size"] == size].groupby("run_id", observed=True):
                    x, y = smooth(run["flops"].to_numpy(float), run["loss"].to_numpy(float))
                    share = x / x[-1]
                    reducible = (y - floors[group]) / (y[-1] - floors[group])
                    axes.plot(
                        share, reducible, color=tones[size], linewidth=1.0, gid=tag(group),
                        label=style.si_text(float(count)),
                    )  # fmt: skip
            axes.set_title(kind.label, color=kind.color)
            axes.legend(title="N", fontsize=7, title_fontsize=7, loc="upper right")
        for axes in list(grid.flat)[len(groups) :]:
            axes.remove()
        grid.flat[0].set_xscale("log")
        grid.flat[0].set_xlim(0.02, 1.1)
        grid.flat[0].set_ylim(0.9, 3.0)
        for axes in list(grid.flat)[: len(groups)]:
            axes.xaxis.set_major_locator(FixedLocator([0.02, 0.05, 0.1, 0.2, 0.5, 1.0]))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axes.xaxis.set_minor_locator(FixedLocator([]))
        figure.supxlabel("share of the run's compute, C / C at the end", fontsize=8.5)
        figure.supylabel("(L - E) / (L at the end - E)", fontsize=8.5)
    return figure


def smooth(x: np.ndarray, y: np.ndarray, *, width: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Median of the loss over windows of `width` decades: batch noise out, shape kept."""
    good = np.isfinite(x) & np.isfinite(y) & (x > 0)
    order = np.argsort(x[good], kind="stable")
    x, y = x[good][order], y[good][order]
    if len(x) < 8:
        return x, y
    cell = np.floor(np.log10(x) / width).astype(int)
    starts = np.flatnonzero(np.r_[True, np.diff(cell) != 0])
    parts = zip(np.split(x, starts[1:]), np.split(y, starts[1:]), strict=True)
    medians = [(float(np.exp(np.log(a).mean())), float(np.median(b))) for a, b in parts]
    return np.array([m[0] for m in medians]), np.array([m[1] for m in medians])


def hover_texts(frame: pd.DataFrame) -> list[str]:
    """One line a point: who, how large, how long, how good."""
    names = [look(str(arch)).label for arch in frame["arch"]]
    if "size" in frame:
        names = [f"{name} {size}" for name, size in zip(names, frame["size"], strict=True)]
    numbers = zip(frame["n_params"], frame["tokens"], frame["flops"], frame["loss"], strict=True)
    return [
        f"{name}: N {style.si_text(n)}, D {style.si_text(d)}, C {c:.3g} FLOPs, loss {loss:.4f}"
        for name, (n, d, c, loss) in zip(names, numbers, strict=True)
    ]

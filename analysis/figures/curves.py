"""Training curves: loss against compute for every run, and the curves collapsed on one another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from analysis.figures import style
from analysis.figures.common import (
    FLOPS,
    extent,
    groups_of,
    label_axes,
    note,
    shades,
    small_multiples,
)
from analysis.figures.hover import points, tag
from analysis.io.frames import numbers, rows, where, words
from analysis.io.looks import look
from linscale.si import si


def learning_curves(curves: pd.DataFrame, milestones: pd.DataFrame) -> Figure:
    """Training loss of every run against compute, a panel an architecture, shaded by size.

    Decays start at the trunk they leave; markers are the training loss that the record gives at
    the end of each. Validation loss, which laws are fitted to, is not drawn on the same axis.

    Args:
        curves: arch, size, run_id, n_params, segment, split, flops, loss (as `Sweep.curves`).
        milestones: arch, size, run_id, n_params, tokens, flops, train_loss (as `Sweep.points`).
    """
    groups = groups_of(milestones)
    with style.context():
        figure, panels = small_multiples(groups, height=2.45)
        seen: list[np.ndarray] = []
        for axes, group in zip(panels, groups, strict=True):
            own = where(milestones, arch=group)
            sizes = _sizes(own)
            tones = dict(zip(sizes, shades(look(group, groups).color, len(sizes)), strict=True))
            ends = {
                (run, f"decay-{tokens:.0f}"): (float(flops), float(loss))
                for run, tokens, flops, loss in zip(
                    words(own, "run_id"),
                    own["tokens"],
                    own["flops"],
                    own["train_loss"],
                    strict=True,
                )
            }
            for size, count in sizes.items():
                axes.plot([], [], color=tones[size], label=si(count))
                for segment, x, y in _segments(where(curves, arch=group, size=size), ends):
                    width = 0.7 if segment.startswith("decay") else 1.0
                    axes.plot(x, y, color=tones[size], linewidth=width, gid=tag(group))
                    seen.append(y)
            own = rows(own, np.isfinite(numbers(own, "train_loss")))
            points(
                axes, own["flops"], own["train_loss"], group=group, among=groups, s=16,
                texts=hover_texts(own.drop(columns="loss").rename(columns={"train_loss": "loss"})),
                color=[tones[size] for size in words(own, "size")], edgecolors="white",
            )  # fmt: skip
            axes.legend(title="N", fontsize=style.pt(7), title_fontsize=style.pt(7),
                        loc="upper right", handlelength=1.2, labelspacing=0.3)  # fmt: skip
        reached = numbers(milestones, "train_loss")
        last = [*reached, *(y[-1] for y in seen)]
        low, high = np.nanmin(last), np.nanmax(last)
        left, right = extent(milestones["flops"])
        panels[0].set_ylim(low * 0.93, min(1.5 * high, extent(*seen)[1] * 1.03))
        panels[0].set_xlim(left / 4, right * 2)
        for axes in panels:
            style.log_axis(axes, "x")
            style.log_axis(axes, "y")
        note(panels[0], "markers: end of decay")
        label_axes(figure, FLOPS, "training loss (nats/token)")
        return style.finish(figure)


def scaling_collapse(curves: pd.DataFrame, floors: dict[str, float]) -> Figure:
    """Reducible loss over its final value against the share of compute spent, all sizes together.

    Runs that follow one recipe fall on one curve; one that does not is mistuned or broken
    (arXiv 2507.02119). Trunks only, since a decay bends the curve. `floors` is the irreducible
    loss E of each architecture.
    """
    groups = [g for g in groups_of(curves) if g in floors]
    with style.context():
        figure, panels = small_multiples(groups, height=2.3)
        for axes, group in zip(panels, groups, strict=True):
            trunks = where(curves, arch=group, segment="trunk")
            sizes = _sizes(trunks)
            tones = shades(look(group, groups).color, len(sizes))
            for (size, count), tone in zip(sizes.items(), tones, strict=True):
                for _, x, y in _segments(where(trunks, size=size)):
                    reducible = (y - floors[group]) / (y[-1] - floors[group])
                    axes.plot(
                        x / x[-1], reducible, color=tone, linewidth=1.0, gid=tag(group),
                        label=si(count),
                    )  # fmt: skip
            handles, labels = axes.get_legend_handles_labels()
            unique = dict(zip(labels, handles, strict=True))  # seeds of a size share one entry
            axes.legend(
                unique.values(), unique.keys(), title="N", fontsize=style.pt(7),
                title_fontsize=style.pt(7), loc="upper right", handlelength=1.2, labelspacing=0.3,
            )  # fmt: skip
        panels[0].set_xscale("log")
        panels[0].set_xlim(0.02, 1.1)
        panels[0].set_ylim(0.9, 3.0)
        for axes in panels:
            axes.xaxis.set_major_locator(FixedLocator([0.02, 0.05, 0.1, 0.2, 0.5, 1.0]))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axes.xaxis.set_minor_locator(FixedLocator([]))
        label_axes(
            figure, "share of the run's compute, C / C at the end", "(L − E) / (L at the end − E)"
        )
        return style.finish(figure)


def _sizes(frame: pd.DataFrame) -> dict[str, float]:
    """Size labels of a frame and their N, smallest first."""
    pairs = zip(words(frame, "size"), numbers(frame, "n_params"), strict=True)
    return dict(sorted(((size, float(n)) for size, n in set(pairs)), key=lambda pair: pair[1]))


def _segments(
    frame: pd.DataFrame, ends: Mapping[tuple[str, str], tuple[float, float]] | None = None
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Smoothed training curves (segment, FLOPs, loss) of every segment of every run. A decay begins
    on the trunk that it leaves, has at most three medians, since it is short, and ends where `ends`
    (by run and segment) says."""
    train = where(frame, split="train")
    for run_id, run in train.groupby("run_id", observed=True):
        parts = {
            str(segment): (smooth if segment == "trunk" else _thirds)(
                numbers(part, "flops"), numbers(part, "loss")
            )
            for segment, part in run.groupby("segment", observed=True)
        }
        trunk = parts.get("trunk", (np.empty(0), np.empty(0)))
        for segment, (x, y) in parts.items():
            if not len(x):
                continue
            if segment != "trunk" and len(trunk[0]) > 1 and trunk[0][0] < x[0]:
                start = min(x[0], trunk[0][-1])
                leaves = np.interp(np.log(start), np.log(trunk[0]), trunk[1])
                x, y = np.r_[start, x], np.r_[leaves, y]
            end = (ends or {}).get((str(run_id), segment))
            if end is not None and np.isfinite(end).all() and end[0] >= x[-1]:
                x, y = np.r_[x, end[0]], np.r_[y, end[1]]
            yield segment, x, y


def _thirds(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Medians of up to three stretches of at least five losses each; of fewer losses, one."""
    good = np.isfinite(x) & np.isfinite(y) & (x > 0)
    order = np.argsort(x[good], kind="stable")
    x, y = x[good][order], y[good][order]
    if not len(x):
        return x, y
    parts = np.array_split(np.arange(len(x)), min(3, max(1, len(x) // 5)))
    return (
        np.array([float(np.exp(np.log(x[part]).mean())) for part in parts]),
        np.array([float(np.median(y[part])) for part in parts]),
    )


def smooth(x: np.ndarray, y: np.ndarray, *, width: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Median of the loss over windows of `width` decades: batch noise out, shape kept.

    A last window of less than half the points of the one before joins it: the median of a few
    batches would hook the end of the curve up or down.
    """
    good = np.isfinite(x) & np.isfinite(y) & (x > 0)
    order = np.argsort(x[good], kind="stable")
    x, y = x[good][order], y[good][order]
    if len(x) < 8:
        return x, y
    cell = np.floor(np.log10(x) / width).astype(int)
    starts = np.flatnonzero(np.r_[True, np.diff(cell) != 0])
    if len(starts) > 1 and 2 * (len(x) - starts[-1]) < starts[-1] - starts[-2]:
        starts = starts[:-1]
    parts = zip(np.split(x, starts[1:]), np.split(y, starts[1:]), strict=True)
    medians = [(float(np.exp(np.log(a).mean())), float(np.median(b))) for a, b in parts]
    return np.array([m[0] for m in medians]), np.array([m[1] for m in medians])


_TEXTS = {
    "n_params": lambda v: f"N {si(v)}",
    "tokens": lambda v: f"D {si(v)}",
    "flops": lambda v: f"C {v:.3g} FLOPs",
    "loss": lambda v: f"loss {v:.4f}",
}


def hover_texts(frame: pd.DataFrame) -> list[str]:
    """One line a point: who, how large, how long, how good, as far as the frame knows."""
    names = [look(arch).label for arch in words(frame, "arch")]
    if "size" in frame:
        sizes = words(frame, "size")
        names = [f"{name} {size}" for name, size in zip(names, sizes, strict=True)]
    given = {column: text for column, text in _TEXTS.items() if column in frame}
    values = zip(*(numbers(frame, column) for column in given), strict=True)
    return [
        f"{name}: "
        + ", ".join(text(v) for text, v in zip(given.values(), row, strict=True) if np.isfinite(v))
        for name, row in zip(names, values, strict=True)
    ]

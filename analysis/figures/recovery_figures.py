"""Figures of linearization: recovery over tokens, its law, and the frontier of compute."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from analysis.figures import style
from analysis.figures.common import FLOPS, LOSS, mark_beyond, note, shades
from analysis.figures.style import End
from analysis.io.frames import by, numbers, plain, rows, where, words
from analysis.judge.linearization_law import Law
from analysis.judge.recovery import ALIKE, CONTINUED, LINEARIZED, SCRATCH, WINDOW, summarise
from linscale.si import si

UPTRAINING = "tokens of all stages D"
_COLORS = {"supra": "#D9870B", "lolcats": "#7570B3", "llama": "#0072B2"}
_TONES = {"student": _COLORS["lolcats"], "teacher": _COLORS["llama"]}
_NAMES = {"supra": "SUPRA", "lolcats": "LoLCATs", "llama": "teacher"}
_DASHES = {LINEARIZED: "-", SCRATCH: (0, (2, 1.5)), CONTINUED: (0, (5, 1.5))}


def color(base: str) -> str:
    """Of a method; grey where it is none of the two."""
    return _COLORS.get(base.partition("-")[0], style.GREY)


def label(base: str, kind: str) -> str:
    """Of a group of runs."""
    method, _, options = base.partition("-")
    name = _NAMES.get(method, method) + (f", {options.replace('-', ', ')}" if options else "")
    if kind.startswith(WINDOW):
        return f"{kind} alone, trained alike"
    others = {SCRATCH: f"{name}, from scratch", CONTINUED: "teacher, trained on",
              ALIKE: "teacher, trained alike"}  # fmt: skip
    return others.get(kind, name)


def recovered(points: pd.DataFrame) -> Figure:
    """Loss, and recovered share, over tokens; mean over seeds with intervals.

    Teacher and windows that were trained alike are left to `compared`.

    Args:
        points: milestones of one size, as in `analysis.judge.recovery.Recovery`.
    """
    points = rows(points, np.isin(words(points, "kind"), list(_DASHES)))
    teacher = numbers(where(points, kind=LINEARIZED), "teacher_loss").mean()
    with style.context():
        figure, grid = style.panels(1, 2, width=style.DOUBLE + 0.9, height=3.1)
        left, right = grid[0]
        for axes in (left, right):
            axes.set(xscale="log", xlabel=UPTRAINING)
        left.set(ylabel=LOSS, title="Validation loss")
        right.set(ylabel="recovered share r", title="Recovered, by each method's own zero")
        right.axhline(0, color=style.GREY, linewidth=0.8)
        _lines(left, points, "loss")
        _lines(right, points, "recovered")
        left.axhline(teacher, color=_COLORS["llama"], linewidth=0.8)
        left.annotate("teacher", (0.01, teacher), xycoords=("axes fraction", "data"), va="top",
                      fontsize=style.pt(7.5), color=_COLORS["llama"], xytext=(0, -2.5),
                      textcoords="offset points")  # fmt: skip
        right.axhline(1, color=_COLORS["llama"], linewidth=0.8)
        # Early milestones from scratch are worse than the surgery: triangles on the edge.
        low, high = right.get_ylim()
        right.set_ylim(max(low, -0.25), min(high, 1.25))
        mark_beyond(right)
        for axes in (left, right):
            _budgets(axes, points)
        handles, names = left.get_legend_handles_labels()
        left.legend(handles, names, loc="upper right")
        return style.finish(figure)


def _lines(axes: Axes, points: pd.DataFrame, column: str) -> None:
    """A line with its interval for every group."""
    for group in dict.fromkeys(words(points, "group")):
        own = where(points, group=group)
        base, kind = words(own, "base")[0], words(own, "kind")[0]
        mean = summarise(own, column)
        if not len(mean):
            continue
        x, y = numbers(mean, "tokens"), numbers(mean, "mean")
        low, high = numbers(mean, "lo"), numbers(mean, "hi")
        axes.fill_between(x, low, high, color=color(base), alpha=0.15, linewidth=0)
        faint = 1.0 if kind != SCRATCH else 0.75
        axes.plot(x, y, color=color(base), linestyle=_DASHES[kind], marker="o", markersize=3,
                  label=label(base, kind), alpha=faint,
                  linewidth=1.5 if kind != SCRATCH else 1.1)  # fmt: skip


def compared(table: pd.DataFrame, title: str) -> Figure:
    """Loss of a student and of all that it is compared with, as dots with intervals.

    What loses more than five times the gap between teacher and zero runs off to the right.

    Args:
        table: of `analysis.judge.comparison.compare`.
        title: of the panel.
    """
    shown = plain(table)
    losses = {row["what"]: row["loss"] for row in shown}
    teacher, near = losses["teacher"], [x for w, x in losses.items() if "untrained" in w]
    least = min(losses.values())
    most = teacher + 1.6 * (max([*near, losses["student"]]) - teacher)
    with style.context():
        height = 0.9 + 0.23 * len(shown)
        figure, grid = style.panels(1, 1, width=style.DOUBLE - 0.4, height=height)
        axes = grid[0, 0]
        for at, row in enumerate(reversed(shown)):
            what, loss = str(row["what"]), row["loss"]
            tone = next((t for name, t in _TONES.items() if what.startswith(name)), "#555555")
            if loss > most:
                axes.annotate(f"{loss:.2f} →", (most, at), ha="right", va="center", color=tone,
                              fontsize=style.pt(7.5))  # fmt: skip
                continue
            if row["low"] is not None:
                axes.plot([row["low"], row["high"]], [at, at], color=tone, linewidth=1.2)
            filled = "untrained" not in what
            axes.scatter([loss], [at], s=26, zorder=3, edgecolors=tone,
                         facecolors=tone if filled else "white")  # fmt: skip
        axes.set_yticks(range(len(shown)), [str(row["what"]) for row in reversed(shown)])
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.axvline(teacher, color=_COLORS["llama"], linewidth=0.8)
        axes.set(xlabel=LOSS, title=title, xlim=(least - 0.06 * (most - least), most))
        return style.finish(figure)


def laws(found: Sequence[Law]) -> Figure:
    """Unrecovered share over tokens, by size: milestones, law and interval."""
    with style.context():
        figure, grid = style.panels(
            1, len(found), width=style.DOUBLE if len(found) > 1 else style.SINGLE, height=3.1,
            sharey=True,
        )  # fmt: skip
        for axes, law in zip(grid[0], found, strict=True):
            base = law.group.partition(" (")[0]
            sizes = sorted(set(numbers(law.points, "n_params")))
            tones = shades(color(base), len(sizes))
            ends: list[End] = []
            for n_params, tone in zip(sizes, tones, strict=True):
                own = by(where(law.points, n_params=n_params), "tokens")
                tokens = numbers(own, "tokens")
                axes.scatter(tokens, numbers(own, "unrecovered"), s=18, color=[tone],
                             edgecolors="white", linewidths=0.5, zorder=3)  # fmt: skip
                x = np.geomspace(tokens.min(), tokens.max(), 60)
                y, low, high = law.predict(x, n_params)
                axes.plot(x, y, color=tone)
                axes.fill_between(x, low, high, color=tone, alpha=0.15, linewidth=0)
                ends.append(End(x[-1], y[-1], si(n_params), to_hex(tone)))
            axes.set(xscale="log", yscale="log", xlabel=UPTRAINING, title=_NAMES.get(base, base))
            _budgets(axes, law.points)
            _shares(axes)
            b, c = law.params["b"], law.params["c"]
            note(axes, f"1 - r ~ D^{-b:.2f} N^{c:.2f}\ncolours: parameters N")
            style.lay_out(figure)
            style.label_ends(axes, ends, at=1.01, size=7)
        grid[0][0].set_ylabel("unrecovered share 1 - r")
        return style.finish(figure)


def _budgets(axes: Axes, points: pd.DataFrame) -> None:
    """The token budgets as ticks of a logarithmic axis."""
    values = sorted(set(numbers(points, "tokens")))
    axes.set_xticks(values, [si(value) for value in values])
    axes.xaxis.set_minor_locator(NullLocator())


def _shares(axes: Axes) -> None:
    """Percentages as ticks of a logarithmic axis."""
    low, high = axes.get_ylim()
    ticks = [d * 10.0**k for k in range(-4, 4) for d in (1, 2, 5)]
    inside = [tick for tick in ticks if low <= tick <= high]
    axes.set_yticks(inside, [f"{round(100 * tick, 4):,g} %" for tick in inside])
    axes.yaxis.set_minor_locator(NullLocator())


def on_frontier(points: pd.DataFrame, scratch: pd.DataFrame, edge: pd.DataFrame) -> Figure:
    """Linearized models among models from scratch: own compute, and with the teacher's.

    Args:
        points: linearized milestones of one size.
        scratch: milestones from scratch (flops, loss).
        edge: their frontier.
    """
    with style.context():
        figure, grid = style.panels(1, 1, width=style.DOUBLE - 0.8, height=3.6)
        axes = grid[0, 0]
        axes.scatter(numbers(scratch, "flops"), numbers(scratch, "loss"), s=9, color=style.GREY,
                     alpha=0.45, linewidths=0)  # fmt: skip
        axes.plot(numbers(edge, "flops"), numbers(edge, "loss"), color="#444444", linewidth=1.2)
        for group in dict.fromkeys(words(points, "group")):
            own = summarise_pair(where(points, group=group))
            tone = color(words(where(points, group=group), "base")[0])
            for near, far, loss in own:
                axes.plot([near, far], [loss, loss], color=tone, linewidth=0.6, alpha=0.5)
            near, far, loss = (np.array(values) for values in zip(*own, strict=True))
            axes.scatter(near, loss, s=30, color=tone, edgecolors="white", zorder=3)
            axes.scatter(far, loss, s=30, facecolors="white", edgecolors=tone, zorder=3)
        handles = [
            *(axes.scatter([], [], s=30, color=color(b), label=_NAMES.get(b, b))
              for b in dict.fromkeys(words(points, "base"))),
            axes.scatter([], [], s=30, facecolors="white", edgecolors="#444444",
                         label="the same, with the teacher's compute"),
            axes.scatter([], [], s=9, color=style.GREY, label="from scratch"),
            axes.plot([], [], color="#444444", label="their frontier")[0],
        ]  # fmt: skip
        axes.legend(handles=handles, loc="upper right")
        axes.set(xscale="log", yscale="log", xlabel=FLOPS, ylabel=LOSS)
        style.log_axis(axes, "x")
        style.log_axis(axes, "y")
        return style.finish(figure)


def summarise_pair(points: pd.DataFrame) -> list[tuple[float, float, float]]:
    """Own compute, compute with the teacher's, and mean loss over seeds, by budget."""
    found: list[tuple[float, float, float]] = []
    for tokens in sorted(set(numbers(points, "tokens"))):
        own = where(points, tokens=tokens)
        flops = float(numbers(own, "flops").mean())
        teacher = float(numbers(own, "teacher_flops").mean())
        found.append((flops, flops + teacher, float(numbers(own, "loss").mean())))
    return found

"""Laws in compute: L(C) of every architecture, and the optimal N and D."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import style
from analysis.figures.common import FLOPS, LOSS, PARAMS, TOKENS, band, extent, groups_of, note
from analysis.figures.curves import hover_texts
from analysis.figures.hover import points
from analysis.figures.style import End
from analysis.io.frames import rows, where
from analysis.io.looks import look
from analysis.units import PFLOP_S_DAY
from linscale.si import si

Axis = Literal["flops", "n_params", "tokens"]
_LABELS: dict[Axis, str] = {"flops": FLOPS, "n_params": PARAMS, "tokens": TOKENS}


@dataclass(frozen=True)
class Published:
    """N* = n_factor C^n_power and D* = d_factor C^d_power, C in PFLOP/s-days."""

    n_factor: float
    n_power: float
    d_factor: float
    d_power: float


_RULE = (PFLOP_S_DAY / 120) ** 0.5  # C = 6 N D with D = 20 N
PUBLISHED: Mapping[str, Published] = {
    "Kaplan": Published(1.3e9, 0.73, 2.0e10, 0.27),
    "Chinchilla": Published(_RULE, 0.5, 20 * _RULE, 0.5),
    "LLaMA (paper)": Published(1.82e8, 0.7118, 2.56e10, 0.5102),
    "TNL (paper)": Published(2.74e8, 0.6470, 4.43e10, 0.4684),
    "HGRN2 (paper)": Published(2.66e8, 0.6427, 4.80e10, 0.4500),
    "cosFormer2 (paper)": Published(2.65e8, 0.6516, 4.23e10, 0.4529),
}
"""Kaplan et al. 2001.08361 Table 6; Hoffmann et al. 2203.15556 as 20 tokens a parameter with
C = 6ND; "paper": arXiv 2406.16690 Table 3."""


def loss_compute(
    milestones: pd.DataFrame, laws: pd.DataFrame, *, faint: bool = True, axis: Axis = "flops"
) -> Figure:
    """L(C) of every architecture with its interval (or L(N), L(D): `axis`).

    Args:
        milestones: arch, loss, the column `axis`, and for hover texts size, n_params, tokens,
            flops; optionally `used` (True for the points that the law was fitted to; others are
            faint).
        laws: bands by `group` (`axis`, loss).
        faint: draw the points that were not used.
        axis: what the loss is drawn against.
    """
    groups = groups_of(milestones)
    with style.context():
        figure, grid = style.panels(1, 1, width=style.SINGLE + 0.6, height=3.5)
        axes = grid[0, 0]
        ends: list[End] = []
        for group in groups:
            own = where(milestones, arch=group)
            used = own["used"].to_numpy(bool) if "used" in own else np.ones(len(own), dtype=bool)
            kept, rest = rows(own, used), rows(own, ~used)
            if faint and len(rest):
                points(
                    axes, rest[axis], rest["loss"], group=group, among=groups,
                    texts=hover_texts(rest), s=11, alpha=0.3, linewidths=0, zorder=2,
                )  # fmt: skip
            points(
                axes, kept[axis], kept["loss"], group=group, among=groups, texts=hover_texts(kept),
                edgecolors="white", s=24,
            )  # fmt: skip
            law = where(laws, group=group)
            if len(law):
                ends.append(band(axes, law, group, among=groups))
        axes.set_xlabel(_LABELS[axis])
        axes.set_ylabel(LOSS)
        _fit_limits(axes, milestones[axis], milestones["loss"], laws)
        style.log_axis(axes, "x", si=axis != "flops")
        style.log_axis(axes, "y")
        if "inside" in laws and not np.asarray(laws["inside"], dtype=bool).all():
            note(
                axes,
                "dashed: optimal N, D or C beyond the data"
                if axis == "flops"
                else "dashed: beyond the data",
            )
        style.lay_out(figure)
        style.label_ends(axes, ends, at=1.02)
        return style.finish(figure)


def _fit_limits(axes: Axes, x: Iterable[float], loss: Iterable[float], laws: pd.DataFrame) -> None:
    """Limits from points and curves; a band may run off the panel without squeezing the rest."""
    left, right = extent(x, laws["x"])
    low, high = extent(loss, laws["y"])
    axes.set(xscale="log", yscale="log")
    axes.set_xlim(left / 1.25, right * 1.25)
    axes.set_ylim(low * 0.97, high * 1.03)


def optimum(
    laws: pd.DataFrame,
    *,
    found: pd.DataFrame | None = None,
    published: Sequence[str] = ("Kaplan", "Chinchilla"),
) -> Figure:
    """Compute-optimal N*(C) and D*(C) with intervals, beside published lines.

    Args:
        laws: bands by `group` with `quantity` "n" or "d".
        found: measured optima to show as points: arch, flops, n_params, tokens (an IsoFLOP minimum
            or a point of an envelope).
        published: names out of `PUBLISHED`.
    """
    groups = groups_of(laws, "group")
    with style.context():
        figure, grid = style.panels(1, 2, width=style.DOUBLE + 1.2, height=3.1)
        for axes, quantity, label, title, column in zip(
            grid.flat, ("n", "d"), (PARAMS, TOKENS), ("optimal size", "optimal data"),
            ("n_params", "tokens"), strict=True,
        ):  # fmt: skip
            mine = where(laws, quantity=quantity)
            ends = [band(axes, where(mine, group=g), g, among=groups) for g in groups]
            if found is not None:
                for group in groups:
                    own = where(found, arch=group)
                    texts = [
                        f"{look(group, groups).label}: {si(v)} at {c:.3g} FLOPs"
                        for v, c in zip(own[column], own["flops"], strict=True)
                    ]
                    points(
                        axes,
                        own["flops"],
                        own[column],
                        group=group,
                        among=groups,
                        texts=texts,
                        s=14,
                    )
            axes.set_xscale("log")
            axes.set_yscale("log")
            x = np.array(extent(mine["x"]))
            low, high = extent(mine["y"])
            floor, ceiling = low / 4, high * 4
            for name in published:
                law = PUBLISHED[name]
                factor, power = (
                    (law.n_factor, law.n_power) if quantity == "n" else (law.d_factor, law.d_power)
                )
                line = factor * (x / PFLOP_S_DAY) ** power
                axes.plot(x, line, color=style.GREY, linestyle=":", linewidth=1.1, zorder=1)
                if floor < line[1] < ceiling:
                    ends.append(End(x[1], line[1], name, "#6b6b6b"))
                elif floor < line[0] < ceiling:  # it leaves through the top or the bottom
                    edge = ceiling if line[1] > ceiling else floor
                    leaves = PFLOP_S_DAY * (edge / factor) ** (1 / power)
                    late = leaves**2 > x[0] * x[1]  # right of it there are other labels
                    axes.annotate(
                        name, (leaves, edge), (-4 if late else 4, -8 if edge == ceiling else 3),
                        ha="right" if late else "left",
                        textcoords="offset points", fontsize=style.pt(7.5), color="#6b6b6b",
                    )  # fmt: skip
            axes.set_xlim(x[0], x[1])
            axes.set_ylim(floor, ceiling)
            axes.set_xlabel(FLOPS)
            axes.set_ylabel(label)
            axes.set_title(title)
            style.log_axis(axes, "x")
            style.log_axis(axes, "y", si=True)
            style.lay_out(figure)
            style.label_ends(axes, ends, at=1.02, size=7.5)
        return style.finish(figure)

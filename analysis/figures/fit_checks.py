"""What a fit leaves: residuals, the cloud of its resamples, and its error on held-out rungs."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from scipy import stats
from scipy.spatial import KDTree

from analysis.figures import style
from analysis.figures.common import FLOPS, groups_of
from analysis.figures.hover import points, tag
from analysis.io.frames import by, numbers, where, words
from analysis.io.looks import look
from analysis.units import Array

_NARROW = 0.6
"""Of Scott's width of a kernel: what it gives for one clump is too wide for several."""
_NEAR = 0.05
"""Share of the panel beyond which a place has no draw near it."""
_ENOUGH = 600
"""Draws that are shown, and that the density is made of."""
_LEAST = 1e-3
"""Share of the exponents that the panel shows at least on either side."""


def residuals(frame: pd.DataFrame) -> Figure:
    """Relative error of each point against compute, and its quantiles against a normal law.

    `frame` has arch, flops, loss, predicted, and optionally size.
    """
    groups = groups_of(frame)
    with style.context():
        figure, grid = style.panels(1, 2, width=style.DOUBLE, height=3.0, width_ratios=[3, 2])
        left, right = grid[0]
        for group in groups:
            own = where(frame, arch=group)
            relative = _relative(own)
            texts = [
                f"{look(group, groups).label} {size}: measured {m:.4f}, law {p:.4f} ({r:+.2%})"
                for size, m, p, r in zip(
                    words(own, "size") if "size" in own else [""] * len(own), own["loss"],
                    own["predicted"], relative, strict=True,
                )
            ]  # fmt: skip
            points(left, own["flops"], relative, group=group, among=groups, texts=texts, s=18,
                   label=look(group, groups).label)  # fmt: skip
            z = np.sort(relative) / max(float(np.std(relative)), 1e-12)
            theory = stats.norm.ppf((np.arange(len(z)) + 0.5) / len(z))
            right.plot(
                theory, z, color=look(group, groups).color, marker=look(group, groups).marker,
                markersize=3, linewidth=0.7, gid=tag(group),
            )  # fmt: skip
        left.axhline(0, color="black", linewidth=0.8)
        style.log_axis(left, "x")
        left.yaxis.set_major_formatter(FuncFormatter(_percent))
        left.set_xlabel(FLOPS)
        left.set_ylabel("measured / predicted loss - 1")
        left.legend(ncols=2, loc="upper right", fontsize=style.pt(7.5), handletextpad=0.2)
        low, high = left.get_ylim()
        left.set_ylim(low, high + 0.28 * (high - low))  # room for the legend
        limit = max(abs(v) for v in (*right.get_xlim(), *right.get_ylim()))
        right.plot([-limit, limit], [-limit, limit], color="black", linewidth=0.8, zorder=1)
        right.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        right.set_xlabel("normal quantile")
        right.set_ylabel("residual / standard deviation")
        return style.finish(figure)


def bootstrap_cloud(
    draws: pd.DataFrame, estimates: pd.DataFrame, *, x: str = "alpha", y: str = "beta"
) -> Figure:
    """Resampled exponents of each architecture, with the region that holds 90 % of them.

    The region is the smallest level set of a kernel density that holds 90 % of the draws, without
    what no draw is near to: a bootstrap over few runs has several clumps, which an ellipse would
    hide, and a kernel as wide as all of them together would bridge.

    Args:
        draws: group, and the columns named by `x` and `y`.
        estimates: the same columns, one row a group.
    """
    groups = groups_of(draws, "group")
    values = np.stack([numbers(draws, x), numbers(draws, y)])
    low, high = np.nanpercentile(values, [0.5, 99.5], axis=1)
    # Draws of points without noise differ by rounding: they are shown as the one value they are.
    edge = np.maximum(0.12 * (high - low), _LEAST * np.abs(high + low) / 2)
    low, high = low - edge, high + edge
    with style.context():
        figure, grid = style.panels(1, 1, width=style.SINGLE + 0.7, height=3.4)
        axes = grid[0, 0]
        for group in groups:
            kind = look(group, groups)
            own = np.stack([numbers(where(draws, group=group), c) for c in (x, y)])
            own = own[:, np.isfinite(own).all(axis=0)]
            shown = own[:, :: max(1, own.shape[1] // _ENOUGH)]
            axes.scatter(
                *shown, s=3, alpha=0.22, linewidths=0, color=kind.color, gid=tag(group),
                rasterized=True,
            )  # fmt: skip
            if _spread_out(own, high - low):
                _region(axes, own, low, high, kind.color).set_gid(tag(group))
            best = where(estimates, group=group)
            axes.plot(
                numbers(best, x), numbers(best, y), marker=kind.marker, color=kind.color,
                markersize=7, markeredgecolor="white", linestyle="none", label=kind.label,
                gid=tag(group), zorder=5,
            )  # fmt: skip
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        names = {"alpha": "exponent of N, α", "beta": "exponent of D, β"}
        axes.set_xlabel(names.get(x, x))
        axes.set_ylabel(names.get(y, y))
        axes.legend(
            loc="upper left", bbox_to_anchor=(1.01, 1), handletextpad=0.2,
            title_fontsize=style.pt(7.5), title="estimate and\n90 % of draws", alignment="left",
        )  # fmt: skip
        return style.finish(figure)


def _spread_out(own: Array, width: Array) -> bool:
    """Whether draws (2, b) fill a region: more than rounding apart, and not along a line."""
    if own.shape[1] < 3 or not (own.std(axis=1) > 1e-6 * width).all():
        return False
    x, y = own - own.mean(axis=1, keepdims=True)
    return bool(float(x @ y) ** 2 < (1 - 1e-9) * float(x @ x) * float(y @ y))


def _region(axes: Axes, own: Array, low: Array, high: Array, color: str) -> ContourSet:
    """The contour of the smallest region that holds 90 % of the draws."""
    own = own[:, :: max(1, own.shape[1] // _ENOUGH)]
    scaled = (own - low[:, None]) / (high - low)[:, None]
    density = stats.gaussian_kde(own, lambda k: _NARROW * k.scotts_factor())
    at = np.meshgrid(np.linspace(low[0], high[0], 120), np.linspace(low[1], high[1], 120))
    height = density(np.stack([a.ravel() for a in at])).reshape(at[0].shape)
    grid_scaled = [(a - o) / (h - o) for a, o, h in zip(at, low, high, strict=True)]
    far, _ = KDTree(scaled.T).query(np.stack([a.ravel() for a in grid_scaled], axis=1))
    height[far.reshape(height.shape) > _NEAR] = 0.0
    return axes.contour(
        *at, height, levels=[float(np.quantile(density(own), 0.1))], colors=[color], linewidths=1.2
    )


def holdout(frame: pd.DataFrame) -> Figure:
    """Extrapolation check: laws fitted to small runs, against the large runs they never saw.

    `frame` has arch, flops, loss, predicted, lo, hi (prediction interval) and `leap`: compute of
    the point over the largest compute fitted.
    """
    groups = groups_of(frame)
    with style.context():
        figure, grid = style.panels(1, 2, width=style.DOUBLE, height=3.0)
        left, right = grid[0]
        for group in groups:
            kind = look(group, groups)
            own = by(where(frame, arch=group), "leap")
            error = numbers(own, "predicted") / numbers(own, "loss") - 1
            low, high = (numbers(own, c) / numbers(own, "loss") - 1 for c in ("lo", "hi"))
            texts = [
                f"{kind.label}: {leap:.2g}x more compute than fitted, measured {m:.4f}, "
                f"predicted {p:.4f} [{a:.4f}, {b:.4f}] ({e:+.2%})"
                for leap, m, p, a, b, e in zip(
                    own["leap"], own["loss"], own["predicted"], own["lo"], own["hi"], error,
                    strict=True,
                )
            ]  # fmt: skip
            shift = 1 + 0.03 * (groups.index(group) - (len(groups) - 1) / 2)
            spread = np.abs(np.stack([error - low, high - error]))
            _, _, bars = left.errorbar(
                own["leap"] * shift, error, yerr=spread, fmt="none", ecolor=kind.color,
                elinewidth=0.9, alpha=0.6,
            )  # fmt: skip
            for bar in bars:
                bar.set_gid(tag(group))
            points(left, own["leap"] * shift, error, group=group, among=groups, texts=texts)
            points(
                right,
                own["loss"],
                own["predicted"],
                group=group,
                among=groups,
                texts=texts,
                label=kind.label,
            )
        left.axhline(0, color="black", linewidth=0.8)
        left.set_xscale("log")
        left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        left.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}×"))
        left.xaxis.set_minor_formatter(NullFormatter())
        left.yaxis.set_major_formatter(FuncFormatter(_percent))
        left.set_xlabel("compute / largest compute fitted")
        left.set_ylabel("predicted / measured loss - 1")
        limits = [
            frame[["loss", "predicted"]].min().min(),
            frame[["loss", "predicted"]].max().max(),
        ]
        right.plot(limits, limits, color="black", linewidth=0.8, zorder=1)
        right.set_xlabel("measured loss (nats/token)")
        right.set_ylabel("predicted loss (nats/token)")
        handles, labels = right.get_legend_handles_labels()
        if len(groups) > 1:
            figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(groups)),
                          handletextpad=0.2)  # fmt: skip
        return style.finish(figure)


def rolling(frame: pd.DataFrame) -> Figure:
    """Rolling hold-out over compute: error of the law, and of the pure power law in compute.

    `frame` has arch, leap (compute over the largest compute fitted), error and pure (logarithm of
    predicted over measured loss), one row for each held-out point at each cut.
    """
    groups = groups_of(frame)
    with style.context():
        figure, grid = style.panels(1, 2, width=style.DOUBLE, height=3.0, sharex=True, sharey=True)
        titles = {"error": "law in N and D", "pure": "pure power law in C"}
        for axes, (column, title) in zip(grid[0], titles.items(), strict=True):
            axes.set_title(title)
            axes.set_xscale("log")
            for group in groups:
                own = where(frame, arch=group)
                label = look(group, groups).label
                error = np.expm1(numbers(own, column))
                texts = [
                    f"{label}: {leap:.2g}x more compute than fitted: {e:+.2%}"
                    for leap, e in zip(own["leap"], error, strict=True)
                ]
                points(
                    axes,
                    own["leap"],
                    error,
                    group=group,
                    among=groups,
                    texts=texts,
                    s=16,
                    label=label,
                )
            axes.axhline(0, color="black", linewidth=0.8)
        left, right = grid[0]
        left.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=8))
        left.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}×"))
        left.xaxis.set_minor_formatter(NullFormatter())
        left.yaxis.set_major_formatter(FuncFormatter(_percent))
        left.set_ylabel("predicted / measured loss - 1")
        figure.supxlabel("compute / largest compute fitted", fontsize=style.pt(8.5))
        if len(groups) > 1:
            right.legend(loc="upper left", bbox_to_anchor=(1.0, 1), handletextpad=0.2)
        return style.finish(figure)


def _relative(frame: pd.DataFrame) -> np.ndarray:
    return numbers(frame, "loss") / numbers(frame, "predicted") - 1


def _percent(value: float, _: object) -> str:
    return f"{round(100 * value, 6):g}%"

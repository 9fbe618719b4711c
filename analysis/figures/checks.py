"""What a fit leaves: residuals, the cloud of its resamples, and its error on held-out rungs."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter
from scipy import stats

from analysis import style
from analysis.figures.common import FLOPS, groups_of
from analysis.figures.hover import points, tag
from analysis.frames import by, numbers, where, words
from analysis.style import look


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
            points(left, own["flops"], relative, group=group, texts=texts, s=18,
                   label=look(group, groups).label)  # fmt: skip
            z = np.sort(relative) / max(float(np.std(relative)), 1e-12)
            theory = stats.norm.ppf((np.arange(len(z)) + 0.5) / len(z))
            right.plot(
                theory, z, color=look(group, groups).color, marker=look(group, groups).marker,
                markersize=3, linewidth=0.7, gid=tag(group),
            )  # fmt: skip
        left.axhline(0, color="black", linewidth=0.8)
        style.log_axis(left, "x")
        left.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=_decimals(left)))
        left.set_xlabel(FLOPS)
        left.set_ylabel("measured / predicted loss - 1")
        left.legend(ncols=2, loc="upper right", fontsize=7.5, handletextpad=0.2)
        low, high = left.get_ylim()
        left.set_ylim(low, high + 0.28 * (high - low))  # room for the legend
        limit = max(abs(v) for v in (*right.get_xlim(), *right.get_ylim()))
        right.plot([-limit, limit], [-limit, limit], color="black", linewidth=0.8, zorder=1)
        right.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        right.set_xlabel("normal quantile")
        right.set_ylabel("residual / standard deviation")
    return figure


def bootstrap_cloud(draws: pd.DataFrame, *, x: str = "alpha", y: str = "beta") -> Figure:
    """Resampled exponents of each architecture, with the region that holds 90 % of them.

    `draws` has group, and the columns named by `x` and `y`. The region is the ellipse of the
    robust covariance that contains 90 % of the draws.
    """
    groups = groups_of(draws, "group")
    with style.context():
        figure, grid = style.panels(1, 1, width=style.SINGLE + 0.7, height=3.4)
        axes = grid[0, 0]
        for group in groups:
            kind = look(group, groups)
            own = np.stack([numbers(where(draws, group=group), c) for c in (x, y)], axis=1)
            own = own[np.isfinite(own).all(axis=1)]
            shown = own[:: max(1, len(own) // 600)]
            axes.scatter(
                shown[:, 0], shown[:, 1], s=3, alpha=0.22, linewidths=0, color=kind.color,
                gid=tag(group), rasterized=True,
            )  # fmt: skip
            centre, outline = _region(own, 0.9)
            axes.plot(outline[:, 0], outline[:, 1], color=kind.color, linewidth=1.3, gid=tag(group))
            axes.plot(
                *centre, marker=kind.marker, color=kind.color, markersize=7,
                markeredgecolor="white", linestyle="none", label=kind.label, gid=tag(group),
            )  # fmt: skip
        names = {"alpha": r"exponent of N, $\alpha$", "beta": r"exponent of D, $\beta$"}
        values = draws[[x, y]].to_numpy(float)
        low, high = np.nanpercentile(values, [0.5, 99.5], axis=0)
        pad = 0.08 * (high - low)
        axes.set(xlim=(low[0] - pad[0], high[0] + pad[0]), ylim=(low[1] - pad[1], high[1] + pad[1]))
        axes.set_xlabel(names.get(x, x))
        axes.set_ylabel(names.get(y, y))
        axes.legend(
            loc="upper left", bbox_to_anchor=(1.01, 1), handletextpad=0.2, title_fontsize=7.5,
            title="median and\n90 % of draws", alignment="left",
        )  # fmt: skip
    return figure


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
            points(left, own["leap"] * shift, error, group=group, texts=texts)
            points(right, own["loss"], own["predicted"], group=group, texts=texts, label=kind.label)
        left.axhline(0, color="black", linewidth=0.8)
        left.set_xscale("log")
        left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        left.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}×"))
        left.xaxis.set_minor_formatter(NullFormatter())
        left.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=_decimals(left)))
        left.set_xlabel("compute / largest compute fitted")
        left.set_ylabel("predicted / measured loss - 1")
        limits = [
            frame[["loss", "predicted"]].min().min(),
            frame[["loss", "predicted"]].max().max(),
        ]
        right.plot(limits, limits, color="black", linewidth=0.8, zorder=1)
        right.set_xlabel("measured loss (nats/token)")
        right.set_ylabel("predicted loss (nats/token)")
        right.legend(loc="upper left", handletextpad=0.2)
    return figure


def _relative(frame: pd.DataFrame) -> np.ndarray:
    return numbers(frame, "loss") / numbers(frame, "predicted") - 1


def _decimals(axes: Axes) -> int:
    low, high = axes.get_ylim()
    return 0 if high - low > 0.06 else 1 if high - low > 0.006 else 2


def _region(draws: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Median and the ellipse of the central draws' covariance that holds `share` of all draws."""
    centre = np.median(draws, axis=0)
    scale = 1.4826 * np.median(np.abs(draws - centre), axis=0) + 1e-12
    unit = (draws - centre) / scale
    central = unit[np.linalg.norm(unit, axis=1) <= np.quantile(np.linalg.norm(unit, axis=1), 0.9)]
    covariance = np.cov(central.T)
    distance = np.einsum("ij,jk,ik->i", unit, np.linalg.pinv(covariance), unit)
    radius = np.sqrt(np.quantile(distance, share))
    values, vectors = np.linalg.eigh(covariance)
    angle = np.linspace(0, 2 * np.pi, 181)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return centre, centre + scale * (radius * circle * np.sqrt(np.maximum(values, 0))) @ (vectors.T)

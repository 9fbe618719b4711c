"""Whether the curves of a table's runs collapse onto one: a check of their health.

    collapse(points, floor) -> Collapse | None
        1. each run's curve as (L - E) / (L at its end - E) over the share of its tokens
        2. the median of all runs at each share
        3. how far each run is from it; runs far from it for the others' spread are named

Well-tuned runs of one recipe have one shape, whatever their size (Qiu et al. 2507.02119). A run
apart was interrupted, unstable, badly tuned, or trained under another schedule. Shapes change
slowly with tokens per parameter too, so that only runs far apart are named.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.io.frames import numbers, words

_SHARES = np.linspace(0.2, 0.95, 16)
"""Of a run's tokens; before lies the warm-up."""
_ROWS, _RUNS = 6, 5
"""Fewest rows of a curve, and fewest curves."""
_FAR, _LEAST = 6.0, 0.03
"""Robust standard deviations, and log reducible loss, both of which a run apart is away."""


@dataclass(frozen=True)
class Collapse:
    """Distances of normalised curves from their median."""

    distance: dict[str, float]
    """By run: root mean square of log (L - E) / (L at the end - E) about the median curve."""
    apart: list[str]
    """Runs far away, farthest first."""
    floor: float
    """E that was taken."""

    def describe(self) -> str:
        """In a sentence."""
        middle = float(np.median(list(self.distance.values())))
        text = f"curves: {len(self.distance)} runs collapse onto one shape within {middle:.1%}"
        if self.apart:
            named = ", ".join(f"{run} ({self.distance[run]:.0%})" for run in self.apart[:5])
            more = f" and {len(self.apart) - 5} more" if len(self.apart) > 5 else ""
            text += f"; apart from it, look at these: {named}{more}"
        return text

    def as_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {**asdict(self), "words": self.describe()}


def collapse(points: pd.DataFrame, floor: float) -> Collapse | None:
    """The check of one group; None where there are too few curves.

    Args:
        points: run_id, tokens and loss, a row a checkpoint.
        floor: the irreducible loss of the group's law, 0 without one.
    """
    if not {"run_id", "tokens", "loss"} <= {*points.columns}:
        return None
    curves: dict[str, np.ndarray] = {}
    frame = points.assign(run=words(points, "run_id"))
    if len(frame) < _ROWS * len(set(frame["run"])) / 2:
        return None  # a table of ends
    for run, own in frame.groupby("run", sort=False):
        tokens, reducible = numbers(own, "tokens"), numbers(own, "loss") - floor
        good = np.isfinite(tokens) & (tokens > 0) & (reducible > 0)
        order = np.argsort(tokens[good], kind="stable")
        x, y = tokens[good][order], reducible[good][order]
        if len(x) < _ROWS or x[0] > _SHARES[0] * x[-1]:
            continue
        curves[str(run)] = np.interp(np.log(_SHARES), np.log(x / x[-1]), np.log(y / y[-1]))
    if len(curves) < _RUNS:
        return None
    table = np.array(list(curves.values()))
    away = np.sqrt(((table - np.median(table, axis=0)) ** 2).mean(axis=1))
    spread = 1.4826 * float(np.median(np.abs(away - np.median(away))))
    far = away > max(float(np.median(away)) + _FAR * spread, _LEAST)
    names = np.array(list(curves))
    order = np.argsort(-away)
    apart = [str(names[i]) for i in order if far[i]]
    return Collapse(dict(zip(curves, away.tolist(), strict=True)), apart, floor)

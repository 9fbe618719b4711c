"""A scaling law of linearization: what is not recovered, over tokens and model size.

    1 - r = a (D / 1e5)^-b (N / 1e5)^c

with r the recovered share (`analysis.judge.recovery`: beyond the window alone for a method that has
one, since surgery for another), D the uptraining tokens of all
stages and N the parameters without embeddings. Fitted by least squares to ln(1 - r). Intervals are
percentiles of refits to whole groups of runs of one size and seed, drawn with replacement, since
milestones of a run are not independent. What speaks against believing the law is part of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis.errors import AnalysisError
from analysis.io.frames import numbers, rows, where, words
from analysis.judge.recovery import LINEARIZED, Recovery
from analysis.units import LEVEL, Array

FLOOR = 0.005
"""Unrecovered share below which a milestone is as good as the teacher; the law leaves it out."""
SCALE = 1e5
"""Tokens and parameters at which the factor a is read off."""
NAMES = ("a", "b", "c")


@dataclass(frozen=True)
class Law:
    """1 - r = a (D / 1e5)^-b (N / 1e5)^c of one group of linearized runs."""

    group: str
    params: dict[str, float]
    """a, b, c."""
    draws: Array
    """(draws, 3): ln a, b, c of each refit."""
    points: pd.DataFrame
    """Milestones that it was fitted to, with `unrecovered`."""
    residual: float
    """Standard deviation of ln(1 - r) around the law."""
    holdout: float
    """Mean |ln(measured / predicted)| at the largest budget, predicted from the others; NaN where
    these do not determine the law."""
    warnings: tuple[str, ...] = ()

    def interval(self, name: str) -> tuple[float, float]:
        """Bootstrap interval of a parameter."""
        low, high = _quantiles(self.draws[:, NAMES.index(name)])
        return (math.exp(low), math.exp(high)) if name == "a" else (float(low), float(high))

    def predict(self, tokens: ArrayLike, n_params: float) -> tuple[Array, Array, Array]:
        """1 - r along tokens, and its interval: value, low, high."""
        design = _design(np.asarray(tokens, dtype=np.float64), n_params)
        theta = [math.log(self.params["a"]), self.params["b"], self.params["c"]]
        low, high = _quantiles(np.exp(self.draws @ design.T))
        return np.exp(design @ theta), low, high


def fit(recovery: Recovery, group: str, *, draws: int = 2000, seed: int = 0) -> Law:
    """The law of one group.

    Raises:
        AnalysisError: fewer than four milestones short of the teacher, or a single size or budget.
    """
    own = where(recovery.of(LINEARIZED), group=group)
    own = own.assign(unrecovered=1 - numbers(own, "recovered"))
    used = rows(own, numbers(own, "unrecovered") > FLOOR)
    x = _design(numbers(used, "tokens"), numbers(used, "n_params"))
    y = np.log(numbers(used, "unrecovered"))
    if len(used) < 4 or np.linalg.matrix_rank(x) < len(NAMES):
        raise AnalysisError(
            f"{group}: a law needs at least four milestones short of the teacher's loss, at two "
            f"budgets and two sizes; there are {len(used)}, and {len(own) - len(used)} that are "
            "not short of it."
        )
    theta = _solve(x, y)
    labels = [f"{s} {n}" for s, n in zip(words(used, "size"), words(used, "seed"), strict=True)]
    clusters = [np.flatnonzero(np.array(labels) == label) for label in sorted(set(labels))]
    law = Law(
        group=group,
        params={"a": math.exp(theta[0]), "b": float(theta[1]), "c": float(theta[2])},
        draws=_bootstrap(x, y, clusters, draws, seed),
        points=used,
        residual=math.sqrt(float(np.sum((y - x @ theta) ** 2)) / (len(y) - len(NAMES))),
        holdout=_holdout(numbers(used, "tokens"), x, y),
    )
    return replace(law, warnings=_warnings(law, len(own) - len(used), len(clusters)))


def _design(tokens: Array, n_params: Array | float) -> Array:
    """Columns of ln a, b and c."""
    sizes = np.broadcast_to(n_params, tokens.shape)
    return np.stack([np.ones_like(tokens), -np.log(tokens / SCALE), np.log(sizes / SCALE)], axis=1)


def _solve(x: Array, y: Array) -> Array:
    return np.asarray(np.linalg.lstsq(x, y, rcond=None)[0], dtype=np.float64)


def _bootstrap(
    x: Array, y: Array, clusters: list[NDArray[np.intp]], draws: int, seed: int
) -> Array:
    """Refits to clusters drawn with replacement; a draw of a single size is drawn again."""
    random, found = np.random.default_rng(seed), []
    while len(found) < draws:
        picks = random.integers(len(clusters), size=len(clusters))
        chosen = np.concatenate([clusters[pick] for pick in picks])
        if np.linalg.matrix_rank(x[chosen]) == x.shape[1]:
            found.append(_solve(x[chosen], y[chosen]))
    return np.array(found)


def _quantiles(draws: Array) -> Array:
    return np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)


def _holdout(tokens: Array, x: Array, y: Array) -> float:
    last = tokens == tokens.max()
    if np.linalg.matrix_rank(x[~last]) < x.shape[1]:
        return math.nan
    return float(np.abs(y[last] - x[last] @ _solve(x[~last], y[~last])).mean())


def _warnings(law: Law, past: int, clusters: int) -> tuple[str, ...]:
    found: list[str] = []
    for column, what in (("tokens", "uptraining tokens"), ("n_params", "parameters")):
        values = numbers(law.points, column)
        if (span := values.max() / values.min()) < 30:
            found.append(
                f"{what} span a factor of {span:.1f}; an exponent read off so short a range says "
                "little beyond it."
            )
    if worse := int(np.sum(numbers(law.points, "unrecovered") >= 1)):
        found.append(
            f"{worse} of {len(law.points)} milestones are no better than what r counts from."
        )
    if clusters < 15:
        found.append(
            f"{clusters} groups of runs (size and seed): bootstrap intervals of so few are too "
            "narrow."
        )
    if past:
        found.append(
            f"{past} milestones are within {FLOOR:.1%} of the gap of the teacher's loss, or below "
            "it, and left out: no power law holds there, and without them b comes out too small."
        )
    if law.residual > 0.15:
        found.append(
            f"milestones scatter around the law by a factor of {math.exp(law.residual):.2f} (one "
            "standard deviation): its form is a convenience."
        )
    if law.holdout > 0.3:
        found.append(
            "predicted from the smaller budgets, the largest is off by a factor of "
            f"{math.exp(law.holdout):.2f}: do not extrapolate."
        )
    low, high = law.interval("c")
    if low <= 0 <= high:
        found.append("the interval of c holds 0: no effect of size can be told.")
    if len(teachers := set(numbers(law.points, "teacher_tokens"))) == 1:
        found.append(
            f"all teachers saw {teachers.pop():,.0f} tokens, so that larger ones are further from "
            "the end of their training: c holds both effects."
        )
    return tuple(found)

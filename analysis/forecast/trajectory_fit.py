"""Fitting the law of loss over tokens to the runs of one architecture.

Parameters: those of the law, the ratio of training to validation loss, and for each run a factor
and a slope in ln S: its luck, and what the law misses of its size. Residuals are of ln L, with a
robust loss; a window of n logged steps is known to sqrt(noise^2 / n + FORM^2), noise being what
neighbouring windows tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from analysis.errors import AnalysisError
from analysis.forecast.paths import Stretch
from analysis.forecast.trajectory_law import (
    N_UNIT,
    S_UNIT,
    SPREAD,
    START,
    gain,
    gain_slopes,
    trunk_loss,
)
from analysis.units import Array

FORM = 0.005
"""What the law misses anyway, in ln L."""
LUCK, TILT = 0.05, 0.02
"""Standard deviations of the level and the slope of a run's factor before its losses are seen."""
RATIO = 0.03
"""The same of the ratio of training to validation loss."""
_LAW = len(START)


@dataclass(frozen=True)
class Trajectory:
    """A fitted law of loss over tokens of one architecture."""

    theta: Array
    """The parameters, as `trajectory_law.START` has them."""
    ratio: float
    """ln of training over validation loss."""
    luck: dict[str, tuple[float, float]]
    """ln of each run's factor at S_UNIT, and its slope in ln S."""
    noise: float
    """Standard deviation of a logged training loss, in ln L."""

    def __call__(self, stretch: Stretch, tokens: Array) -> Array:
        """Validation loss (n,) along a stretch; of a run that was not fitted, the usual one."""
        level, tilt = self.luck.get(stretch.run_id, (0.0, 0.0))
        weighted = np.log(stretch.rates.at(tokens) / S_UNIT)
        return np.exp(_log_loss(self.theta, stretch, tokens) + level + tilt * weighted)

    def training(self, stretch: Stretch, tokens: Array) -> Array:
        """Training loss (n,) along a stretch."""
        return self(stretch, tokens) * np.exp(self.ratio)


def fit_trajectory(stretches: Sequence[Stretch], near: Trajectory | None = None) -> Trajectory:
    """The law of some stretches, of one architecture.

    Args:
        stretches: trunks and decays.
        near: a fit to begin with.

    Raises:
        AnalysisError: fewer than 12 measured losses, or no decay among them.
    """
    used = [s for s in stretches if len(s.tokens)]
    if sum(len(s.tokens) for s in used) < 12 or not any(s.is_decay for s in used):
        raise AnalysisError("a law of loss over tokens needs a trunk and a decay to learn from")
    runs = list(dict.fromkeys(s.run_id for s in used))
    observed = np.log(np.concatenate([s.loss for s in used]))
    lines = np.concatenate([s.lines for s in used])
    of_run = np.concatenate([np.full(len(s.tokens), runs.index(s.run_id)) for s in used])
    noise = _noise(used)
    training = (lines > 0).astype(float)
    weighted = np.log(np.concatenate([s.rates.at(s.tokens) for s in used]) / S_UNIT)
    mine = (of_run[:, None] == np.arange(len(runs))).astype(float)
    own = np.hstack([mine, mine * weighted[:, None]])
    own_spread = np.repeat([LUCK, TILT], len(runs))
    scale = np.sqrt(training * noise**2 / np.maximum(lines, 1.0) + FORM**2)

    def residuals(theta: Array) -> Array:
        law = np.concatenate([_log_loss(theta[:_LAW], s, s.tokens) for s in used])
        said = law + training * theta[_LAW] + own @ theta[_LAW + 1 :]
        return np.concatenate([
            (observed - said) / scale, (theta[:_LAW] - START) / SPREAD,
            theta[_LAW : _LAW + 1] / RATIO, theta[_LAW + 1 :] / own_spread,
        ])  # fmt: skip

    def slopes(theta: Array) -> Array:
        told = np.zeros((len(observed) + len(theta), len(theta)))
        law = np.concatenate([_slopes(theta[:_LAW], s, s.tokens) for s in used], axis=1)
        told[: len(observed), :_LAW] = -(law / scale).T
        told[: len(observed), _LAW] = -training / scale
        told[: len(observed), _LAW + 1 :] = -own / scale[:, None]
        prior = 1 / np.concatenate([SPREAD, [RATIO], own_spread])
        told[len(observed) :][np.diag_indices(len(theta))] = prior
        return told

    start = np.concatenate([START, np.zeros(1 + 2 * len(runs))])
    if near is not None:
        known = [near.luck.get(run, (0.0, 0.0)) for run in runs]
        start = np.concatenate([near.theta, [near.ratio], np.transpose(known).ravel()])
    jac: Any = slopes  # SciPy's stubs know only its names for differences
    found = least_squares(
        residuals, start, jac=jac, loss="soft_l1", f_scale=2.0, ftol=1e-6, max_nfev=60
    )
    theta = np.asarray(found.x)
    pairs = theta[_LAW + 1 :].reshape(2, -1).T.tolist()
    luck = {run: (level, tilt) for run, (level, tilt) in zip(runs, pairs, strict=True)}
    return Trajectory(theta[:_LAW], float(theta[_LAW]), luck, noise)


def _log_loss(theta: Array, stretch: Stretch, tokens: Array) -> Array:
    """ln of the law along a stretch (n,), without luck."""
    k, c, beta, gamma = np.exp(theta[5:9])
    k *= (stretch.n / N_UNIT) ** theta[9]
    n = np.full(len(tokens), stretch.n)
    loss = trunk_loss(n, stretch.rates.at(tokens), theta)
    won = k * gain(stretch.rates, tokens, c, beta, gamma)
    return np.log(np.maximum(loss - won, loss / 2))  # while a fit still looks for its way


def _slopes(theta: Array, stretch: Stretch, tokens: Array) -> Array:
    """Derivatives of `_log_loss` by the parameters of the law (p, n)."""
    e, a_size, a, b_data, b = np.exp(theta[:5])
    k, c, beta, gamma = np.exp(theta[5:9])
    log_n = np.log(stretch.n / N_UNIT)
    log_s = np.log(stretch.rates.at(tokens) / S_UNIT)
    size, data = a_size * np.exp(-a * log_n), b_data * np.exp(-b * log_s)
    one = np.ones(len(tokens))
    told = np.stack([e * one, size * one, -size * a * log_n * one, data, -data * b * log_s])
    won = k * np.exp(theta[9] * log_n) * gain_slopes(stretch.rates, tokens, c, beta, gamma)
    loss = e + size + data
    free = loss - won[0] > loss / 2
    trunk = told / np.where(free, loss - won[0], loss)
    gained = np.stack([won[0], won[1], won[2], won[3], won[0] * log_n])
    return np.concatenate([trunk, np.where(free, -gained / (loss - won[0]), 0.0)])


def _noise(stretches: Sequence[Stretch]) -> float:
    """Standard deviation of one logged loss, from second differences of neighbouring windows."""
    found: list[Array] = []
    for stretch in stretches:
        known = stretch.lines > 0
        y, lines = np.log(stretch.loss[known]), stretch.lines[known]
        if len(y) > 2:
            variance = 1 / lines[:-2] + 4 / lines[1:-1] + 1 / lines[2:]
            found.append(np.abs(y[:-2] - 2 * y[1:-1] + y[2:]) / np.sqrt(variance))
    if not found:
        return 0.03
    return max(1.4826 * float(np.median(np.concatenate(found))), 1e-4)

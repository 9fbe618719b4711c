"""Training curves as a law of loss over tokens takes them: stretches of rates, losses in windows.

curves (tokens, lr, loss of every logged step)
  -> one stretch for the trunk and one for each decay, with S where the stretch begins
  -> losses: means over windows of the training loss, and the validation loss at milestones
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.forecast.trajectory_law import Rates
from analysis.io.frames import numbers, rows, where, words
from analysis.units import Array

WINDOW = 0.1
"""Width of a window in ln tokens on a trunk; a decay has `DECAY_WINDOWS`."""
DECAY_WINDOWS = 6
KNOTS = 33
SETTLED = 0.05
"""Share of the longest run's tokens of a size before which a trunk still follows its start."""


@dataclass(frozen=True)
class Stretch:
    """A trunk or a decay of one run with what was measured along it (m,)."""

    run_id: str
    name: str
    """`trunk`, or `decay-` and its horizon."""
    size: str
    n: float
    rates: Rates
    tokens: Array
    loss: Array
    lines: Array
    """Logged steps behind each loss; 0 for a validation loss."""

    @property
    def is_decay(self) -> bool:
        """Whether it leaves the trunk."""
        return self.name.startswith("decay-")


def stretches(curves: pd.DataFrame) -> list[Stretch]:
    """All of an architecture's runs; the trunk of a run comes before its decays.

    Args:
        curves: as `Sweep.curves`.
    """
    found: list[Stretch] = []
    for run_id in dict.fromkeys(words(curves, "run_id")):
        found += _of_run(str(run_id), where(curves, run_id=run_id))
    return found


def _of_run(run_id: str, own: pd.DataFrame) -> list[Stretch]:
    train = where(own, split="train")
    tokens, lr, loss = _lines(where(train, segment="trunk"))
    if len(tokens) < 4:
        return []
    size, n = words(own, "size")[0], float(numbers(own, "n_params")[0])
    peak = float(numbers(where(train, segment="trunk"), "lr").max())
    aligned = [not name.startswith(("trunk", "decay-")) for name in words(own, "segment")]
    before = numbers(rows(own, np.array(aligned)), "tokens")  # of stages with rates of their own
    begin = float(before.max()) if len(before) else 0.0
    whole = Rates(np.append(begin, tokens), np.append(0.0, lr / peak), 0.0)
    late = tokens > SETTLED * float(numbers(own, "tokens").max())
    points = _with_validation(
        _windows(tokens[late], loss[late], WINDOW), where(own, split="validation", segment="trunk")
    )
    found = [Stretch(run_id, "trunk", size, n, _reduced(whole), *points)]
    for name in dict.fromkeys(words(own, "segment")):
        if not name.startswith("decay-"):
            continue
        then, falling, losses = _lines(where(train, segment=name))
        if not len(then):
            continue
        start = float(whole.tokens[whole.tokens < then[0]].max())
        level = float(np.interp(start, whole.tokens, whole.share))
        rates = Rates(
            np.append(start, then),
            np.append(level, falling / peak),
            float(whole.at(np.array([start]))[0]),
        )
        width = max(float(np.log(then[-1] / start)) / DECAY_WINDOWS, 1e-6)
        measured = _with_validation(
            _windows(then, losses, width), where(own, split="validation", segment=name)
        )
        found.append(Stretch(run_id, name, size, n, _reduced(rates), *measured))
    return found


def _lines(frame: pd.DataFrame) -> tuple[Array, Array, Array]:
    """Tokens, rate and loss of logged steps, in order, without those that are no numbers."""
    tokens, lr, loss = (numbers(frame, name) for name in ("tokens", "lr", "loss"))
    order = np.argsort(tokens, kind="stable")
    order = order[np.isfinite(loss[order]) & (lr[order] > 0)]
    return tokens[order], lr[order], loss[order]


def _windows(tokens: Array, loss: Array, width: float) -> tuple[Array, Array, Array]:
    """Mean tokens, mean loss and number of lines of windows of `width` in ln tokens."""
    cell = np.floor(np.log(tokens) / width).astype(int)
    _, index, count = np.unique(cell, return_inverse=True, return_counts=True)
    return (
        np.bincount(index, tokens) / count,
        np.bincount(index, loss) / count,
        count.astype(float),
    )


def _with_validation(
    points: tuple[Array, Array, Array], ends: pd.DataFrame
) -> tuple[Array, Array, Array]:
    tokens, loss, lines = points
    at, measured = numbers(ends, "tokens"), numbers(ends, "loss")
    good = np.isfinite(measured)
    return (
        np.concatenate([tokens, at[good]]),
        np.concatenate([loss, measured[good]]),
        np.concatenate([lines, np.zeros(int(good.sum()))]),
    )


def _reduced(rates: Rates) -> Rates:
    """The same rates at few knots: where the rate is constant two would do, elsewhere it is
    smooth."""
    if len(rates.tokens) <= KNOTS:
        return rates
    first = int(np.argmax(rates.share >= rates.share.max() * (1 - 1e-9)))  # the warm-up stays
    rest = np.linspace(rates.tokens[first], rates.tokens[-1], KNOTS)
    tokens = np.concatenate([rates.tokens[:first], rest])
    return Rates(tokens, np.interp(tokens, rates.tokens, rates.share), rates.before)

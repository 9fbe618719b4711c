"""A law of recall: what share of stored pairs does a state give back?

    p = Phi(1 / sigma - sqrt(2 log V)),        sigma^2 = a F / S + 1 / D

(arXiv 2609.07681, for a state-space model) with F pairs stored, S numbers in the state, D the width
of what stands for a token, and V values to choose among. The first term is the interference of the
pairs in a state of that size, the second what remains for one pair; sqrt(2 log V) is about the
largest of V standard normal numbers. The one free number is a: the numbers of the state that a pair
takes, in units of those that an ideal store needs. The smaller, the better the state is used.

a maximises the binomial likelihood of the answers. Answers of one run share its luck, so that the
interval draws runs with replacement (on log a, with Student's t); with fewer than `FEWEST_RUNS`
there is none. Two null models stand beside it: one accuracy for all cases, and guessing among the
pairs that are there.

The law knows nothing of training: a model that has not learnt to bind looks as if its state were
small. `deviance` near 1 says that the answers scatter as coins would; far above it, that the form
or the training is not the law's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import minimize_scalar
from scipy.special import log_ndtr

from analysis.errors import AnalysisError
from analysis.io.frames import numbers, where, words
from analysis.units import LEVEL, Array

COLUMNS = ("arch", "run", "load", "state_numbers", "width", "values", "accuracy", "sequences")
LOG_RANGE = (-12.0, 12.0)
"""Of log a; a fit at an end is no fit."""
FEWEST_RUNS = 3
RARE = 1e-9
"""Least probability of an answer: one wrong answer says no more than this against a law."""


@dataclass(frozen=True, kw_only=True)
class RecallLaw:
    """The law of one architecture."""

    arch: str
    a: float
    """Interference of a pair."""
    lo: float | None
    hi: float | None
    """Interval of a; None with fewer than three runs."""
    level: float
    runs: int
    cases: int
    """Rows: runs times loads."""
    deviance: float
    """Of the law, for each case less one; 1 where answers are independent and the form is right."""
    null: float
    """That of one accuracy for all cases."""
    guessing: float
    """That of guessing among the pairs that are there."""
    error: float
    """Root of the mean squared error of the accuracies."""

    def accuracy(self, load: Array, state: Array, width: Array, values: Array) -> Array:
        """Expected accuracy: F pairs, S numbers, width D, V values; they broadcast."""
        return np.exp(_log_accuracy(self.a, load, state, width, values)[0])

    @property
    def determined(self) -> bool:
        """Whether the accuracies fix a: some are neither perfect nor at the law's other end."""
        return LOG_RANGE[0] + 0.1 < np.log(self.a) < LOG_RANGE[1] - 0.1


def recall_laws(table: pd.DataFrame, *, draws: int = 1000, seed: int = 0) -> dict[str, RecallLaw]:
    """The law of every architecture in a table.

    Args:
        table: a row for each run and load, with `COLUMNS`: architecture, run, pairs stored,
            numbers in the state, model width, values to choose among, share of right answers, and
            sequences asked (each of as many questions as pairs).
        draws: of the interval.
        seed: of the draws.

    Raises:
        AnalysisError: a column is missing, or a value cannot be one.
    """
    if missing := [name for name in COLUMNS if name not in table]:
        raise AnalysisError(f"recall: the table has no column {missing[0]!r}; it needs {COLUMNS}.")
    if not len(table):
        raise AnalysisError("recall: the table has no rows.")
    for name in COLUMNS[2:]:
        column = numbers(table, name)
        good = (column >= 0) & (column <= 1) if name == "accuracy" else column > 0
        if not (good & np.isfinite(column)).all():
            wrong = column[~(good & np.isfinite(column))][0]
            kind = "between 0 and 1" if name == "accuracy" else "a positive number"
            raise AnalysisError(f"recall: {name}={wrong:g} in the table; it must be {kind}.")
    found = {}
    for arch in sorted(set(words(table, "arch"))):
        found[arch] = _law(arch, where(table, arch=arch), draws, seed)
    return found


def _law(arch: str, rows: pd.DataFrame, draws: int, seed: int) -> RecallLaw:
    load, state, width, values, accuracy, asked = (
        numbers(rows, name)
        for name in ("load", "state_numbers", "width", "values", "accuracy", "sequences")
    )
    questions = asked * load
    right = accuracy * questions
    case = (load, state, width, values)
    a = _fit(right, questions, case)
    runs = np.array(words(rows, "run"))
    names = np.unique(runs)
    lo = hi = None
    if len(names) >= FEWEST_RUNS and draws:
        random = np.random.default_rng(seed)
        times = random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
        weights = times[:, np.searchsorted(names, runs)]  # (draws, rows)
        refits = np.log([_fit(right * w, questions * w, case) for w in weights])
        # Student's t, and the spread of n runs from n - 1: quantiles of the draws are too narrow.
        spread = refits.std() * np.sqrt(len(names) / (len(names) - 1))
        reach = stats.t.ppf((1 + LEVEL) / 2, len(names) - 1) * spread
        lo, hi = (float(a * np.exp(sign * reach)) for sign in (-1, 1))
    expected = np.exp(_log_accuracy(a, *case)[0])
    mean = np.full_like(accuracy, right.sum() / questions.sum())
    spare = max(1, len(rows) - 1)
    return RecallLaw(
        arch=arch,
        a=a,
        lo=lo,
        hi=hi,
        level=LEVEL,
        runs=len(names),
        cases=len(rows),
        deviance=_deviance(right, questions, expected) / spare,
        null=_deviance(right, questions, mean) / spare,
        guessing=_deviance(right, questions, 1 / load) / spare,
        error=float(np.sqrt(np.mean((accuracy - expected) ** 2))),
    )


def _log_accuracy(
    a: float, load: Array, state: Array, width: Array, values: Array
) -> tuple[Array, Array]:
    """log p and log (1 - p), both exact where one is tiny."""
    z = (a * load / state + 1 / width) ** -0.5 - np.sqrt(2 * np.log(values))
    floor = np.log(RARE)
    return np.maximum(log_ndtr(z), floor), np.maximum(log_ndtr(-z), floor)


def _fit(right: Array, questions: Array, case: tuple[Array, ...]) -> float:
    """a of the largest likelihood."""

    def loss(log_a: float) -> float:
        yes, no = _log_accuracy(float(np.exp(log_a)), *case)
        return -float((right * yes + (questions - right) * no).sum())

    # The floor on rare answers can make flat ends: start from the best of a grid.
    grid = np.linspace(*LOG_RANGE, 49)
    best = int(np.argmin([loss(x) for x in grid]))
    ends = grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)]
    found: Any = minimize_scalar(loss, bounds=ends, method="bounded")
    return float(np.exp(found.x))


def _deviance(right: Array, questions: Array, expected: Array) -> float:
    """Twice the log likelihood that a model lacks to one with a number for each case."""
    wrong = questions - right
    p = np.clip(expected, RARE, 1 - RARE)
    with np.errstate(divide="ignore", invalid="ignore"):
        yes = np.where(right > 0, right * np.log(right / (questions * p)), 0.0)
        no = np.where(wrong > 0, wrong * np.log(wrong / (questions * (1 - p))), 0.0)
    return float(2 * (yes + no).sum())

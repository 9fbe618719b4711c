"""Task accuracies of a sweep's checkpoints, and the two-step law through them.

    evals.jsonl (evals.py) + milestones (records.py)
        -> measured    one row a checkpoint and task, with the loss of the same checkpoint
        -> fits        loss -> accuracy of each task, one sigmoid through all architectures
        -> bands       accuracy along each architecture's compute-optimal line, both steps' draws

A task that nothing can be said about yet (every model at chance, too few checkpoints) is in
`failures` with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.errors import AnalysisError
from analysis.fit.downstream import DownstreamFit, fit_downstream
from analysis.fit.law_fit import LawFit
from analysis.io.evals import CSR
from analysis.io.frames import numbers, rows, where, words
from analysis.judge.forecast import predict_task

CHANCE: dict[str, float] = {
    "boolq": 0.5,
    "piqa": 0.5,
    "hellaswag": 0.25,
    "winogrande": 0.5,
    "arc_easy": 0.25,
    "arc_challenge": 0.25,
    "openbookqa": 0.25,
    "copa": 0.5,
    "sciq": 0.25,
    "lambada_openai": 0.0,
    "lambada_standard": 0.0,
}
"""Accuracy of guessing, 1 / answers; only these tasks are fitted."""


@dataclass(frozen=True)
class Tasks:
    """What is known about tasks; frames in the columns that the figures take."""

    measured: pd.DataFrame
    """arch, task, run_id, loss, accuracy, questions, flops."""
    fits: dict[str, DownstreamFit]
    """Loss -> accuracy by task."""
    failures: dict[str, str] = field(default_factory=dict[str, str])
    """Tasks without a fit, and why."""

    def loss_bands(self, *, level: float) -> pd.DataFrame:
        """Accuracy over the losses measured: group (the task), x, y, lo, hi."""
        parts: list[pd.DataFrame] = []
        for task, fit in self.fits.items():
            own = numbers(fit.points, "loss")
            x = np.linspace(own.min(), own.max(), 64)
            tail = (1 - level) / 2
            low, high = np.quantile(fit.predict_draws(x), [tail, 1 - tail], axis=0)
            parts.append(
                pd.DataFrame({"group": task, "x": x, "y": fit.predict(x), "lo": low, "hi": high})
            )
        return pd.concat(parts, ignore_index=True)

    def compute_band(
        self,
        task: str,
        law: LawFit,
        optimum: pd.DataFrame,
        inside: NDArray[np.bool_],
        *,
        level: float,
    ) -> pd.DataFrame:
        """Accuracy along a compute-optimal line (c, n, d): task, x, y, lo, hi, inside."""
        two = predict_task(
            law, self.fits[task], level=level, limit=np.inf, n=optimum["n"], d=optimum["d"]
        )
        return pd.DataFrame(
            {"task": task, "x": optimum["c"], "y": two["accuracy"], "lo": two["lo"],
             "hi": two["hi"], "inside": inside}
        )  # fmt: skip


def tasks_of(evals: pd.DataFrame, points: pd.DataFrame, *, bootstrap: int, seed: int = 0) -> Tasks:
    """Fits every task of CHANCE that was evaluated.

    Args:
        evals: as `analysis.io.evals.load_evals` gives them.
        points: of the same sweep: the loss of each checkpoint.
        bootstrap: redraws of runs.
    """
    measured = _join_losses(evals, points)
    fits: dict[str, DownstreamFit] = {}
    failures: dict[str, str] = {}
    for task in dict.fromkeys(words(measured, "task")):
        own = where(measured, task=task)
        try:
            fits[task] = fit_downstream(
                own, chance=CHANCE[task], clusters="run_id", bootstrap=bootstrap, seed=seed,
                questions=int(numbers(own, "questions").min()),
            )  # fmt: skip
        except AnalysisError as error:
            failures[task] = str(error)
    return Tasks(measured, fits, failures)


def _join_losses(evals: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """Accuracies joined to the loss of the same checkpoint; of several settings the commonest."""
    metric = [CSR.get(task, "acc") for task in words(evals, "task")]
    known = np.isin(words(evals, "task"), list(CHANCE))
    usual = rows(evals, known & (np.asarray(words(evals, "metric")) == np.asarray(metric)))
    counted = dict(usual.groupby("task")["settings"].agg(lambda s: s.value_counts().index[0]))
    common = [counted[task] for task in words(usual, "task")]
    usual = rows(usual, np.asarray(words(usual, "settings")) == np.asarray(common))
    named = usual.rename(columns={"value": "accuracy", "n": "questions"})
    named = named[["arch", "task", "run_id", "tokens", "flops", "accuracy", "questions"]]
    return named.merge(points[["run_id", "tokens", "loss"]], on=["run_id", "tokens"])

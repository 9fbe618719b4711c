"""Predictions beyond the data, with intervals, refused beyond a stated factor in compute.

forecast(fit, n=..., d=... | c=...)           loss of runs not yet made
predict_task(law, task, n=..., d=... | c=...)  accuracy of models not yet trained
    step 1 the law gives the loss, step 2 the sigmoid the accuracy; every bootstrap draw of the
    law goes through a draw of the sigmoid, so both uncertainties arrive at the end
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.fit.downstream import DownstreamFit
from analysis.fit.law_fit import EXTRAPOLATION_LIMIT, LawFit
from analysis.fit.uncertainty import quantiles
from analysis.fit.within import measured, within
from analysis.units import LEVEL


def forecast(
    fit: LawFit,
    *,
    level: float = LEVEL,
    kind: Literal["mean", "run"] = "run",
    limit: float = EXTRAPOLATION_LIMIT,
    seed: int = 0,
    **columns: Any,
) -> pd.DataFrame:
    """Loss of runs not yet made, with a prediction interval.

    Args:
        fit: with draws.
        kind: `run` for the next run (with its noise), `mean` for the law.
        limit: refuse beyond this factor of the largest compute fitted.
        columns: n, d, c, as the form needs.

    Returns:
        Columns loss, lo, hi, leap (compute over the largest fitted), inside (the data, as
        `analysis.fit.within` says).

    Raises:
        AnalysisError: beyond `limit`; the message says by how much and how to insist.
    """
    given = {k: np.atleast_1d(np.asarray(v, dtype=float)) for k, v in columns.items()}
    leap = np.atleast_1d(fit.leap(given))
    if leap.max() > limit:
        raise AnalysisError(
            f"{leap.max():.3g} times the largest compute that was fitted is beyond the limit of "
            f"{limit:g}: the law has not been tested there. Pass limit={np.ceil(leap.max()):g} to "
            "insist; the interval covers the law's parameters, not its form"
        )
    frame = fit.band(level=level, kind=kind, seed=seed, extrapolate=True, **columns)
    frame["leap"], frame["inside"] = leap, within(measured(fit), **given)
    return frame


def predict_task(
    law: LawFit, task: DownstreamFit, *, level: float = LEVEL, limit: float = 10.0, **columns: Any
) -> pd.DataFrame:
    """Accuracy of models not yet trained, from N and D (or C) through the predicted loss.

    Columns loss, accuracy, lo, hi, leap. The interval holds the uncertainty of both steps and the
    scatter of models about the sigmoid.

    Raises:
        AnalysisError: no draws, or further than `limit` times the largest compute fitted.
    """
    given = {k: np.atleast_1d(np.asarray(v, dtype=float)) for k, v in columns.items()}
    forecast(law, level=level, limit=limit, **columns)  # refuses what is too far
    losses = law.predict(**columns, extrapolate=True).ravel()
    first = law.predict_draws(**columns)
    if task.draws is None:
        raise AnalysisError("the task fit has no draws: pass bootstrap=2000 to fit_downstream")
    # Steps are independent given the data: pair draws by position, recycling the shorter
    paired = task.draws[np.arange(len(first)) % len(task.draws)]
    accuracy = replace(task, draws=paired).predict_draws(first)
    rng = np.random.default_rng(len(first))
    accuracy = np.clip(accuracy + task.residual * rng.standard_normal(accuracy.shape), 0, 1)
    low, high = quantiles(accuracy, level)
    return pd.DataFrame({"loss": losses, "accuracy": task.predict(losses), "lo": low, "hi": high,
                         "leap": np.atleast_1d(law.leap(given))})  # fmt: skip

"""What the user's own cheaper runs say about the dearer ones: the rolling hold-out, in words.

roll(fit, data) -> Rolling
    1. `holdout` of the fit's form: signed error of every forecast, and whether its interval held
    2. the same cuts under the other forms in N and D, with AICc beside
    3. in words: too pessimistic, too optimistic or neither, how many intervals held, which form
       predicted best

A diagnosis, not a calibration: how wide intervals must be does not follow from one table's own
hold-out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.fit.fitting import fit_law
from analysis.fit.law_fit import LawFit
from analysis.fit.within import in_interval
from analysis.io.frames import numbers, plain, rows
from analysis.io.table_warnings import forms_of
from analysis.judge.form_selection import compare_forms, holdout, row_of
from analysis.judge.sensitivity import STARTS
from analysis.units import LEVEL

FORMS = ("chinchilla", "gamma", "chinchilla_tied", "chinchilla_no_e", "kaplan", "size_exponent")
"""Forms in N and D whose forecasts are compared; those of further columns join where a table has
them."""
_DRAWS = 100
MOST = 1_000
"""Points; of more, so many are taken, evenly over every run."""
_SLANTED, _NOTABLE = 0.6, 0.003
"""Mean error over mean absolute error, and mean error, from which a law is called slanted."""
_FEW = 0.25
"""Median error over mean error, below which the mean is that of a few forecasts."""


@dataclass(frozen=True)
class Rolling:
    """Forecasts of dearer points by laws of the cheaper ones."""

    forecasts: pd.DataFrame
    """As `holdout` returns them for the form of the fit."""
    forms: pd.DataFrame
    """One row a form: form, aicc, holdout_error, holdout_bias, note; best forecasts first."""
    form: str
    used: int = 0
    """Points that were taken; 0 for all."""
    known: int = 0
    """Points of the fit."""

    @property
    def error(self) -> float:
        """Mean of log predicted - log measured: above zero is too pessimistic."""
        return float(numbers(self.forecasts, "error").mean())

    @property
    def coverage(self) -> float:
        """Share of measured losses inside their interval; NaN without intervals."""
        if "lo" not in self.forecasts:
            return float("nan")
        loss, low, high = (numbers(self.forecasts, name) for name in ("loss", "lo", "hi"))
        return float(in_interval(loss, low, high).mean())

    def _part(self) -> str:
        return f" (on {self.used:,} of {self.known:,} points)" if self.used else ""

    def describe(self) -> list[str]:
        """The findings, a sentence each."""
        errors, leap = numbers(self.forecasts, "error"), numbers(self.forecasts, "leap")
        size = float(np.abs(errors).mean())
        text = (
            f"rolling hold-out{self._part()}: {len(errors)} forecasts up to "
            f"{leap.max():.3g} times the compute fitted err by {self.error:+.2%} on average "
            f"({size:.2%} in size)"
        )
        middle = float(np.median(errors))
        few = abs(self.error) > _NOTABLE and middle * np.sign(self.error) < _FEW * abs(self.error)
        if few:
            text += f", by {middle:+.2%} in the median: a few of them err most"
        if np.isfinite(self.coverage):
            text += f"; {self.coverage:.0%} lie in their {LEVEL:.0%} interval"
        found = [text + "."]
        held = self.coverage >= LEVEL  # false without intervals
        if not held and not few and abs(self.error) > max(_NOTABLE, _SLANTED * size):
            slant, side = ("pessimistic", "better") if self.error > 0 else ("optimistic", "worse")
            found.append(
                f"On these data the law has been too {slant}: larger runs came out {side} than "
                "predicted, and those beyond them may too."
            )
        able = rows(self.forms, np.isfinite(numbers(self.forms, "holdout_error")))
        if len(able) > 1:
            best, chosen = able.iloc[0], able.iloc[int(np.argmin(numbers(able, "aicc")))]
            found.append(
                f"Of {len(able)} forms {best['form']} predicted best "
                f"({best['holdout_error']:.2%}); AICc prefers {chosen['form']}."
            )
        return found

    def as_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "form": self.form, "used": self.used or self.known, "of": self.known,
            "error": self.error, "coverage": self.coverage, "level": LEVEL,
            "forms": plain(self.forms), "forecasts": plain(self.forecasts),
            "words": self.describe(),
        }  # fmt: skip


def roll(fit: LawFit, data: pd.DataFrame, *, steps: int = 4, **options: Any) -> Rolling:
    """The rolling hold-out of a fit of `data`; `options` are those it had, without a bootstrap.

    Raises:
        AnalysisError: too few points, or a form without N and D.
    """
    if not {"n", "d"} <= set(fit.law.columns):
        raise AnalysisError(f"{fit.form} has no N and D: no hold-out over compute is made")
    options.setdefault("starts", STARTS)
    known, used = len(fit.observations.loss), 0
    if known > MOST:
        data = data.loc[fit.problem.thinned(MOST).observations.rows]
        fit = fit_law(fit.form, data, **options)
        used = len(fit.observations.loss)
    try:
        found = holdout(fit.form, data, steps=steps, bootstrap=_DRAWS, near=fit, **options)
    except AnalysisError:  # too few runs below a cut to draw from
        found = holdout(fit.form, data, steps=steps, near=fit, **options)
    free = {k: v for k, v in options.items() if k != "fix"}
    others = [form for form in (*FORMS, *forms_of(data)) if form != fit.form]
    own = pd.DataFrame([row_of(fit, found)])
    table = pd.concat([own, compare_forms(others, data, steps=steps, **free)], ignore_index=True)
    table = table.sort_values("holdout_error", ignore_index=True)
    return Rolling(found, table, fit.form, used, known)

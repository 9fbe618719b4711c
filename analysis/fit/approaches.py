"""All three approaches in one call, and where they disagree.

three_approaches(points, curves=...) -> Approaches
    1 envelope of training curves, 2 IsoFLOP profiles, 3 parametric law
    each with a, b, N* and D* at a reference budget; an approach that the data cannot support is
    listed with its reason instead of being left out
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.errors import AnalysisError, FitWarning
from analysis.fit.drawing import figure_of
from analysis.fit.envelope import FIELD, EnvelopeFit, EnvelopeOptions, envelope
from analysis.fit.fitting import fit_law
from analysis.fit.isoflop import IsoflopFit, isoflop
from analysis.fit.law_fit import LawFit
from analysis.fit.within import measured, within
from analysis.io.frames import numbers, plain
from analysis.units import LEVEL, Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SPLIT = ("n", "n_lo", "n_hi", "d", "d_lo", "d_hi")
_DISAGREE = 0.03
"""Exponents further apart than this are worth a warning even without intervals."""


NAMES = ("1 envelope", "2 IsoFLOP", "3 parametric")
Fit = EnvelopeFit | IsoflopFit | LawFit


@dataclass(frozen=True)
class Approaches:
    """What each approach says."""

    envelope: EnvelopeFit | None
    isoflop: IsoflopFit | None
    parametric: LawFit | None
    frame: pd.DataFrame
    """One row per approach: approach, a, b, n, d (at the reference budget), note; with a bootstrap
    the intervals *_lo, *_hi of a, n and d."""
    at: float
    """Reference budget in FLOPs."""
    warnings: list[FitWarning]

    def table(self) -> pd.DataFrame:
        """The frame."""
        return self.frame

    def fits(self) -> dict[str, Fit]:
        """The approaches that could be applied, by the name that `frame` gives them."""
        every = zip(NAMES, (self.envelope, self.isoflop, self.parametric), strict=True)
        return {name: fit for name, fit in every if fit is not None}

    def optimum(self, name: str, compute: Array | float, *, level: float = LEVEL) -> pd.DataFrame:
        """N* and D* of one approach at budgets in FLOPs."""
        return _optimum(self.fits()[name], compute, level)

    def within(self, name: str, compute: Array | float) -> NDArray[np.bool_]:
        """Which budgets have their N*, D* by one approach, and C, within what it was fitted to: an
        envelope to its own points, profiles and laws to all."""
        fit = self.fits()[name]
        if isinstance(fit, LawFit):
            data = measured(fit)
        else:
            unit, table = (fit.options.unit, fit.frontier) if isinstance(fit, EnvelopeFit) else (
                1.0, fit.points
            )  # fmt: skip
            data = {"n": numbers(table, "n"), "d": numbers(table, "d"), "c": numbers(table, "c")}
            data["c"] = data["c"] * unit
        best = _optimum(fit, compute, LEVEL)
        return within(data, n=numbers(best, "n"), d=numbers(best, "d"), c=np.atleast_1d(compute))

    def plot(self, *, level: float = LEVEL, style: str = "house") -> Figure:
        """N*(C) and D*(C) of every approach that could be applied."""
        return figure_of(self, level=level, style=style)

    def as_dict(self) -> dict[str, Any]:
        """The frame, the reference budget and the warnings as JSON types."""
        return {
            "at": self.at,
            "compute_model": None
            if self.parametric is None
            else self.parametric.compute_model.as_dict(),
            "approaches": plain(self.frame),
            "warnings": [
                *({"approach": name, **w.as_dict()}
                  for name, fit in self.fits().items() for w in fit.warnings),
                *(w.as_dict() for w in self.warnings),
            ],
        }  # fmt: skip

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{w}</li>" for w in self.warnings)
        return f"{self.frame.to_html(index=False)}<ul>{notes}</ul>"


def three_approaches(
    points: pd.DataFrame,
    *,
    curves: pd.DataFrame | None = None,
    form: str = "chinchilla",
    at: float | None = None,
    options: EnvelopeOptions = FIELD,
    bootstrap: int = 0,
    seed: int = 0,
    level: float = LEVEL,
    law: LawFit | None = None,
    clusters: str | None = None,
    **names: Any,
) -> Approaches:
    """Runs approaches 1 (needs curves), 2 and 3 on the same runs.

    Args:
        points: finished runs, one row each.
        curves: logged points of the runs. Without them the points themselves serve as curves if
            runs (`run_id`) give several each, as decayed checkpoints do; else approach 1 is
            skipped, and said so.
        form: a law in N and D.
        at: budget at which N* and D* are compared; default the largest among the points.
        options: of the envelope.
        bootstrap: draws for each approach (an envelope gets a quarter: it is the slowest).
        law: approach 3 where it has been fitted to these points already, with as many draws.
        names: columns n, d, c, loss where they differ from the defaults.

    Raises:
        AnalysisError: no approach can be applied.
    """
    rows: list[dict[str, Any]] = []
    first: EnvelopeFit | None = None
    second: IsoflopFit | None = None
    third = law
    notes: dict[str, str] = dict.fromkeys(NAMES, "")
    try:
        if curves is None:
            curves = _as_curves(points)
        first = envelope(curves, options, bootstrap=bootstrap // 4, seed=seed, **names)
    except AnalysisError as error:
        notes["1 envelope"] = str(error)
    try:
        third = third or fit_law(
            form, points, bootstrap=bootstrap, seed=seed, clusters=clusters, **names
        )
    except AnalysisError as error:
        notes["3 parametric"] = str(error)
    try:
        second = isoflop(points, bootstrap=bootstrap, seed=seed, law=third, **names)
    except AnalysisError as error:
        notes["2 IsoFLOP"] = str(error)
    if first is None and second is None and third is None:
        raise AnalysisError("no approach can be applied: " + "; ".join(
            f"{k}: {v}" for k, v in notes.items()))  # fmt: skip
    if at is None:
        column = names.get("c", "flops")
        if column in points.columns:
            at = float(np.nanmax(numbers(points, column)))
        else:
            n, d = (numbers(points, names.get(k, v))
                    for k, v in (("n", "n_params"), ("d", "tokens")))  # fmt: skip
            at = float(np.nanmax(6 * n * d))
    results = {"1 envelope": first, "2 IsoFLOP": second, "3 parametric": third}
    for name, result in results.items():
        row: dict[str, Any] = {"approach": name, "note": notes[name]}
        if result is not None:
            optimal = _optimum(result, at, level)
            row |= {k: result.params[k] for k in ("a", "b")}
            row |= {k: float(numbers(optimal, k)[0]) for k in _SPLIT if k in optimal}
            if bootstrap:
                row["a_lo"], row["a_hi"] = result.interval("a", level)
            row["note"] = "; ".join(w.code for w in result.warnings)
        rows.append(row)
    frame = pd.DataFrame(rows)
    return Approaches(first, second, third, frame, at, _disagreement(frame))


def _as_curves(points: pd.DataFrame) -> pd.DataFrame:
    """Points as curves, one for each run."""
    if "run_id" not in points.columns or not points["run_id"].duplicated().any():
        raise AnalysisError("needs training curves, or runs (run_id) with several checkpoints each")
    return points


def _optimum(fit: Fit, compute: Array | float, level: float) -> pd.DataFrame:
    unit = fit.options.unit if isinstance(fit, EnvelopeFit) else 1.0
    return fit.optimal(np.asarray(compute, dtype=float) / unit, level=level)


def _disagreement(frame: pd.DataFrame) -> list[FitWarning]:
    if "a" not in frame.columns:
        return []
    found = np.isfinite(numbers(frame, "a"))
    labels = [str(v) for v in np.asarray(frame["approach"])[found]]
    values = dict(zip(labels, numbers(frame, "a")[found].tolist(), strict=True))
    if len(values) < 2 or max(values.values()) - min(values.values()) <= _DISAGREE:
        return []
    text = ", ".join(f"{k}: {v:.3f}" for k, v in values.items())
    disjoint = False
    if "a_lo" in frame.columns:
        low, high = numbers(frame, "a_lo")[found], numbers(frame, "a_hi")[found]
        disjoint = float(low.max()) > float(high.min())
    ending = (
        "their intervals do not overlap, so at least one is biased on this design"
        if disjoint
        else "read their warnings before choosing one"
    )
    return [
        FitWarning("approaches_disagree", f"The exponent a of N* ~ C^a differs ({text}); {ending}.",
                   dict(values))
    ]  # fmt: skip

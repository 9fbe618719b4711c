"""All three approaches in one call, and where they disagree.

three_approaches(points, curves=...) -> Approaches
    1 envelope of training curves, 2 IsoFLOP profiles, 3 parametric law
    each with a, b, N* and D* at a reference budget; an approach that the data cannot support is
    listed with its reason instead of being left out
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.envelope import FIELD, EnvelopeFit, EnvelopeOptions, envelope
from analysis.errors import AnalysisError, FitWarning
from analysis.fitting import fit_law
from analysis.isoflop import IsoflopFit, isoflop
from analysis.law_fit import LawFit
from analysis.power_sum import Array

_DISAGREE = 0.03
"""Exponents further apart than this are worth a warning even without intervals."""


@dataclass(frozen=True)
class Approaches:
    """What each approach says."""

    envelope: EnvelopeFit | None
    isoflop: IsoflopFit | None
    parametric: LawFit | None
    frame: pd.DataFrame
    """One row per approach: approach, a, b, n, d (at the reference budget), intervals, note."""
    at: float
    """Reference budget in FLOPs."""
    warnings: list[FitWarning]

    def table(self) -> pd.DataFrame:
        """The frame."""
        return self.frame

    def _repr_html_(self) -> str:
        return self.frame.to_html(index=False)


def three_approaches(
    points: pd.DataFrame,
    *,
    curves: pd.DataFrame | None = None,
    form: str = "chinchilla",
    at: float | None = None,
    options: EnvelopeOptions = FIELD,
    bootstrap: int = 0,
    seed: int = 0,
    level: float = 0.9,
    clusters: str | None = None,
    **names: Any,
) -> Approaches:
    """Runs approaches 1 (needs curves), 2 and 3 on the same runs.

    Args:
        points: finished runs, one row each.
        curves: logged points of the runs; without them approach 1 is skipped, and said so.
        form: a law in N and D.
        at: budget at which N* and D* are compared; default the largest among the points.
        options: of the envelope.
        bootstrap: draws for each approach (an envelope gets a quarter: it is the slowest).
        names: columns n, d, c, loss where they differ from the defaults.

    Raises:
        AnalysisError: no approach can be applied.
    """
    rows: list[dict[str, Any]] = []
    first: EnvelopeFit | None = None
    second: IsoflopFit | None = None
    third: LawFit | None = None
    notes = {"1 envelope": "", "2 IsoFLOP": "", "3 parametric": ""}
    try:
        if curves is None:
            raise AnalysisError("needs training curves")
        first = envelope(curves, options, bootstrap=bootstrap // 4, seed=seed, **names)
    except AnalysisError as error:
        notes["1 envelope"] = str(error)
    try:
        third = fit_law(form, points, bootstrap=bootstrap, seed=seed, clusters=clusters, **names)
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
            at = float(np.nanmax(points[column].to_numpy(dtype=float)))
        else:
            n, d = (points[names.get(k, v)].to_numpy(dtype=float)
                    for k, v in (("n", "n_params"), ("d", "tokens")))  # fmt: skip
            at = float(np.nanmax(6 * n * d))
    results = {"1 envelope": first, "2 IsoFLOP": second, "3 parametric": third}
    for name, result in results.items():
        row: dict[str, Any] = {"approach": name, "note": notes[name]}
        if result is not None:
            unit = first.options.unit if first is not None and result is first else 1.0
            optimal = result.optimal(at / unit)
            row |= {k: result.params[k] for k in ("a", "b")}
            row |= {k: float(optimal[k].to_numpy()[0]) for k in ("n", "d")}
            if bootstrap:
                row["a_lo"], row["a_hi"] = result.interval("a", level)
            row["note"] = "; ".join(w.code for w in result.warnings)
        rows.append(row)
    frame = pd.DataFrame(rows)
    return Approaches(first, second, third, frame, at, _disagreement(frame))


def _column(frame: pd.DataFrame, name: str) -> Array:
    return np.asarray(frame[name], dtype=np.float64)


def _disagreement(frame: pd.DataFrame) -> list[FitWarning]:
    if "a" not in frame.columns:
        return []
    found = np.isfinite(_column(frame, "a"))
    labels = [str(v) for v in np.asarray(frame["approach"])[found]]
    values = dict(zip(labels, _column(frame, "a")[found].tolist(), strict=True))
    if len(values) < 2 or max(values.values()) - min(values.values()) <= _DISAGREE:
        return []
    text = ", ".join(f"{k}: {v:.3f}" for k, v in values.items())
    disjoint = False
    if "a_lo" in frame.columns:
        low, high = _column(frame, "a_lo")[found], _column(frame, "a_hi")[found]
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

"""What clean points can and cannot tell of a law: enough of them, plain units, N apart from D."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError, FitWarning
from analysis.fit.observations import AXES, Observations
from analysis.laws.power_sum import Law
from analysis.units import PFLOP_S_DAY

_UNIT_GAP = 10**4.5
_SMALLEST = {"n": 1e4, "d": 1e6, "u": 1e6}
"""A largest value below this is no count of parameters or tokens: perhaps millions or billions."""
_RATIO = (0.2, 30.0)
"""C / (6 N D) of real runs: attention over long contexts and large heads reach 10 or 20."""
_COLLINEAR = 0.998
_NEEDED = {"t": 2, "p": 2, "s": 3}
"""Values that show how loss depends on what stands beside N and D: of a share three, because E, K
and t are determined by no fewer."""
_VARIES = {"t": "the ratio of {} to active parameters"}


def judge_points(obs: Observations, law: Law, *, own_counts: bool = False) -> None:
    """Adds to the warnings of the points what limits a fit of the law to them.

    Args:
        obs: the points.
        law: what is to be fitted.
        own_counts: N, D and C are Linscale's own counts, whose units are known.

    Raises:
        AnalysisError: too few points or values, or a column that mixes units.
    """
    _enough(obs, law)
    if not own_counts:
        _units(obs)
    _separable(obs, law)


def _enough(obs: Observations, law: Law) -> None:
    count, excluded = len(obs.loss), len(obs.exclusions)
    left = f" ({excluded} rows were excluded: {_first(obs.exclusions)})" if excluded else ""
    if count <= law.size:
        raise AnalysisError(
            f"{law.name} has {law.size} parameters and {count} usable points{left}; it needs at "
            f"least {law.size + 1}, and a useful interval needs several times as many"
        )
    if count < law.size + 3:
        obs.warnings.append(
            FitWarning(
                "few_points",
                f"{count} points for {law.size} parameters: the fit nearly interpolates them and "
                "intervals are not to be trusted.",
                {"points": count, "parameters": law.size},
            )
        )
    usual = 3 if law.has_floor else 2
    for role in law.columns:
        if role == "u":
            continue
        distinct = _distinct(obs, role)
        needed = _NEEDED.get(role, usual)
        if distinct < needed:
            raise AnalysisError(
                f"{_VARIES.get(role, '{}').format(obs.called[role])} takes {distinct} distinct "
                f"value(s){left}; {law.name} needs at "
                f"least {needed} to see how loss depends on {AXES[role]}"
                + (", or use a form without that variable" if len(law.columns) > 1 else "")
            )
        if distinct < 4 and role not in _NEEDED:
            obs.warnings.append(
                FitWarning(
                    "few_sizes",
                    f"{AXES[role]} takes only {distinct} distinct values: its exponent rests on "
                    "very little.",
                    {"axis": role, "distinct": distinct},
                )
            )


def _distinct(obs: Observations, role: str) -> int:
    """How many values a column takes; of total parameters, how many ratios to the active ones."""
    values = obs.columns[role]
    if role == "t":
        values = values / obs.columns["n"]
    return len(np.unique(np.round(values if role == "s" else np.log(values), 6)))


def _first(exclusions: pd.DataFrame) -> str:
    counted = exclusions["reason"].value_counts()
    return ", ".join(f"{v} x {k}" for k, v in list(counted.items())[:3])


def _units(obs: Observations) -> None:
    for role, least in _SMALLEST.items():
        if role not in obs.columns:
            continue
        values = np.sort(obs.columns[role])
        jump = values[1:] / values[:-1]
        if len(jump) and jump.max() > _UNIT_GAP and values[0] < least:
            at = int(jump.argmax())
            raise AnalysisError(
                f"{obs.called[role]} mixes units: it jumps from {values[at]:g} to "
                f"{values[at + 1]:g}. Give {AXES[role]} as plain counts in every row"
            )
        if values[-1] < least:
            obs.warnings.append(
                FitWarning(
                    "units_suspect",
                    f"The largest {AXES[role]} is {values[-1]:g}: taken as a plain count. If it "
                    f"is in millions or billions, multiply {obs.called[role]} by 1e6 or 1e9.",
                    {"axis": role, "largest": float(values[-1])},
                )
            )
    if not {"n", "d", "c"} <= set(obs.columns) or obs.names["c"].startswith("("):
        return
    ratio = obs.columns["c"] / (6.0 * obs.columns["n"] * obs.columns["d"])
    middle = float(np.median(ratio))
    if _RATIO[0] < middle * PFLOP_S_DAY < _RATIO[1]:
        text, factor = "C is given in PFLOP/s-days; taken as it stands.", middle
    elif not _RATIO[0] < middle < _RATIO[1]:
        text, factor = "Check the units of C, N and D.", middle
    elif ratio.max() / ratio.min() > _RATIO[1] / _RATIO[0]:
        text, factor = "Rows seem to follow different conventions.", middle
    else:
        return
    obs.warnings.append(
        FitWarning(
            "compute_inconsistent",
            f"C / (6 N D) has median {factor:.3g} and ranges from {ratio.min():.3g} to "
            f"{ratio.max():.3g}. {text}",
            {"median": factor, "low": float(ratio.min()), "high": float(ratio.max())},
        )
    )


def _separable(obs: Observations, law: Law) -> None:
    if not {"n", "d"} <= set(law.columns):
        return
    correlation = float(np.corrcoef(np.log(obs.columns["n"]), np.log(obs.columns["d"]))[0, 1])
    if abs(correlation) > _COLLINEAR:
        obs.warnings.append(
            FitWarning(
                "collinear",
                f"N and D move together (correlation {correlation:.4f} of their logarithms): the "
                "separate exponents, and with them the optimal N and D, are not determined. Add "
                "runs with other tokens-per-parameter ratios.",
                {"correlation": correlation},
            )
        )

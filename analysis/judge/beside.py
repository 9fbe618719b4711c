"""What stands beside every fit of `linscale fit`: choices, checklist, and the other groups.

beside(fit, points)       sensitivity table and reporting checklist of one fit
compare_groups(fits)      equal-loss compute, crossings and shared exponents of several
record_of(...)            all of it as JSON types
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.errors import AnalysisError
from analysis.io.frames import finite, plain, where
from analysis.judge.checklist import TESTED, checklist
from analysis.judge.choices import COUNTINGS, answers_of
from analysis.judge.collapse import Collapse, collapse
from analysis.judge.compare import CompareResult, baseline_of, compute_multiplier
from analysis.judge.noise import Common, Noise, in_common, repeats
from analysis.judge.rolling_holdout import Rolling, roll
from analysis.judge.sensitivity import sensitivity
from analysis.judge.shared_exponents import SharedExponents, shared_exponents
from analysis.units import LEVEL

if TYPE_CHECKING:
    from analysis.fit.approaches import Approaches
    from analysis.fit.law_fit import LawFit
    from analysis.io.sweep import Sweep


@dataclass(frozen=True)
class Beside:
    """What belongs to one fit."""

    sensitivity: pd.DataFrame
    checklist: pd.DataFrame
    rolling: Rolling | None
    """The rolling hold-out of a table; None for a sweep, whose report has it."""
    no_rolling: str = ""
    """Why there is none."""
    noise: Noise | None = None
    """Of rows of one N and D; None where there are none."""
    collapse: Collapse | None = None
    """Of the curves of a table; None where it has ends alone, and for a sweep, whose report has
    them."""


@dataclass(frozen=True)
class Comparison:
    """Several groups against one."""

    baseline: str
    multipliers: dict[str, CompareResult]
    shared: SharedExponents | None
    failures: dict[str, str] = field(default_factory=dict[str, str])
    """What could not be compared, and why."""

    def as_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "baseline": self.baseline,
            "multipliers": {
                name: {
                    "verdict": r.verdict, "paired": r.paired, "table": plain(r.frame),
                    "crossing": asdict(r.crossing),
                    "crossing_words": r.crossing_words, "compute": list(r.compute),
                    "warnings": [w.as_dict() for w in r.warnings],
                }
                for name, r in self.multipliers.items()
            },
            "shared_exponents": self.shared.as_dict() if self.shared else None,
            "failures": self.failures,
        }  # fmt: skip


def beside(fit: LawFit, sweep: Sweep, group: str, **options: Any) -> Beside:
    """Sensitivity and checklist of the fit of a group; `options` are those it had."""
    points = sweep.points
    own = where(points, arch=group).loc[fit.observations.rows]
    clusters = fit.observations.names["clusters"]
    named = clusters if clusters in points else None
    counted = {role: {label: name for label, name in names.items() if name in points}
               for role, names in COUNTINGS.items()}  # fmt: skip
    table = sensitivity(
        fit.form, own, reference=fit, clusters=named, n_columns=counted["n"],
        c_columns=counted["c"] if "c" in fit.law.columns else None, **options,
    )  # fmt: skip
    answers = answers_of(sweep, group)
    noise = repeats(own, one_text=bool(len(sweep.runs)))
    if len(sweep.runs):
        answers[TESTED] = "in the report (linscale report), as a rolling hold-out"
        return Beside(table, checklist(fit, context=answers), None, noise=noise)
    rolling, why = None, ""
    try:
        rolling = roll(fit, own, clusters=named, **options)
        answers[TESTED] = " ".join(rolling.describe())
    except AnalysisError as error:
        why = str(error)
    curves = collapse(own, fit.params.get("E", 0.0))
    return Beside(table, checklist(fit, context=answers), rolling, why, noise, curves)


def compare_groups(fits: Mapping[str, LawFit], *, baseline: str | None) -> Comparison | None:
    """Every group over the baseline; None for one group.

    Raises:
        AnalysisError: no group of the name given as baseline.
    """
    name = baseline_of(fits, baseline)
    if len(fits) < 2:
        return None
    failures: dict[str, str] = {}
    found: dict[str, CompareResult] = {}
    for group, fit in fits.items():
        if group == name:
            continue
        try:
            found[group] = compute_multiplier(
                fit, fits[name], names=(group, name), level=LEVEL,
            )  # fmt: skip
        except AnalysisError as error:
            failures[f"{group} with {name}"] = str(error)
    shared = None
    try:
        shared = shared_exponents(fits, level=LEVEL)
    except AnalysisError as error:
        failures["exponents"] = str(error)
    return Comparison(name, found, shared, failures)


def shared_scatter(sweep: Sweep, fits: Mapping[str, LawFit]) -> dict[str, Common]:
    """Of a table with several losses a run: what their residuals share, by architecture."""
    found: dict[str, Common] = {}
    for group, labels in sweep.targets.items():
        common = in_common({label: fits[label] for label in labels if label in fits})
        if common is not None:
            found[group] = common
    return found


def record_of(
    sweep: Sweep,
    fits: Mapping[str, LawFit],
    failures: Mapping[str, str],
    extras: Mapping[str, Beside],
    compared: Comparison | None,
    approaches: Mapping[str, Approaches],
) -> dict[str, Any]:
    """What --json prints: everything but points and draws, which --out saves. Strict JSON: what is
    not a finite number is null."""
    heavy = ("draws", "points", "clusters")
    record: dict[str, Any] = {
        "source": sweep.name,
        "conventions": sweep.conventions,
        "notes": sweep.notes,
        "exclusions": plain(sweep.exclusions),
        "fits": {
            name: {k: v for k, v in json.loads(each.to_json()).items() if k not in heavy}
            | {
                "n_points": len(each.observations.loss),
                "n_runs": len(each.observations.labels),
                "sensitivity": plain(extras[name].sensitivity),
                "checklist": plain(extras[name].checklist),
                "rolling_holdout": _rolling(extras[name]),
                "collapse": curves.as_dict() if (curves := extras[name].collapse) else None,
                "noise": noise.as_dict() if (noise := extras[name].noise) else None,
            }
            for name, each in fits.items()
        },
        "failures": dict(failures),
    }
    if compared is not None:
        record["comparison"] = compared.as_dict()
    if shared := shared_scatter(sweep, fits):
        record["targets"] = {group: each.as_dict() for group, each in shared.items()}
    if approaches:
        record["approaches"] = {name: each.as_dict() for name, each in approaches.items()}
    return finite(record)


def _rolling(extra: Beside) -> dict[str, Any] | None:
    if extra.rolling is not None:
        return extra.rolling.as_dict()
    return {"none": extra.no_rolling} if extra.no_rolling else None

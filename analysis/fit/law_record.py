"""A fitted law as JSON text, and back: `LawFit.to_json` and `LawFit.from_json`."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, TypedDict

import numpy as np
import pandas as pd

from analysis.errors import FitWarning
from analysis.fit.diagnostics import Evidence
from analysis.fit.observations import AXES, Observations, model_of
from analysis.fit.problem import Problem
from analysis.fit.robust import Robust
from analysis.fit.uncertainty import Draws
from analysis.io.saved import array, saved
from analysis.laws.compute_model import ComputeModel
from analysis.laws.held import Held, medians
from analysis.laws.registry import get_law
from analysis.units import Array


class LawFields(TypedDict):
    """The fields of a `LawFit`."""

    problem: Problem
    theta: Array
    objective: float
    evidence: Evidence
    warnings: list[FitWarning]
    draws: Draws | None
    compute_model: ComputeModel
    held: Held


def written(fit: Any) -> str:
    """Everything of a `LawFit` at full precision: parameters, points, draws, evidence, warnings."""
    obs, robust = fit.observations, fit.problem.robust
    return json.dumps({
        "schema": 1,
        "form": fit.form,
        "formula": fit.law.formula,
        "parameters": fit.params,
        "intervals_90": None if fit.draws is None else
                        {p: list(fit.interval(p)) for p in fit.params},
        "objective": {"name": robust.name, "delta": robust.delta, "below": robust.below,
                      "value": fit.objective},
        "theta": fit.theta.tolist(),
        "lower": fit.problem.lower.tolist(), "upper": fit.problem.upper.tolist(),
        "evidence": dataclasses.asdict(fit.evidence),
        "criteria": fit.criteria(),
        "compute_model": fit.compute_model.as_dict(),
        "held": dict(fit.held),
        "warnings": [w.as_dict() for w in fit.warnings],
        "columns": obs.names,
        "points": {**{k: v.tolist() for k, v in obs.columns.items()},
                   "loss": obs.loss.tolist(), "weight": obs.weight.tolist(),
                   "cluster": obs.cluster.tolist(), "row": [str(r) for r in obs.rows],
                   "name": obs.row_names},
        "clusters": obs.labels,
        "exclusions": obs.exclusions.astype(str).to_dict("records"),
        "draws": fit.draws.as_dict() if fit.draws else None,
    })  # fmt: skip


def read(text: str) -> LawFields:
    """What `written` wrote.

    Raises:
        AnalysisError: it is anything else; a missing field is named.
    """
    with saved(text, "LawFit") as record:
        points = record["points"]
        observations = Observations(
            columns={k: array(points, k) for k in AXES if k in points},
            loss=array(points, "loss"),
            weight=array(points, "weight"),
            cluster=array(points, "cluster").astype(np.int64),
            labels=record["clusters"],
            names=record["columns"],
            called=record["columns"],
            rows=points["row"],
            exclusions=pd.DataFrame(record["exclusions"], columns=["row", "name", "reason"]),
            warnings=[],
            row_names=points.get("name", points["row"]),
        )
        law = get_law(record["form"])
        x, centres = law.features(observations.columns)
        objective = record["objective"]
        robust = Robust(objective["name"], objective["delta"], objective.get("below", 0.1))
        return LawFields(
            problem=Problem(law, observations, robust, x, centres, array(record, "lower"),
                            array(record, "upper")),
            theta=array(record, "theta"),
            objective=objective["value"],
            evidence=Evidence(**record["evidence"]),
            warnings=[FitWarning.from_dict(w) for w in record["warnings"]],
            draws=Draws.from_dict(record["draws"]) if record["draws"] else None,
            compute_model=ComputeModel.from_dict(record["compute_model"])
            if "compute_model" in record else model_of(observations),
            held=record.get("held", medians(law.columns, observations.columns)),
        )  # fmt: skip

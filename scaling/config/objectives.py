"""The objectives that a run can train by, found by name.

A run is a list of stages (`RunConfig.objectives`): each is trained by one objective for so many
steps. What an objective is says `scaling.training.objective.Objective`; its loss, what learns and
what it costs are there, and for models that learn from a teacher in
`scaling.linearization.objectives`. A module is loaded when a run asks for one of its objectives.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

NEXT_TOKEN = "next-token"
OBJECTIVES = {
    NEXT_TOKEN: "scaling.training.objective:Objective",
    "matrices": "scaling.linearization.objectives:Matrices",
    "transfer": "scaling.linearization.objectives:Transfer",
    "hidden": "scaling.linearization.objectives:Hidden",
    "full": "scaling.linearization.objectives:Full",
    "lora": "scaling.linearization.objectives:LowRank",
    "distillation": "scaling.linearization.objectives:Distillation",
    "lora-distillation": "scaling.linearization.objectives:LowRankDistillation",
}
"""Name -> `MODULE:CLASS`."""


@dataclass(frozen=True)
class Stage:
    """A part of a run that is trained by one objective."""

    objective: str
    """A name of `OBJECTIVES`."""
    steps: int
    """Optimizer steps."""
    rate: float | None = None
    """Constant learning rate; None: the run's schedule."""


def load(name: str) -> Any:
    """The class of an objective; `scaling.training.objective.objective_of` makes one for a run."""
    module, _, cls = OBJECTIVES[name].partition(":")
    return getattr(import_module(module), cls)

"""The objectives that a run can train by, found by name.

A run is a list of stages (`RunConfig.objectives`): each is trained by one objective for so many
steps. What an objective is says `scaling.training.objective.Objective`; its loss, what learns and
what it costs are there, and for models that learn from a teacher in
`scaling.linearization.objectives`. A module is loaded when a run asks for one of its objectives.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scaling.config.run import RunConfig
    from scaling.training.objective import Objective

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


def objective_of(config: RunConfig, name: str) -> Objective:
    """The objective of a name for a run."""
    module, _, cls = OBJECTIVES[name].partition(":")
    return getattr(import_module(module), cls)(config)

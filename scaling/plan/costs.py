"""Training FLOPs and learning parameters of a run, summed over its objectives.

Each objective knows what a token costs by the `exact` convention (`models.accounting`). The `paper`
convention knows ordinary training alone; it is scaled by the same ratio. The stages before a run's
schedule are recorded together, as `transfer`: their tokens, and their mean cost of a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TypedDict

from models.accounting import (
    Convention,
    forward_flops_per_token,
    mean_keys,
    parameters,
    train_flops_per_token,
)
from models.config import ModelConfig
from scaling.config.objectives import load
from scaling.config.run import RunConfig


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What training by one objective costs."""

    flops: float
    """Training FLOPs of a token, `exact` convention."""
    parameters: int
    """Parameters that learn."""
    teacher_parameters: int = 0
    """Parameters of a second model in memory that the objective learns from."""


class Stages(TypedDict):
    """What accounting.json says of a run that does not train by next-token loss alone."""

    transfer_tokens: int
    transfer_flops_per_token: dict[str, float]
    flops_per_token: dict[str, float]
    transfer_parameters: int
    parameters: int


def ordinary_cost(config: RunConfig) -> Cost:
    """Of forward and backward pass where all parameters learn."""
    return Cost(
        flops=3 * sum(forward_flops(config).values()),
        parameters=sum(parameters(config.model).values()),
    )


def forward_flops(config: RunConfig) -> dict[str, float]:
    """Forward FLOPs of a token by term, at the run's sequence length."""
    return dict(_forward_flops(config.model, config.data.sequence_length))


@lru_cache(maxsize=256)
def _forward_flops(model: ModelConfig, length: int) -> dict[str, float]:
    return forward_flops_per_token(model, mean_keys(length))


def costs(config: RunConfig) -> list[Cost]:
    """Of each of the run's objectives, in their order."""
    return [load(stage.objective)(config).cost() for stage in config.objectives]


def stages(config: RunConfig) -> Stages:
    """Tokens, FLOPs per token (by convention) and learning parameters of the stages before the
    schedule together (`transfer`; no FLOPs where there are none), and of what follows."""
    before, after = _shares(config)
    full = {c: _full(config, c) for c in ("exact", "paper")}
    *first, last = (cost.parameters for cost in costs(config))
    return {
        "transfer_tokens": config.prelude_steps * config.tokens_per_step,
        "transfer_flops_per_token": {c: f * before for c, f in full.items()},
        "flops_per_token": {c: f * after for c, f in full.items()},
        "transfer_parameters": max(first, default=0),
        "parameters": last,
    }


def flops(config: RunConfig, tokens: float, convention: Convention = "exact") -> float:
    """Training FLOPs of the first `tokens` of a run's path."""
    before, after = _shares(config)
    first = min(tokens, config.prelude_steps * config.tokens_per_step)
    return _full(config, convention) * (first * before + (tokens - first) * after)


def learning_parameters(config: RunConfig) -> int:
    """The most parameters that learn at once in a run."""
    return max(cost.parameters for cost in costs(config))


def teacher_parameters(config: RunConfig) -> int:
    """Parameters of the second model that is in memory in some stage; 0 where there is none."""
    return max(cost.teacher_parameters for cost in costs(config))


def _full(config: RunConfig, convention: Convention) -> float:
    return train_flops_per_token(config.model, config.data.sequence_length, convention)["total"]


def _shares(config: RunConfig) -> tuple[float, float]:
    """Cost of a token before the schedule, and after it began, as shares of ordinary training's."""
    ordinary = ordinary_cost(config).flops
    *first, last = costs(config)
    steps = config.prelude_steps
    mean = sum(
        cost.flops * stage.steps for cost, stage in zip(first, config.objectives, strict=False)
    ) / max(1, steps)
    return mean / ordinary, last.flops / ordinary

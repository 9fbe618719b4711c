"""Training FLOPs and learning parameters of a linearization's stages, as closed forms.

With F the forward FLOPs of a term (`models.accounting`, `exact` convention), a token costs

    transfer    the teacher's F, without the head, and 3 x the F of feature maps and new attentions
    lora        3 F of the attention products, 2 F of everything else, whose weights are frozen,
                and 6 FLOPs for each parameter of the low-rank additions
    full        3 F, as in any run

The frozen first layer's share of the backward pass is counted though autograd leaves it out. The
`paper` convention has no row for these stages; it is scaled by the same ratio.
"""

from __future__ import annotations

from typing import TypedDict

from models.accounting import (
    Convention,
    forward_flops_per_token,
    mean_keys,
    parameters,
    train_flops_per_token,
)
from models.config import ModelConfig
from scaling.config import RunConfig


class Stages(TypedDict):
    """What accounting.json says of a run that starts from a teacher."""

    transfer_tokens: int
    transfer_flops_per_token: dict[str, float]
    flops_per_token: dict[str, float]
    transfer_parameters: int
    parameters: int


def stages(config: RunConfig) -> Stages:
    """Tokens, FLOPs per token (by convention) and learning parameters of stage 1 and after it."""
    transfer, after = _flops(config)
    full = {c: train_flops_per_token(config.model, config.data.sequence_length, c)["total"]
            for c in ("exact", "paper")}  # fmt: skip
    rank = config.linearize.lora_rank
    groups = parameters(config.model)
    return {
        "transfer_tokens": config.transfer_steps * config.tokens_per_step,
        "transfer_flops_per_token": {c: f * transfer for c, f in full.items()},
        "flops_per_token": {c: f * after for c, f in full.items()},
        "transfer_parameters": groups["feature_map"] if config.transfer_steps else 0,
        "parameters": lora_parameters(config.model, rank) if rank else sum(groups.values()),
    }


def flops(config: RunConfig, tokens: float, convention: Convention = "exact") -> float:
    """Training FLOPs of the first `tokens` of a run's path."""
    full = train_flops_per_token(config.model, config.data.sequence_length, convention)["total"]
    if not config.linearize.teacher:
        return tokens * full
    transfer, after = _flops(config)
    first = min(tokens, config.transfer_steps * config.tokens_per_step)
    return full * (first * transfer + (tokens - first) * after)


def learning_parameters(config: RunConfig) -> int:
    """The most parameters that learn at once in a run."""
    counted = stages(config) if config.linearize.teacher else None
    if counted is None:
        return sum(parameters(config.model).values())
    return max(counted["transfer_parameters"], counted["parameters"])


def lora_parameters(model: ModelConfig, rank: int) -> int:
    """Parameters of low-rank additions to q, k, v and o of every layer: rank x (in + out)."""
    queries, keys = model.heads * model.head_dim, model.key_value_heads * model.head_dim
    outputs = ((model.dim, queries), (model.dim, keys), (model.dim, keys), (queries, model.dim))
    return model.layers * rank * sum(a + b for a, b in outputs)


def _flops(config: RunConfig) -> tuple[float, float]:
    """Cost of a token in stage 1 and after it, as shares of an ordinary training token's."""
    model, length = config.model, config.data.sequence_length
    keys = mean_keys(model, length)
    near = 0.0 if model.lolcats is None else model.lolcats.mean_seen(length)
    forward = forward_flops_per_token(model, keys, near)
    ordinary = 3 * sum(forward.values())
    kept = 4.0 * model.heads * model.head_dim * len(model.softmax_layers) * keys
    teacher = forward_flops_per_token(
        model.replace(arch="llama", supra=None, lolcats=None, decay_slopes="alibi"), keys
    )
    transfer = (
        sum(teacher.values())
        - teacher["head"]
        + 3 * (forward["attention"] - kept + forward["feature_map"])
    )
    rank = config.linearize.lora_rank
    if not rank:
        return transfer / ordinary, 1.0
    after = 2 * sum(forward.values()) + forward["attention"] + 6 * lora_parameters(model, rank)
    return transfer / ordinary, after / ordinary

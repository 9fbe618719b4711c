"""Training FLOPs and learning parameters of a linearization's stages, as closed forms.

With F the forward FLOPs of a term (`models.accounting`, `exact` convention), a token costs

    transfer    the teacher's F, without the head, and 3 x the F of feature maps and new attentions
    matrices    the teacher's F, without the head, and the T x T matrices of both, 1 + 3 x
    hidden      2 x the teacher's F and 3 x the student's, without the heads
    lora        3 F of the attention products, 2 F of everything else, whose weights are frozen,
                and 6 FLOPs for each parameter of the low-rank additions
    full        3 F, as in any run
    on logits   in `lora` and `full` the teacher's F as well

The frozen first layer's share of the backward pass is counted though autograd leaves it out;
fitting outputs is not counted. The `paper` convention has no row for these stages; it is scaled by
the same ratio. Stages that align layers are recorded together, as `transfer`: their tokens, and
their mean cost of a token.
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
from models.architecture import Options
from models.architectures.llama import LlamaBased, key_value_heads
from models.config import ModelConfig
from scaling.config.linearize import Alignment
from scaling.config.run import RunConfig


class Stages(TypedDict):
    """What accounting.json says of a run that starts from a teacher."""

    transfer_tokens: int
    transfer_flops_per_token: dict[str, float]
    flops_per_token: dict[str, float]
    transfer_parameters: int
    parameters: int


def stages(config: RunConfig) -> Stages:
    """Tokens, FLOPs per token (by convention) and learning parameters of the aligning stages
    together (`transfer`), and of what follows."""
    transfer, after = _flops(config)
    full = {c: train_flops_per_token(config.model, config.data.sequence_length, c)["total"]
            for c in ("exact", "paper")}  # fmt: skip
    rank = config.linearize.lora_rank
    groups = parameters(config.model)
    return {
        "transfer_tokens": config.alignment_steps * config.tokens_per_step,
        "transfer_flops_per_token": {c: f * transfer for c, f in full.items()},
        "flops_per_token": {c: f * after for c, f in full.items()},
        "transfer_parameters": max(
            (_aligned_parameters(config.model, name) for name, _ in config.alignment), default=0
        ),
        "parameters": lora_parameters(config.model, rank) if rank else sum(groups.values()),
    }


def flops(config: RunConfig, tokens: float, convention: Convention = "exact") -> float:
    """Training FLOPs of the first `tokens` of a run's path."""
    full = train_flops_per_token(config.model, config.data.sequence_length, convention)["total"]
    if not config.linearize.teacher:
        return tokens * full
    transfer, after = _flops(config)
    first = min(tokens, config.alignment_steps * config.tokens_per_step)
    return full * (first * transfer + (tokens - first) * after)


def learning_parameters(config: RunConfig) -> int:
    """The most parameters that learn at once in a run."""
    counted = stages(config) if config.linearize.teacher else None
    if counted is None:
        return sum(parameters(config.model).values())
    return max(counted["transfer_parameters"], counted["parameters"])


def _aligned_parameters(model: ModelConfig, stage: Alignment) -> int:
    """Parameters that learn in a stage that aligns layers."""
    if stage == "transfer":
        return parameters(model)["feature_map"]
    from models.language_model import build
    from scaling.linearization.stages import learns

    named = build(model, device="meta").named_parameters()
    return sum(p.numel() for name, p in named if learns(name, stage, model))


def teacher_parameters(config: RunConfig) -> int:
    """Parameters of the teacher where it is in memory as a second model; 0 where it is not."""
    asks = config.linearize.teacher and config.linearize.asks_teacher
    return sum(parameters(_teacher(config.model)).values()) if asks else 0


def lora_parameters(model: ModelConfig, rank: int) -> int:
    """Parameters of low-rank additions to q, k, v and o of every layer: rank x (in + out)."""
    queries, keys = model.heads * model.head_dim, key_value_heads(model) * model.head_dim
    outputs = ((model.dim, queries), (model.dim, keys), (model.dim, keys), (queries, model.dim))
    return model.layers * rank * sum(a + b for a, b in outputs)


def _flops(config: RunConfig) -> tuple[float, float]:
    """Cost of a token in the aligning stages, and after them, as shares of ordinary training's."""
    model, length = config.model, config.data.sequence_length
    keys = mean_keys(length)
    forward = forward_flops_per_token(model, keys)
    ordinary = 3 * sum(forward.values())
    teacher = forward_flops_per_token(_teacher(model), keys)
    ahead = sum(teacher.values()) - teacher["head"]
    kept = teacher["attention"] * len(model.softmax_layers) / model.layers
    new = forward["attention"] - kept + forward["feature_map"]
    stages = {
        "transfer": ahead + 3 * new,
        "matrices": ahead + _matrix_flops(model, length) + 3 * _matrix_flops(model, length),
        "hidden": 2 * ahead + 3 * (sum(forward.values()) - forward["head"]),
    }
    steps = dict(config.alignment) or {"transfer": 1}
    aligning = sum(stages[name] * count for name, count in steps.items()) / sum(steps.values())
    rank = config.linearize.lora_rank
    after = ordinary
    if rank:
        after = 2 * sum(forward.values()) + forward["attention"] + 6 * lora_parameters(model, rank)
    if config.linearize.temperature:
        after += sum(teacher.values())
    return aligning / ordinary, after / ordinary


def _teacher(model: ModelConfig) -> ModelConfig:
    """The transformer of a student; of a TNL and its kin as if it had as many key-value heads, and
    a head of its own."""
    options = model.options
    llama = options.llama if isinstance(options, LlamaBased) else Options()
    return model.replace(arch="llama", options=llama)


def _matrix_flops(model: ModelConfig, length: int) -> float:
    """Of the mixing matrices of all layers and a token, forward: T products of K channels a head,
    twice (kernels get the T unit vectors as values), and the projections of q and k."""
    width = model.heads * model.head_dim
    layers = model.layers - len(model.softmax_layers)
    return layers * (4.0 * length * width + 4.0 * model.dim * width)

"""What a sweep will cost, before anything is trained: pure functions from configurations.

1. `tokens_for_flops`, `tokens_for_ratio`: token budgets for equal compute or for a number of
   tokens per parameter, with each architecture's own accounting.
2. `learning_rate`, `batch_tokens`: published hyper-parameter laws, by name.
3. `memory`: bytes per device for one run; `rung`: the row that `linscale plan` shows.

Estimates are labelled as such. Memory counts fp32 weights, gradients and both Adam moments
(16 bytes a parameter) shared by the devices of a rung, bf16 copies of one block's weights, and
the activations of one micro-batch with activation checkpointing at every block: the block inputs
of all layers, the activations inside one block, and the logits of one loss chunk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from models.accounting import (
    Convention,
    non_embedding_parameters,
    parameters,
    state_bytes,
    train_flops_per_token,
)
from models.config import ConfigError, ModelConfig
from scaling.config import RunConfig
from scaling.devices import GIB, Device

Law = Literal["deepseek", "step"]
LAWS: tuple[Law, ...] = get_args(Law)


def tokens_for_flops(
    model: ModelConfig, sequence_length: int, flops: float, convention: Convention = "exact"
) -> int:
    """Tokens that `flops` of training compute buy with this model: D = C / (FLOPs per token)."""
    return math.floor(flops / train_flops_per_token(model, sequence_length, convention)["total"])


def tokens_for_ratio(model: ModelConfig, tokens_per_parameter: float) -> int:
    """Tokens for a number of tokens per non-embedding parameter (20: Hoffmann et al. 2022)."""
    return math.floor(tokens_per_parameter * non_embedding_parameters(model))


def isoflop_horizons(
    model: ModelConfig,
    sequence_length: int,
    budgets: Sequence[float],
    tokens_per_parameter: tuple[float, float] = (5.0, 100.0),
) -> tuple[int, ...]:
    """The token budgets of one model on the IsoFLOP profiles of several compute budgets.

    Args:
        model: candidate for the profiles.
        sequence_length: tokens in a training sequence.
        budgets: compute of the profiles in increasing order, FLOPs, `exact` convention.
        tokens_per_parameter: profiles where the model's budget falls outside this range (per
            non-embedding parameter) are left out.

    Returns:
        Tokens, in increasing order; empty when the model serves no profile.
    """
    low, high = tokens_per_parameter
    size = non_embedding_parameters(model)
    tokens = (tokens_for_flops(model, sequence_length, flops) for flops in budgets)
    return tuple(t for t in tokens if low <= t / size <= high)


def learning_rate(law: Law, parameters_: int, tokens: int, flops: float) -> float:
    """Peak learning rate by a published law.

    `deepseek`: 0.3118 C^-0.1250 (arXiv 2401.02954, eq. 1). `step`: 1.79 N^-0.713 D^0.307 (Step
    Law, arXiv 2503.04715), N without embeddings. Both were fitted on softmax transformers.
    """
    if law == "deepseek":
        return 0.3118 * flops**-0.1250
    return 1.79 * parameters_**-0.713 * tokens**0.307


def batch_tokens(law: Law, tokens: int, flops: float) -> float:
    """Batch in tokens by a published law: `deepseek` 0.2920 C^0.3271, `step` 0.58 D^0.571."""
    return 0.2920 * flops**0.3271 if law == "deepseek" else 0.58 * tokens**0.571


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Estimated bytes on one device."""

    states: float
    """Weights, gradients and optimizer moments, sharded over the devices."""
    activations: float
    """One micro-batch, with checkpointing at every block."""
    devices: int
    """Devices that the states are sharded over."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.states + self.activations


LOSS_CHUNK_TOKENS = 4096


def memory(run: RunConfig, devices: int) -> Memory:
    """Estimated bytes per device for `run` on `devices` devices (see the module docstring)."""
    model, data = run.model, run.data
    groups = parameters(model)
    total = sum(groups.values())
    micro = run.parallel.micro_batch_sequences or 1
    tokens = micro * data.sequence_length
    block_inputs = 4 * model.layers * model.dim * tokens
    # One block: q, k, v, o, gate, norms and residuals at 2 or 4 bytes (about 24 d), GLU 3 g x 2.
    inside = (24 * model.dim + 6 * model.glu_dim) * tokens
    block_weights = 2 * (total - groups["embedding"] - groups["head"]) / model.layers
    logits = 8 * min(LOSS_CHUNK_TOKENS, tokens) * model.vocab_size
    chunk_states = state_bytes(model, 1) / model.layers * tokens / 128
    return Memory(
        states=16 * total / devices,
        activations=block_inputs + inside + block_weights + logits + chunk_states,
        devices=devices,
    )


def devices_needed(run: RunConfig, device: Device, limit: int = 4096) -> int:
    """The smallest power of two of devices whose memory holds the run, its states sharded.

    Raises:
        ConfigError: the activations of one micro-batch alone do not fit.
    """
    devices = max(1, run.parallel.devices)
    while devices <= limit:
        if memory(run, devices).total <= 0.92 * device.memory:
            return devices
        devices *= 2
    need = memory(run, limit).activations / GIB
    raise ConfigError(
        f"{run.name}: one micro-batch of {run.parallel.micro_batch_sequences or 1} x "
        f"{run.data.sequence_length} tokens needs about {need:.0f} GiB of activations and "
        f"{device.name} has {device.memory / GIB:.0f} GiB; lower "
        "parallel.micro_batch_sequences or data.sequence_length."
    )


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One row of a plan."""

    run_id: str
    arch: str
    size: str
    params: int
    """Non-embedding parameters, `paper` convention."""
    params_exact: int
    """Non-embedding parameters of the built model."""
    params_total: int
    """All parameters."""
    params_by_group: dict[str, int]
    tokens: int
    """Budget rounded to whole steps."""
    horizons: list[int]
    """Tokens of each milestone."""
    steps: int
    """Optimizer steps of the longest path."""
    batch_tokens: int
    lr: float
    flops_per_token: float
    """Training FLOPs, `exact` convention."""
    flops_per_step_pf: float
    """PFLOPs a step, `paper` convention."""
    flops: float
    """Training FLOPs of all segments, decay branches included, `exact` convention."""
    devices: int
    """Devices that the estimate shards over."""
    memory_per_device: float
    """Estimated bytes."""
    device_hours: float
    """Estimated hours of one device, all segments."""
    state: str
    """State in the run record, `planned` when there is none."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def trained_tokens(run: RunConfig) -> int:
    """Tokens of all segments: the trunk once, and every decay branch off it."""
    steps = run.steps
    if run.schedule.kind == "wsd":
        # The last horizon's decay is part of the longest path.
        steps += sum(run.decay_steps(h) for h in run.horizon_steps[:-1])
    return steps * run.tokens_per_step


def rung(run: RunConfig, device: Device, state: str = "planned") -> Rung:
    """The plan of one run on one kind of device."""
    model, length = run.model, run.data.sequence_length
    groups = parameters(model)
    exact = train_flops_per_token(model, length)["total"]
    paper = train_flops_per_token(model, length, "paper")["total"]
    devices = devices_needed(run, device)
    flops = exact * trained_tokens(run)
    return Rung(
        run_id=run.run_id,
        arch=model.arch,
        size=run.size,
        params=non_embedding_parameters(model, "paper"),
        params_exact=non_embedding_parameters(model),
        params_total=sum(groups.values()),
        params_by_group=groups,
        tokens=run.steps * run.tokens_per_step,
        horizons=[h * run.tokens_per_step for h in run.horizon_steps],
        steps=run.steps,
        batch_tokens=run.tokens_per_step,
        lr=run.optim.lr,
        flops_per_token=exact,
        flops_per_step_pf=paper * run.tokens_per_step / 1e15,
        flops=flops,
        devices=devices,
        memory_per_device=memory(run, devices).total,
        device_hours=flops / (device.peak_flops * device.efficiency) / 3600,
        state=state,
    )

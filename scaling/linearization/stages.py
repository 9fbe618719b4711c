"""The stages of a linearization: what learns, by which loss, and what is kept of it.

    transfer    attention transfer: feature maps and window factors (`models.linearize.transfer`)
    matrices    mixing matrices: token mixers without their outputs (`models.linearize.distill`)
    hidden      block outputs: everything in the blocks (`models.linearize.distill`)
    lora        low-rank additions to q, k, v and o (`models.linearize.lora`)
    full        all weights, as in any run

The loss of `lora` and `full` is that of the text, or with `linearize.temperature` the divergence
from the teacher's next-token distribution.

A resume checkpoint holds low-rank additions apart; a milestone holds them merged, so that it is an
ordinary model for whoever reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Literal, cast

import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.language_model import LanguageModel
from models.linearize.distill import distillation_loss, hidden_losses, matrix_losses
from models.linearize.lora import LoRALinear, add_lora, merge_lora, merged_weight
from models.linearize.transfer import attention_transfer_loss, freeze_for_transfer
from scaling.config.linearize import Alignment
from scaling.config.parts import OptimConfig
from scaling.config.run import RunConfig
from scaling.config.schedule import Segment
from scaling.training import fsdp
from scaling.training.objective import Batch

Stage = Alignment | Literal["lora", "full"]


def stage(config: RunConfig, segment: Segment) -> Stage:
    """What a segment of a run trains."""
    if segment.is_alignment:
        return cast(Alignment, segment.name)
    return "lora" if config.linearize.lora_rank else "full"


def learns(name: str, stage: Stage, model: ModelConfig) -> bool:
    """Whether a parameter learns while mixing matrices or hidden states are aligned.

    All that the stage's loss reaches does: neither embedding, last norm and head nor cosFormer2's
    Toeplitz encoding, and in `matrices` nothing that comes after the values are mixed.
    """
    part, _, rest = name.partition(".")
    if part == "stem":
        return not rest.startswith("tpe.")
    if part != "blocks" or stage == "hidden":
        return part == "blocks"
    layer, _, inside = rest.partition(".")
    mixes = inside.startswith("mixer.") and not inside.startswith(("mixer.out.", "mixer.gate."))
    return int(layer) not in model.softmax_layers and (mixes or inside.startswith("mixer_norm."))


def enter(net: LanguageModel, config: RunConfig, segment: Segment) -> None:
    """Let those parameters learn that the segment trains.

    Low-rank additions that the net does not have yet are drawn from torch's global random state.
    """
    match entered := stage(config, segment):
        case "transfer":
            freeze_for_transfer(net)
        case "matrices" | "hidden":
            for name, parameter in net.named_parameters():
                parameter.requires_grad_(learns(name, entered, config.model))
        case "lora":
            if not _has_lora(net):
                add_lora(net, config.linearize.lora_rank, config.linearize.lora_alpha)
        case "full" if config.alignment_steps:
            net.requires_grad_(True)
        case _:
            pass


def asks_teacher(config: RunConfig, segment: Segment) -> bool:
    """Whether the loss of a segment needs the teacher as a second model."""
    if segment.is_alignment:
        return segment.name != "transfer"
    return bool(config.linearize.temperature)


def changes(config: RunConfig) -> frozenset[int]:
    """Steps from which on other parameters learn than before: after each aligning stage."""
    ends = accumulate(steps for _, steps in config.alignment)
    return frozenset((0, *ends))


def starts_with_lora(config: RunConfig) -> bool:
    """Whether low-rank additions learn from the first step on, so that the net is built with them.

    FSDP shares out what is there when the net is built.
    """
    return bool(config.linearize.lora_rank) and not config.alignment_steps


def match_lora(net: LanguageModel, config: RunConfig, weights: Mapping[str, Tensor]) -> None:
    """Give the net low-rank additions where a checkpoint has them, and take them where not."""
    wanted = any(name.endswith(".mixer.qkv.down") for name in weights)
    if wanted and not _has_lora(net):
        add_lora(net, config.linearize.lora_rank, config.linearize.lora_alpha)
    elif _has_lora(net) and not wanted:
        merge_lora(net)


def optim(config: RunConfig, segment: Segment) -> OptimConfig:
    """The optimizer of a segment: aligning layers knows neither weight decay nor clipping."""
    if segment.is_alignment:
        return replace(config.optim, weight_decay=0.0, clip_norm=None)
    return config.optim


def layer_losses(
    net: LanguageModel, teacher: LanguageModel | None, config: RunConfig, stage: str, batch: Batch
) -> Tensor:
    """Loss of each layer that a stage aligns, (layers,); the objective is their mean.

    Args:
        net: the student.
        teacher: of all stages but `transfer`, which has it in the student's weights.
        config: the run.
        stage: one of `ALIGNMENTS`.
        batch: of the run's data.
    """
    tokens, packing = _inputs(batch)
    if stage == "transfer":
        factor = config.linearize.cross_entropy
        return attention_transfer_loss(net, tokens, *packing, cross_entropy=factor)
    assert teacher is not None
    if stage == "matrices":
        return torch.stack([loss for _, loss in matrix_losses(net, teacher, tokens)])
    return torch.stack([loss for _, loss in hidden_losses(net, teacher, tokens, *packing)])


def distillation(
    net: LanguageModel, teacher: LanguageModel, config: RunConfig, batch: Batch
) -> Tensor:
    """Divergence from the teacher's next-token distribution, a scalar in nats."""
    tokens, packing = _inputs(batch)
    temperature, hard = config.linearize.temperature, config.linearize.hard
    targets = batch[1].reshape(tokens.shape)
    return distillation_loss(
        net, teacher, tokens, targets, *packing, temperature=temperature, hard=hard
    )


def _inputs(batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """Tokens, and the boundaries of packed rows, which become one."""
    tokens, _, *packing = batch
    return (tokens.reshape(1, -1) if packing else tokens), packing


@torch.no_grad()
def merged_weights(net: LanguageModel) -> dict[str, Tensor]:
    """The weights by name, low-rank additions added to their matrices; the net stays as it is.

    All ranks of a sharded model must call it; rank 0 gets them.
    """
    weights = fsdp.whole_weights(net)
    for name, module in net.named_modules():
        if weights and isinstance(module, LoRALinear):
            ups = [weights.pop(f"{name}.up.{i}") for i in range(len(module.up))]
            down = weights.pop(f"{name}.down")
            weights[f"{name}.weight"] = merged_weight(
                weights[f"{name}.weight"], down, ups, module.scale
            )
    return weights


def _has_lora(net: nn.Module) -> bool:
    return any(isinstance(module, LoRALinear) for module in net.modules())

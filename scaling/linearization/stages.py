"""The stages of a linearization: what learns, by which loss, and what is kept of it.

    transfer    attention transfer: feature maps and window factors (`models.linearize.transfer`)
    lora        low-rank additions to q, k, v and o (`models.linearize.lora`)
    full        all weights, as in any run

A resume checkpoint holds low-rank additions apart; a milestone holds them merged, so that it is an
ordinary model for whoever reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from models.language_model import LanguageModel
from models.linearize.lora import LoRALinear, add_lora, merge_lora
from models.linearize.transfer import attention_transfer_loss, freeze_for_transfer
from scaling import fsdp
from scaling.config import RunConfig
from scaling.losses import Batch
from scaling.parts import OptimConfig
from scaling.schedule import Segment

Stage = Literal["transfer", "lora", "full"]


def stage(config: RunConfig, segment: Segment) -> Stage:
    """What a segment of a run trains."""
    if segment.is_transfer:
        return "transfer"
    return "lora" if config.linearize.lora_rank else "full"


def enter(net: LanguageModel, config: RunConfig, segment: Segment) -> None:
    """Let those parameters learn that the segment trains.

    Low-rank additions that the net does not have yet are drawn from torch's global random state.
    """
    match stage(config, segment):
        case "transfer":
            freeze_for_transfer(net)
        case "lora":
            if not _has_lora(net):
                add_lora(net, config.linearize.lora_rank, config.linearize.lora_alpha)
        case "full" if config.transfer_steps:
            net.requires_grad_(True)
        case _:
            pass


def match_lora(net: LanguageModel, config: RunConfig, weights: Mapping[str, Tensor]) -> None:
    """Give the net low-rank additions where a checkpoint has them, and take them where not."""
    wanted = any(name.endswith(".mixer.qkv.down") for name in weights)
    if wanted and not _has_lora(net):
        add_lora(net, config.linearize.lora_rank, config.linearize.lora_alpha)
    elif _has_lora(net) and not wanted:
        merge_lora(net)


def optim(config: RunConfig, segment: Segment) -> OptimConfig:
    """The optimizer of a segment: stage 1 knows neither weight decay nor clipping."""
    if segment.is_transfer:
        return replace(config.optim, weight_decay=0.0, clip_norm=None)
    return config.optim


def transfer_losses(net: LanguageModel, config: RunConfig, batch: Batch) -> Tensor:
    """Loss of each linearized layer in stage 1, (layers,)."""
    tokens, _, *packing = batch
    if packing:
        tokens = tokens.reshape(1, -1)
    factor = config.linearize.cross_entropy
    return attention_transfer_loss(net, tokens, *packing, cross_entropy=factor)


@torch.no_grad()
def merged_weights(net: LanguageModel) -> dict[str, Tensor]:
    """The weights by name, low-rank additions added to their matrices; the net stays as it is."""
    weights = fsdp.whole_weights(net)
    for name, module in net.named_modules():
        if isinstance(module, LoRALinear):
            for part in [key for key in weights if key.startswith((f"{name}.down", f"{name}.up."))]:
                del weights[part]
            weights[f"{name}.weight"] = module.merged().weight.detach()
    return weights


def trained(net: nn.Module) -> int:
    """Parameters that learn."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def _has_lora(net: nn.Module) -> bool:
    return any(isinstance(module, LoRALinear) for module in net.modules())

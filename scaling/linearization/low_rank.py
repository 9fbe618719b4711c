"""Low-rank additions of a run's model: put on, matched to a checkpoint, merged for a milestone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.language_model import LanguageModel
from models.linearize.lora import LoRALinear, add_lora, merge_lora, merged_weight
from scaling.config.linearize import LinearizeConfig
from scaling.training import fsdp


def add(net: LanguageModel, config: LinearizeConfig) -> None:
    """Put the run's additions on a net that has none, drawn from torch's global random state; they
    alone learn then."""
    if not _has_any(net):
        add_lora(net, config.lora_rank, config.lora_alpha)


def match(net: LanguageModel, weights: Mapping[str, Tensor], config: LinearizeConfig) -> None:
    """Give the net additions where a checkpoint has them, and take them where it has none."""
    if any(name.endswith(".mixer.qkv.down") for name in weights):
        add(net, config)
    elif _has_any(net):
        merge_lora(net)


@torch.no_grad()
def merged_weights(net: LanguageModel) -> dict[str, Tensor]:
    """The weights by name, additions added to their matrices; the net stays as it is.

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


def _has_any(net: nn.Module) -> bool:
    return any(isinstance(module, LoRALinear) for module in net.modules())

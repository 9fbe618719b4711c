"""Low-rank adaptation of the attention projections (LoRA, arXiv 2106.09685).

    y = W x + (alpha / r) U D x,   D (r x in) uniform as a linear layer's weight, U (out x r) zero

LoLCATs' second stage trains these alone, on q, k, v and o, with r = 8, alpha = 16, no dropout and a
learning rate of 1e-4 (arXiv 2410.10254 and the authors' configurations). q, k and v are one matrix
here and get a pair (D, U) each, as they would apart; that is why this is not the `peft` package,
whose LoRA would tie the three. A merged model is an ordinary one again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import ConfigError
from models.language_model import LanguageModel
from models.llama import SoftmaxAttention


class LoRALinear(nn.Linear):
    """A linear layer, frozen, with a low-rank addition to each of several groups of its outputs."""

    def __init__(self, base: nn.Linear, outputs: list[int], rank: int, alpha: float) -> None:
        """Takes over the tensors of `base`; `outputs` are the rows of each group."""
        with torch.device("meta"):
            super().__init__(base.in_features, base.out_features, bias=base.bias is not None)
        self.weight, self.bias = base.weight, base.bias
        self.rank, self.scale = rank, alpha / rank
        fresh = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.down = nn.Parameter(torch.empty(len(outputs) * rank, base.in_features, **fresh))
        self.up = nn.ParameterList(torch.empty(size, rank, **fresh) for size in outputs)
        self.reset_lora()

    def reset_lora(self) -> None:
        """Start anew: the addition is zero."""
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        for up in self.up:
            nn.init.zeros_(up)

    def forward(self, input: Tensor) -> Tensor:
        low = F.linear(input, self.down).split(self.rank, dim=-1)
        added = [F.linear(part, up) for part, up in zip(low, self.up, strict=True)]
        return super().forward(input) + self.scale * torch.cat(added, -1)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """An ordinary linear layer with the same outputs."""
        with torch.device("meta"):
            plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        merged = merged_weight(self.weight, self.down, list(self.up), self.scale)
        plain.weight = nn.Parameter(merged)
        plain.bias = self.bias
        return plain.requires_grad_(True)


def merged_weight(weight: Tensor, down: Tensor, ups: Sequence[Tensor], scale: float) -> Tensor:
    """W + (alpha / r) U D of all groups of outputs, (out, in)."""
    parts = [up @ part for up, part in zip(ups, down.split(len(down) // len(ups)), strict=True)]
    return weight + scale * torch.cat(parts)


def add_lora(model: LanguageModel, rank: int = 8, alpha: float = 16.0) -> list[nn.Parameter]:
    """Freeze a model and put LoRA on q, k, v and o of every layer, in place.

    Args:
        model: a LLaMA or a linearized one.
        rank: r.
        alpha: the addition is scaled by alpha / r.

    Returns:
        The parameters that learn.

    Raises:
        ConfigError: the rank is not positive, or a layer has other projections or LoRA already.
    """
    if rank < 1:
        raise ConfigError(f"rank={rank}: must be at least 1.")
    mixers = [block.mixer for block in model.blocks]
    for layer, mixer in enumerate(mixers):
        if not isinstance(mixer, SoftmaxAttention) or isinstance(mixer.qkv, LoRALinear):
            raise ConfigError(
                f"layer {layer} of model.arch={model.config.arch!r} cannot take LoRA: it needs q, "
                "k, v and o projections without LoRA; linearize a llama model, or merge first."
            )
    model.requires_grad_(False)
    learning: list[nn.Parameter] = []
    for mixer in cast(list[SoftmaxAttention], mixers):
        size = mixer.head_dim
        rows = [mixer.heads * size, mixer.kv_heads * size, mixer.kv_heads * size]
        mixer.qkv = LoRALinear(mixer.qkv, rows, rank, alpha)
        mixer.out = LoRALinear(mixer.out, [mixer.out.out_features], rank, alpha)
        for part in (mixer.qkv, mixer.out):
            learning.extend((part.down, *part.up))
    return learning


def merge_lora(model: LanguageModel) -> None:
    """Add every low-rank part to its matrix, in place; all parameters require gradients again."""
    for block in model.blocks:
        mixer = block.mixer
        if isinstance(mixer, SoftmaxAttention):
            for name in ("qkv", "out"):
                if isinstance(part := getattr(mixer, name), LoRALinear):
                    setattr(mixer, name, part.merged())
    model.requires_grad_(True)

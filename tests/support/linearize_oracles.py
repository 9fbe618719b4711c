"""Tiny teachers and the dense formula of LoLCATs, for the tests of this folder."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from models.architectures.llama import key_value_heads
from models.config import ModelConfig, toy_config
from models.language_model import LanguageModel, build
from models.linearize.lolcats import HybridAttention
from models.rope import rotary_angles, rotate
from tests.support.model_variants import vary


def teacher_config(**changes: object) -> ModelConfig:
    config = toy_config("llama", 32, vocab_size=61, layers=3, head_dim=8)
    return vary(config, **{"kv_heads": 2, "init_std": 0.3, **changes})


def teacher(dtype: torch.dtype = torch.float64, **changes: object) -> LanguageModel:
    torch.manual_seed(0)
    return build(teacher_config(**changes), dtype=dtype)


def tokens(batch: int, length: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 61, (batch, length))


def mixer(model: LanguageModel, layer: int) -> nn.Module:
    return cast(nn.Module, model.blocks[layer].mixer)


def dense_lolcats(
    attention: HybridAttention, x: Tensor, config: ModelConfig, reads: str = "both"
) -> Tensor:
    """The paper's formula, one query and one key at a time; with sinks, and with one part alone."""
    options, size = attention.options, config.head_dim
    assert options is not None
    positions = torch.arange(x.shape[1])[None]
    cos, sin = rotary_angles(config, positions, positions[:, -1:] + 1, x.dtype)
    width = config.heads * size, key_value_heads(config) * size, key_value_heads(config) * size
    q, k, v = (p.unflatten(-1, (-1, size)) for p in attention.qkv(x).split(width, -1))
    group = config.heads // key_value_heads(config)
    q, few = rotate(q, cos, sin), rotate(k, cos, sin)
    k, v = few.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    q_map, factor = attention.query_map(q), attention.factor()
    if options.shared_state:
        k_map = attention.key_map(few).repeat_interleave(group, 2)
    else:
        k_map = attention.key_map(k)
    out = torch.zeros_like(q)
    for h in range(config.heads):
        for t in range(x.shape[1]):
            if options.arrangement == "terraced":
                first = max(0, (t // options.window - 1) * options.window)
            else:
                first = max(0, t - options.window + 1)
            sinks = list(range(min(options.sink_tokens, first)))
            beyond = [s for s in range(first) if s not in sinks]
            window = [*sinks, *range(first, t + 1)]
            scores = (q[:, t, None, h] * k[:, window, h]).sum(-1) / size**0.5
            near = factor[h] * (scores - scores.max(-1, keepdim=True).values).exp()
            far = (q_map[:, t, None, h] * k_map[:, beyond, h]).sum(-1)
            far = far * (1 - factor[h] if options.affine else 1)
            if reads == "window":
                far = 0 * far
            if reads == "past":
                near = 0 * near
            weights = torch.cat((far, near), 1)
            sums = (weights[..., None] * v[:, beyond + window, h]).sum(1)
            mass = weights.sum(1, keepdim=True)
            out[:, t, h] = sums / torch.where(mass > 0, mass, 1)
    return attention.out(out.flatten(-2))

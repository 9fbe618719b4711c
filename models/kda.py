"""Kimi Delta Attention (arXiv 2510.26692): the delta rule with one decay a key channel.

    decay = -A softplus(X W_down W_up + b), a channel        gate = sigmoid(X W_down' W_up' + b')

with both low ranks the value channels of a head. All else is in `models.delta_mixer`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.decay_gate import DecayGate
from models.delta_mixer import DeltaMixer


class LowRank(nn.Module):
    """x W_down W_up (+ b)."""

    def __init__(self, dim: int, rank: int, out: int, bias: bool) -> None:
        super().__init__()
        self.down = nn.Linear(dim, rank, bias=False)
        self.up = nn.Linear(rank, out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


class KimiDeltaAttention(DeltaMixer):
    """One decay a token, head and key channel."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        dim, rank = config.dim, self.values
        self.rate = LowRank(dim, rank, self.heads * self.keys, bias=False)
        self.decay = DecayGate(self.heads, self.keys)
        self.gate = LowRank(dim, rank, self.heads * self.values, bias=True)

    def decays(self, x: Tensor) -> Tensor:
        return self.decay(self.rate(x))

    def output_gate(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.gate(x))

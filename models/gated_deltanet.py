"""Gated DeltaNet (arXiv 2412.06464): the delta rule with one data-dependent decay a head.

    decay = -A softplus(X W_a + b), a head        gate = silu(X W_g)

All else is in `models.delta_mixer`. Keys are 3/4 d wide in all and values twice that, which makes
6 d^2 weights a layer.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from models.config import ModelConfig
from models.decay_gate import DecayGate
from models.delta_mixer import DeltaMixer


class GatedDeltaNet(DeltaMixer):
    """One decay a token and head."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.rate = nn.Linear(config.dim, self.heads, bias=False)
        self.decay = DecayGate(self.heads, rates=(0, 16))
        self.gate = nn.Linear(config.dim, self.heads * self.values, bias=False)

    def decays(self, x: Tensor) -> Tensor:
        return self.decay(self.rate(x))

    def output_gate(self, x: Tensor) -> Tensor:
        return F.silu(self.gate(x))

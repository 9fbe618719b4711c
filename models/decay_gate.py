"""Decays that depend on the token: log decay = -A softplus(x + b), A = exp(log_rate) a head.

Mamba-2's parametrisation (arXiv 2405.21060), which Gated DeltaNet (2412.06464) uses for one decay a
head and Kimi Delta Attention (2510.26692) for one a channel. A starts uniform between two bounds;
softplus(b), the step of a token without input, log-uniform between 0.001 and 0.1. So a fresh
model's memory reaches from a token or so to thousands.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import FullPrecision

_STEPS = (1e-3, 0.1)
"""Bounds of softplus(b) at the start."""


class DecayGate(FullPrecision):
    """Log decays of `heads` heads, with `channels` numbers each."""

    def __init__(self, heads: int, channels: int = 1, rates: tuple[float, float] = (1, 16)) -> None:
        super().__init__()
        self.heads, self.rates = heads, rates
        # One dimension, so that no weight decay reaches them.
        self.log_rate = nn.Parameter(torch.empty(heads))
        self.bias = nn.Parameter(torch.empty(heads * channels))

    def reset_parameters(self) -> None:
        with torch.no_grad():
            low, high = self.rates
            # No rate is 0 exactly: its logarithm would be infinite, and never learn.
            self.log_rate.uniform_(low, high).clamp_(min=1e-4).log_()
            low, high = map(math.log, _STEPS)
            step = torch.empty_like(self.bias).uniform_(low, high).exp_()
            self.bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus(bias) = step

    def steps(self, x: Tensor) -> Tensor:
        """softplus(x + b), (..., H C), in float32 or wider."""
        return F.softplus(x.to(torch.promote_types(x.dtype, torch.float32)) + self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., H C) to log decays (..., H) where C = 1, else (..., H, C)."""
        steps = self.steps(x)
        rate = self.log_rate.exp()
        if steps.shape[-1] == self.heads:
            return -rate * steps
        return -rate[:, None] * steps.unflatten(-1, (self.heads, -1))

"""GLA (arXiv 2312.06635): linear attention with a data-dependent decay per key channel.

    decay = log(sigmoid(X W_1 W_2 + b)) / 16, a channel        gate = silu(X W_r)
    Y = (Norm(linear_attention(q, k, v, decay)) * gate) W_o

q is over sqrt(K); the norm is over the channels of a head, with one weight a channel for all heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.architectures.gla import GLAOptions
from models.config import ModelConfig
from models.kernels.api import linear_attention, linear_attention_step
from models.layers import LayerState, RMSNorm, Shared, Span, TokenMixer, angle_dtype


class GatedLinearAttention(TokenMixer):
    """State `kv` (N, H, K, V), float32."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        options = config.options_as(GLAOptions)
        self.temperature = options.temperature
        self.heads, self.keys, self.values = config.heads, options.keys(config), config.head_dim
        self.widths = (self.heads * self.keys, self.heads * self.keys, config.dim)
        self.qkv = nn.Linear(config.dim, sum(self.widths), bias=False)
        self.rate_down = nn.Linear(config.dim, options.rank, bias=False)
        self.rate_up = nn.Linear(options.rank, self.heads * self.keys)
        self.gate = nn.Linear(config.dim, config.dim, bias=False)
        self.norm = RMSNorm(self.values, config.norm_eps)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k (..., H, K), v (..., H, V) and log decays (..., H, K) of x (..., d)."""
        q, k, v = (y.unflatten(-1, (self.heads, -1)) for y in self.qkv(x).split(self.widths, -1))
        logits = self.rate_up(self.rate_down(x))
        decay = F.logsigmoid(logits.to(angle_dtype(logits.dtype))) / self.temperature
        return q * self.keys**-0.5, k, v, decay.unflatten(-1, (self.heads, self.keys))

    def _finish(self, o: Tensor, x: Tensor) -> Tensor:
        return self.out(self.norm(o).flatten(-2) * F.silu(self.gate(x)))

    def forward(
        self, x: Tensor, span: Span, shared: Shared, state: LayerState | None
    ) -> tuple[Tensor, LayerState]:
        initial = None if state is None else state["kv"]
        o, final = linear_attention(*self._project(x), initial, span.cu_seqlens)
        return self._finish(o, x), {"kv": final}

    def step(
        self, x: Tensor, positions: Tensor, shared: Shared, state: LayerState
    ) -> tuple[Tensor, LayerState]:
        q, k, v, decay = self._project(x)
        o, kv = linear_attention_step(q, k, v, state["kv"], decay)
        return self._finish(o, x), {"kv": kv}

    def take_attention(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
        self.qkv.weight.copy_(torch.cat((q, k, v)))
        self.out.weight.copy_(out)

    def initial_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> LayerState:
        shape = (batch_size, self.heads, self.keys, self.values)
        return {"kv": torch.zeros(shape, device=device, dtype=angle_dtype(dtype))}

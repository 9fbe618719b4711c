"""Mamba-2's mixer (arXiv 2405.21060): linear attention with a data-dependent decay a head.

    [x, B, C] = silu(conv(X [W_x, W_B, W_C] + b))        step = softplus(X W_dt + b_dt), a head
    S_t = exp(-A step_t) S_{t-1} + B_t (step_t x_t)^T    o_t = S_t^T C_t + D x_t
    Y = Norm(O * silu(X W_z)) W_o

B are the keys and C the queries, which all heads of a group share; step is how much of x a token
writes, and with A how much of the state it forgets. D is one number a head. The state-space
duality of the paper is that of linear attention, which computes it here. In the paper these layers
are the whole model; here a channel mixer follows each, as with the other mixers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.architectures.mamba2 import Mamba2Options
from models.config import ModelConfig
from models.decay_gate import DecayGate
from models.kernels.api import linear_attention, linear_attention_step
from models.layers import LayerState, RMSNorm, Shared, Span, TokenMixer, angle_dtype
from models.short_convolution import ShortConvolution


class Skip(nn.Module):
    """x times one number a head, 1 at the start; x (..., H, V)."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:, None].to(x.dtype)


class StateSpaceDuality(TokenMixer):
    """States: `kv` (N, H, K, V) and `conv` (N, k - 1, channels of x, B and C), float32."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        options = config.options_as(Mamba2Options)
        self.heads, self.groups = config.heads, options.groups
        self.keys, self.values = options.sizes(config)
        wide, shared = self.heads * self.values, self.groups * self.keys
        self.widths = (wide, shared, shared)
        self.xbc = nn.Linear(config.dim, sum(self.widths), bias=False)
        self.conv = ShortConvolution(sum(self.widths), options.convolution, bias=True)
        self.rate = nn.Linear(config.dim, self.heads, bias=False)
        self.decay = DecayGate(self.heads)
        self.skip = Skip(self.heads)
        self.gate = nn.Linear(config.dim, wide, bias=False)
        self.norm = RMSNorm(wide, config.norm_eps)
        self.out = nn.Linear(wide, config.dim, bias=False)

    def _split(self, mixed: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """q, k (..., H, K), v (..., H, V), log decays (..., H) and values without their step, of
        convolved channels and x (..., d); q, k and v are rounded once, to the products' dtype."""
        values, k, q = F.silu(mixed).split(self.widths, -1)
        values = values.unflatten(-1, (self.heads, self.values))
        logits = self.rate(x)
        v = values * self.decay.steps(logits)[..., None].to(values.dtype)
        q, k, v = (y.to(logits.dtype) for y in (self._expand(q), self._expand(k), v))
        return q, k, v, self.decay(logits), values

    def _expand(self, x: Tensor) -> Tensor:
        """(..., G K) to (..., H, K): every head has the numbers of its group."""
        x = x.unflatten(-1, (self.groups, 1, self.keys))
        shape = (*x.shape[:-2], self.heads // self.groups, self.keys)
        return x.expand(shape).flatten(-3, -2)

    def _finish(self, o: Tensor, values: Tensor, x: Tensor) -> Tensor:
        o = (o + self.skip(values)).flatten(-2)
        return self.out(self.norm(o * F.silu(self.gate(x))))

    def forward(
        self, x: Tensor, span: Span, shared: Shared, state: LayerState | None
    ) -> tuple[Tensor, LayerState]:
        mixed, convolved = self.conv(self.xbc(x), span, state)
        q, k, v, decay, values = self._split(mixed, x)
        initial = None if state is None else state["kv"]
        o, final = linear_attention(q, k, v, decay, initial, span.cu_seqlens)
        return self._finish(o, values, x), {"kv": final, **convolved}

    def step(
        self, x: Tensor, positions: Tensor, shared: Shared, state: LayerState
    ) -> tuple[Tensor, LayerState]:
        mixed, convolved = self.conv.step(self.xbc(x), state)
        q, k, v, decay, values = self._split(mixed, x)
        o, kv = linear_attention_step(q, k, v, state["kv"], decay)
        return self._finish(o, values, x), {"kv": kv, **convolved}

    def initial_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> LayerState:
        shape = (batch_size, self.heads, self.keys, self.values)
        kv = torch.zeros(shape, device=device, dtype=angle_dtype(dtype))
        return {"kv": kv, **self.conv.initial_state(batch_size, device, dtype)}

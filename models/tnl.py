"""TNL (TransNormerLLM): linear attention with a fixed decay per head (arXiv 2406.16690 eqs. 8-11).

    Q_i, K_i = silu(Xb W),  V_i = Xb W,  Xb = Norm(X),  G = sigmoid(Xb W_gd W_gu)
    S_t = lambda_i S_{t-1} + k_t v_t^T,   o_t = S_t^T q_t
    X + (Norm(Concat(O)) * G) W_o

No scale and no denominator: the parameter-free SRMSNorm over all heads takes their place. The
channel mixer is an SGLU without activation.

Decay lambda = exp(-slope): arXiv 2405.17381 eq. 10 prints slope (8h/H)(1 - i/L) for head h of layer
i (`decay_slopes="linear"`); the authors' released code has the slopes of ALiBi (powers of two)
times 1 - i/(L-1) + 1e-5 (`"alibi"`, the default), so that the last layer hardly decays. The same in
all layers are ALiBi's slopes alone (`"alibi-flat"`, SUPRA's default) and RetNet's lambda =
1 - 2^(-5-h) (arXiv 2307.08621, `"retnet"`).
LRPE: not in eq. 9 and off by default (`lrpe`); the released models have it in layer 0.

Data flow: 1. one product gives q, k, v; 2. SiLU on q and k; 3. `linear_attention` with the decay
of the head (in LRPE layers q and k are rotated first, which doubles the key dimension); 4. norm,
gate, output.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.architectures.tnl import DecayOptions, TNLOptions
from models.config import ModelConfig
from models.kernels.api import linear_attention, linear_attention_step
from models.kernels.lrpe import lrpe
from models.layers import (
    FullPrecision,
    LayerState,
    LowRankGate,
    Shared,
    Span,
    SRMSNorm,
    TokenMixer,
    angle_dtype,
)
from models.position_layers import LRPEAngles


def alibi_slopes(heads: int) -> list[float]:
    """ALiBi's slopes (arXiv 2108.12409): 2^(-8(h+1)/H) for H a power of two, else interleaved.

    For other H, the slopes of the power of two below, then every other slope of twice that power.
    """
    power = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * (h + 1) / power) for h in range(power)]
    if power == heads:
        return slopes
    return slopes + alibi_slopes(2 * power)[0::2][: heads - power]


def decay_slopes(config: ModelConfig, layer: int) -> list[float]:
    """Decay of each head of a layer in nats a step, >= 0."""
    kind = config.options_as(DecayOptions).decay_slopes
    if kind == "none":
        return [0.0] * config.heads
    if kind == "linear":
        factor = 1 - layer / config.layers
        return [8 * h / config.heads * factor for h in range(config.heads)]
    if kind == "retnet":
        return [-math.log1p(-(2.0 ** (-5 - h))) for h in range(config.heads)]
    if kind == "alibi-flat":
        return alibi_slopes(config.heads)
    factor = 1 - layer / max(config.layers - 1, 1) + 1e-5
    return [slope * factor for slope in alibi_slopes(config.heads)]


class HeadDecay(FullPrecision):
    """Log decay of each head of one layer, (H,): fixed, or learned with `learn_decay`."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.slopes: Tensor
        if config.options_as(DecayOptions).learn_decay:
            self.slopes = nn.Parameter(torch.empty(config.heads))
        else:
            self.register_buffer("slopes", torch.empty(config.heads), persistent=False)

    def reset_parameters(self) -> None:
        slopes = torch.tensor(decay_slopes(self.config, self.layer), dtype=torch.float64)
        with torch.no_grad():
            self.slopes.copy_(slopes)

    def forward(self) -> Tensor:
        return -self.slopes.clamp(min=0)  # A learned slope may not turn into growth.


class DecayAttention(TokenMixer):
    """Gated linear attention with one fixed decay per head; state (N, H, K, V) float32."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.decay = HeadDecay(config, layer)
        self.gate = LowRankGate(config)
        self.norm = SRMSNorm(config.dim, config.norm_eps)
        self.out = nn.Linear(config.dim, config.dim, bias=False)
        rotated = config.options_as(TNLOptions).rotates(layer)
        self.angles = LRPEAngles(config) if rotated else None

    def _project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k (..., H, K) and v (..., H, V) of x (..., d)."""
        qk, v = self.qkv(x).split((2 * x.shape[-1], x.shape[-1]), dim=-1)
        qk = F.silu(qk).unflatten(-1, (2, self.heads, self.head_dim))  # (..., 2, H, K)
        if self.angles is not None:
            qk = lrpe(qk, self.angles(), positions[..., None])
        q, k = qk.unbind(-3)
        return q, k, v.unflatten(-1, (self.heads, self.head_dim))

    def _output(self, x: Tensor, o: Tensor) -> Tensor:
        return self.out(self.norm(o.flatten(-2)) * self.gate(x))

    def forward(
        self, x: Tensor, span: Span, shared: Shared, state: LayerState | None
    ) -> tuple[Tensor, LayerState]:
        q, k, v = self._project(x, span.positions)
        initial = None if state is None else state["kv"]
        o, final = linear_attention(q, k, v, self.decay(), initial, span.cu_seqlens)
        return self._output(x, o), {"kv": final}

    def step(
        self, x: Tensor, positions: Tensor, shared: Shared, state: LayerState
    ) -> tuple[Tensor, LayerState]:
        q, k, v = self._project(x, positions)
        o, kv = linear_attention_step(q, k, v, state["kv"], self.decay())
        return self._output(x, o), {"kv": kv}

    def initial_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> LayerState:
        keys = self.head_dim * (1 if self.angles is None else 2)
        shape = (batch_size, self.heads, keys, self.head_dim)
        return {"kv": torch.zeros(shape, device=device, dtype=angle_dtype(dtype))}

    def take_attention(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
        self.qkv.weight.copy_(torch.cat((q, k, v)))
        self.out.weight.copy_(out)

"""cosFormer2: linear attention without decay, re-weighted by a cosine (2406.16690 eqs. 16-19).

    X <- TPE(embedding)                                             once, before the blocks
    Q_i, K_i = silu(Xb W),  V_i = Xb W,  Xb = Norm(X),  G = sigmoid(Xb W_gd W_gu)
    a_ts = sum_c q_tc k_sc cos(theta_c (t - s)),   o_t = sum_{s <= t} a_ts v_s
    X + (Norm(Concat(O)) * G) W_o

The cosine is linear in [q cos(theta t), q sin(theta t)] and the same for k, so the state is
(2 d/h) x (d/h) per head. theta is per head, channel and layer (its start: see `LRPEAngles`).
No denominator: the parameter-free SRMSNorm over all heads takes its place. The channel mixer is
an SGLU without activation.

Data flow: 1. the stem applies TPE (`ToeplitzEncoding`); 2. one product gives q, k, v;
3. SiLU on q and k; 4. `cosine_attention` rotates them by their absolute positions (a row or packed
sequence may continue from any position) and runs the recurrence; 5. norm, gate, output.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.architectures.cosformer2 import CosFormer2Options
from models.config import ModelConfig
from models.kernels.api import cosine_attention, linear_attention_step
from models.kernels.lrpe import lrpe
from models.layers import (
    LayerState,
    LowRankGate,
    Shared,
    Span,
    SRMSNorm,
    Stem,
    TokenMixer,
    angle_dtype,
)
from models.position_layers import LRPEAngles, ToeplitzEncoding


class ToeplitzStem(Stem):
    """Applies TPE to the embedded tokens unless `model.options.tpe` is False."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.tpe = ToeplitzEncoding(config) if config.options_as(CosFormer2Options).tpe else None

    def forward(
        self, x: Tensor, span: Span, state: LayerState | None
    ) -> tuple[Tensor, list[Shared], LayerState]:
        if self.tpe is None:
            return x, [()] * self.config.layers, {}
        encoded, kept = self.tpe(x, span, state)
        # What blocks add to is float32 within autocast, here as in the other models.
        return encoded.to(x.dtype), [()] * self.config.layers, kept

    def step(
        self, x: Tensor, positions: Tensor, state: LayerState
    ) -> tuple[Tensor, list[Shared], LayerState]:
        if self.tpe is None:
            return x, [()] * self.config.layers, state
        encoded, state = self.tpe.step(x, state)
        return encoded.to(x.dtype), [()] * self.config.layers, state

    def initial_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> LayerState:
        return {} if self.tpe is None else self.tpe.initial_state(batch_size, device, dtype)


class CosineAttention(TokenMixer):
    """Gated linear attention with a cosine re-weighting; state (N, H, 2K, V) float32."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.angles = LRPEAngles(config)
        self.gate = LowRankGate(config)
        self.norm = SRMSNorm(config.dim, config.norm_eps)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """q and k, (..., 2, H, K), and v (..., H, V) of x (..., d)."""
        qk, v = self.qkv(x).split((2 * x.shape[-1], x.shape[-1]), dim=-1)
        qk = F.silu(qk).unflatten(-1, (2, self.heads, self.head_dim))  # (..., 2, H, K)
        return qk, v.unflatten(-1, (self.heads, self.head_dim))

    def _output(self, x: Tensor, o: Tensor) -> Tensor:
        return self.out(self.norm(o.flatten(-2)) * self.gate(x))

    def forward(
        self, x: Tensor, span: Span, shared: Shared, state: LayerState | None
    ) -> tuple[Tensor, LayerState]:
        qk, v = self._project(x)
        q, k = qk.unbind(-3)
        initial = None if state is None else state["kv"]
        offset = 0 if span.offset is None else span.offset
        o, final = cosine_attention(q, k, v, self.angles(), initial, span.cu_seqlens, offset)
        return self._output(x, o), {"kv": final}

    def step(
        self, x: Tensor, positions: Tensor, shared: Shared, state: LayerState
    ) -> tuple[Tensor, LayerState]:
        qk, v = self._project(x)
        q, k = lrpe(qk, self.angles(), positions[..., None]).unbind(-3)
        o, kv = linear_attention_step(q, k, v, state["kv"])
        return self._output(x, o), {"kv": kv}

    def initial_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> LayerState:
        shape = (batch_size, self.heads, 2 * self.head_dim, self.head_dim)
        return {"kv": torch.zeros(shape, device=device, dtype=angle_dtype(dtype))}

    def take_attention(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
        self.qkv.weight.copy_(torch.cat((q, k, v)))
        self.out.weight.copy_(out)

"""SUPRA: a pretrained transformer's attention as a recurrence (arXiv 2405.06640).

    q~_t = R_t phi(q_t) / sqrt(K),   k~_t = R_t phi(k_t)
    S_t = lambda_h S_{t-1} + k~_t v_t^T,   o_t = GroupNorm(S_t^T q~_t),   X + Concat(O) W_o

The projections of the transformer stay. New are the feature map phi, relu(W x + b) with one matrix
over the channels of all query heads, shared by keys (under grouped-query attention the keys have a
smaller one of their own), a decay per head (ALiBi's slopes, the same in every layer; those of TNL,
with a layer factor; RetNet's; or none) and, in the place of softmax's denominator, a norm over each
head's channels without weights: GroupNorm with a group a head, and PyTorch's eps for it. The rotary
encoding R comes after phi.

Data flow: 1. one product gives q, k, v; 2. feature map; 3. rotation; 4. `linear_attention` with the
decay of the head; 5. norm and output projection.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.architectures.supra import Supra
from models.config import ModelConfig
from models.kernels.api import linear_attention, linear_attention_step
from models.layers import LayerState, Shared, Span, TokenMixer, angle_dtype
from models.linearize.feature_maps import feature_map, repeat_heads
from models.llama import SoftmaxAttention
from models.rope import rotate
from models.tnl import HeadDecay

NORM_EPS = 1e-5


class SupraAttention(SoftmaxAttention):
    """Linear attention on the projections of a softmax attention; state (N, H, K, V) float32."""

    growing = False
    reserve = TokenMixer.reserve

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        options = config.options_as(Supra)
        self.norm = options.norm
        self.feature_map = feature_map(options, self.heads, self.head_dim)
        self.key_feature_map = (
            None
            if self.kv_heads == self.heads
            else feature_map(options, self.kv_heads, self.head_dim)
        )
        self.decay = None if options.decay_slopes == "none" else HeadDecay(config, layer)

    def _features(self, x: Tensor, shared: Shared) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated features of q and k, and v, all (B, T, H, K)."""
        qk, v = self._heads(x)
        q, k = qk.split((self.heads, self.kv_heads), dim=2)
        q = self.feature_map(q) * self.head_dim**-0.5
        k = (self.key_feature_map or self.feature_map)(k)
        q, k = rotate(torch.cat((q, k), 2), *shared[:2]).split((self.heads, self.kv_heads), dim=2)
        return q, repeat_heads(k, self.heads), repeat_heads(v, self.heads)

    def _output(self, o: Tensor) -> Tensor:
        if self.norm:
            o = F.layer_norm(o, o.shape[-1:], eps=NORM_EPS)
        return self.out(o.flatten(-2).to(self.out.weight.dtype))

    def forward(
        self, x: Tensor, span: Span, shared: Shared, state: LayerState | None
    ) -> tuple[Tensor, LayerState]:
        q, k, v = self._features(x, shared)
        initial = None if state is None else state["kv"]
        decay = None if self.decay is None else self.decay()
        o, final = linear_attention(q, k, v, decay, initial, span.cu_seqlens)
        return self._output(o), {"kv": final}

    def step(
        self, x: Tensor, positions: Tensor, shared: Shared, state: LayerState
    ) -> tuple[Tensor, LayerState]:
        q, k, v = (part[:, 0] for part in self._features(x[:, None], shared))  # (B, H, K)
        decay = None if self.decay is None else self.decay()
        o, kv = linear_attention_step(q, k, v, state["kv"], decay)
        return self._output(o), {"kv": kv}

    def initial_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> LayerState:
        shape = (batch_size, self.heads, self.head_dim, self.head_dim)
        return {"kv": torch.zeros(shape, device=device, dtype=angle_dtype(dtype))}

"""LLaMA, the softmax baseline (arXiv 2406.16690 eqs. 5-7).

    Q, K, V = Norm(X) W_qkv,   O_i = softmax(R(Q_i) R(K_i)^T / sqrt(d/h)) V_i,   X + Concat(O) W_o

with R the rotary encoding, a causal mask, RMSNorm with weights and a SwiGLU channel mixer. The
paper does not state norm type and rotary base: RMSNorm and 10000 are LLaMA's own (arXiv
2302.13971).

Options for models of the family, all off in the paper's, are those of `models.architectures.llama`:
grouped-query attention (`kv_heads`), a head dimension of its own (`head_size`), stretched rotary
frequencies (`rope_scaling`, see `models.rope`), a sliding window (`window`; arXiv 2310.06825), and
what else imported families have, some of it by layer.

Data flow: 1. one product gives q, k, v; 2. q and k are normed where the model does so, and rotated
by their positions; 3. softmax attention (`models.kernels.attention`); 4. output
projection. A scale of the scores other than 1 / sqrt(K) is a factor on q, so that all that reads q
and k, linear attentions included, goes on with 1 / sqrt(K).

The state is a key-value cache (`models.kv_cache`), under a sliding window a ring of its size.
Packed sequences, windows shorter than the call and calls that continue a state need an explicit
mask. They are read `QUERIES` tokens at a time, each with the keys that it may see: under a window
a call of T tokens takes memory and time of T x (QUERIES + window), whatever is packed into it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.architectures.llama import RopeUse, llama_options
from models.config import ModelConfig
from models.kernels.attention import causal_attention
from models.kv_cache import (
    blocks,
    call_mask,
    causal,
    extended,
    held,
    past_mask,
    prepend,
    side_by_side,
    visible,
)
from models.layers import (
    LayerState,
    OffsetRMSNorm,
    RMSNorm,
    Shared,
    Span,
    Stem,
    TokenMixer,
    angle_dtype,
)
from models.rope import query_factor, rotary_angles, rotate, sequence_lengths

INITIAL_CAPACITY = 128
"""Cache slots of a fresh state; `reserve` doubles it as needed."""
QUERIES = 512
"""Queries that are read at once where a mask is needed."""


class RotaryStem(Stem):
    """Scales the embedded tokens where the model does so, and shares what mixers rotate by.

    For every layer: cos and sin of its rotary angles, each (B or 1, T, 1, K / 2), and the factor on
    its queries, (B or 1, T or 1, 1, 1), where there is one.
    """

    def forward(
        self, x: Tensor, span: Span, state: LayerState | None
    ) -> tuple[Tensor, list[Shared], LayerState]:
        return self._scaled(x), self._shared(span.positions, sequence_lengths(span), x.dtype), {}

    def step(
        self, x: Tensor, positions: Tensor, state: LayerState
    ) -> tuple[Tensor, list[Shared], LayerState]:
        positions = positions[:, None]
        return self._scaled(x), self._shared(positions, positions + 1, x.dtype), state

    def _scaled(self, x: Tensor) -> Tensor:
        scale = llama_options(self.config).embedding_scale
        return x if scale == 1 else x * torch.full((), scale, dtype=x.dtype, device=x.device)

    def _shared(self, positions: Tensor, lengths: Tensor, dtype: torch.dtype) -> list[Shared]:
        config, options = self.config, llama_options(self.config)
        uses: list[RopeUse] = [options.rope_of(layer) for layer in range(config.layers)]
        factor = query_factor(config, positions, dtype)
        scaled = () if factor is None else (factor,)
        angles = {
            use: (*rotary_angles(config, positions, lengths, dtype, use), *scaled)
            for use in dict.fromkeys(uses)
        }
        return [angles[use] for use in uses]


def capped(scores: Tensor, cap: float | None) -> Tensor:
    """cap tanh(scores / cap); the scores themselves without a cap."""
    return scores if cap is None else cap * torch.tanh(scores / cap)


class SoftmaxAttention(TokenMixer):
    """Causal multi-head softmax attention with rotary positions; state: a key-value cache."""

    growing = True

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        options = llama_options(config)
        self.heads, self.kv_heads = config.heads, options.key_value_heads(config.heads)
        self.head_dim, self.window = config.head_dim, options.window_of(layer)
        self.score_cap, scaling = options.score_cap, options.rope_scaling
        self.dynamic = scaling is not None and scaling.by_length
        width = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.qkv = nn.Linear(config.dim, width, bias=options.qkv_bias)
        self.out = nn.Linear(self.heads * self.head_dim, config.dim, bias=options.out_bias)
        self.query_norm = self.key_norm = None
        self.normed_heads = options.qk_norm == "head"
        if options.qk_norm != "none":
            norm = OffsetRMSNorm if config.norm_offset else RMSNorm
            heads = (1, 1) if self.normed_heads else (self.heads, self.kv_heads)
            self.query_norm, self.key_norm = (
                norm(count * self.head_dim, config.norm_eps) for count in heads
            )

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """q and k in one, normed, (B, T, H + key-value heads, K), and v, (B, T, key-value heads,
        K)."""
        both = self.heads + self.kv_heads
        qkv = self.qkv(x).unflatten(-1, (both + self.kv_heads, self.head_dim))
        qk, v = qkv.split((both, self.kv_heads), dim=2)
        if self.query_norm is None or self.key_norm is None:
            return qk, v
        q, k = qk.split((self.heads, self.kv_heads), dim=2)
        if self.normed_heads:
            return torch.cat((self.query_norm(q), self.key_norm(k)), dim=2), v
        q, k = self.query_norm(q.flatten(2)), self.key_norm(k.flatten(2))
        return torch.cat((q, k), dim=-1).unflatten(-1, (both, self.head_dim)), v

    def _project(self, x: Tensor, shared: Shared) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated q (B, T, H, K) and k, and v, (B, T, key-value heads, K)."""
        qk, v = self._heads(x)
        cos, sin, *factors = shared
        q, k = rotate(qk, cos, sin).split((self.heads, self.kv_heads), dim=2)
        for factor in factors:
            q = q * factor
        return q, k, v

    def capped(self, scores: Tensor) -> Tensor:
        """Scores of softmax attention with the model's cap on them."""
        return capped(scores, self.score_cap)

    def _softmax(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Softmax attention (B, T, H, K) of q over k, v (B, S, ., K); mask None: causal."""
        if mask is None:
            return causal_attention(q, k, v)
        if self.kv_heads < self.heads:
            # On the CPU repeated keys are faster than the kernel's own grouping.
            group = self.heads // self.kv_heads
            k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = self._attention(q, k, v, mask)
        return out.transpose(1, 2)  # (B, T, H, K)

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Softmax attention of q (B, H, T, K) over k, v (B, H, S, K)."""
        if self.score_cap is None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        scores = self.capped((q @ k.mT).to(angle_dtype(q.dtype)) * self.head_dim**-0.5)
        return scores.masked_fill(~mask, -torch.inf).softmax(-1).to(v.dtype) @ v

    def _read(
        self, q: Tensor, k: Tensor, v: Tensor, span: Span, state: LayerState | None
    ) -> Tensor:
        """Softmax attention (B, T, H, K) over the call's keys and those of the cache."""
        if state is None and self.score_cap is None and causal(span, self.window):
            return self._softmax(q, k, v, None)
        if span.sequence is not None and span.visible is not None:
            return self._packed_trees(q, k, v, span)
        outputs = []
        for queries, keys in blocks(span, self.window, QUERIES):
            k_near, v_near = k[:, keys], v[:, keys]
            mask = call_mask(span, self.window, queries, keys)
            if state is not None:
                past = past_mask(span, state["k"].shape[1], self.window, queries)
                mask = torch.cat((past, mask.expand(*past.shape[:-1], -1)), dim=-1)
                k_near = prepend(state["k"], k_near, span)
                v_near = prepend(state["v"], v_near, span)
            outputs.append(self._softmax(q[:, queries], k_near, v_near, mask))
        return torch.cat(outputs, dim=1)

    def _packed_trees(self, q: Tensor, k: Tensor, v: Tensor, span: Span) -> Tensor:
        """Attention (1, T, H, K) within each of some packed trees, which stand in rows for it."""
        assert span.visible is not None
        rows, columns = side_by_side(span)
        shape = span.visible.shape[:2]  # (N, L)
        q, k, v = (
            x.new_zeros(*shape, *x.shape[2:]).index_put((rows, columns), x[0]) for x in (q, k, v)
        )
        return self._softmax(q, k, v, span.visible[:, None])[rows, columns][None]

    def forward(
        self, x: Tensor, span: Span, shared: Shared, state: LayerState | None
    ) -> tuple[Tensor, LayerState]:
        q, k, v = self._project(x, shared)
        new = {"k": k, "v": v}
        kept = extended(state, new, span, self.window) if span.keep_state else {}
        return self.out(self._read(q, k, v, span, state).flatten(-2)), kept

    def step(
        self, x: Tensor, positions: Tensor, shared: Shared, state: LayerState
    ) -> tuple[Tensor, LayerState]:
        q, k, v = self._project(x[:, None], shared)  # (B, 1, H, K)
        rows = torch.arange(x.shape[0], device=x.device)
        slot = positions if self.window is None else positions % self.window
        state["k"].index_put_((rows, slot), k[:, 0].to(state["k"].dtype))
        state["v"].index_put_((rows, slot), v[:, 0].to(state["v"].dtype))
        keys_at = held(positions + 1, state["k"].shape[1], self.window)  # (B, S)
        mask = visible(positions[:, None], keys_at, self.window)[:, None, None]  # (B, 1, 1, S)
        # The query heads of a key-value head stand where queries of one head would: no key is
        # read twice.
        q = q.unflatten(2, (self.kv_heads, -1))[:, 0]  # (B, key-value heads, group, K)
        keys, values = (state[name].transpose(1, 2).to(q.dtype) for name in ("k", "v"))
        out = self._attention(q, keys, values, mask)
        return self.out(out.flatten(1)), state

    def initial_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> LayerState:
        slots = INITIAL_CAPACITY if self.window is None else min(INITIAL_CAPACITY, self.window)
        shape = (batch_size, slots, self.kv_heads, self.head_dim)
        return {name: torch.zeros(shape, device=device, dtype=dtype) for name in ("k", "v")}

    def keeps_tokens(self, length: int) -> bool:
        # A window forgets what padding overwrites, and dynamic angles depend on the length.
        return self.growing and not self.dynamic and (self.window is None or length <= self.window)

    def reserve(self, state: LayerState, capacity: int) -> LayerState:
        have, most = state["k"].shape[1], capacity if self.window is None else self.window
        if have >= min(capacity, most):
            return state
        slots = max(capacity, 2 * have)
        more = (slots if self.window is None else min(slots, self.window)) - have
        return {name: F.pad(cache, (0, 0, 0, 0, 0, more)) for name, cache in state.items()}

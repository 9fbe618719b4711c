"""LLaMA, the softmax baseline (arXiv 2406.16690 eqs. 5-7).

    Q, K, V = Norm(X) W_qkv,   O_i = softmax(R(Q_i) R(K_i)^T / sqrt(d/h)) V_i,   X + Concat(O) W_o

with R the rotary encoding, a causal mask, RMSNorm with weights and a SwiGLU channel mixer. The
paper does not state norm type and rotary base: RMSNorm and 10000 are LLaMA's own (arXiv
2302.13971).

Options for models of the family, all off in the paper's: grouped-query attention (`kv_heads`), a
head dimension of its own (`head_size`), stretched rotary frequencies (`rope_scaling`, see
`models.rope`), a sliding window (`window`; arXiv 2310.06825) and biases.

Data flow: 1. one product gives q, k, v; 2. q and k are rotated by their positions; 3. softmax
attention through `scaled_dot_product_attention`; 4. output projection.

The state is a key-value cache (`models.kv_cache`), under a sliding window a ring of its size.
Packed sequences, windows shorter than the call and calls that continue a state need an explicit
mask. They are read `QUERIES` tokens at a time, each with the keys that it may see: under a window
a call of T tokens takes memory and time of T x (QUERIES + window), whatever is packed into it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.architectures.llama import llama_options
from models.config import ModelConfig
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
    Shared,
    Span,
    Stem,
    TokenMixer,
)
from models.rope import rotary_angles, rotate, sequence_lengths

INITIAL_CAPACITY = 128
"""Cache slots of a fresh state; `reserve` doubles it as needed."""
QUERIES = 512
"""Queries that are read at once where a mask is needed."""


class RotaryStem(Stem):
    """Shares cos and sin of the rotary angles, each (B or 1, T, 1, K / 2); nothing without RoPE."""

    def forward(
        self, x: Tensor, span: Span, state: LayerState | None
    ) -> tuple[Tensor, list[Shared], LayerState]:
        config = self.config
        if not llama_options(config).rope:
            return x, [()] * config.layers, {}
        angles = rotary_angles(config, span.positions, sequence_lengths(span), x.dtype)
        return x, [angles] * config.layers, {}

    def step(
        self, x: Tensor, positions: Tensor, state: LayerState
    ) -> tuple[Tensor, list[Shared], LayerState]:
        config = self.config
        if not llama_options(config).rope:
            return x, [()] * config.layers, state
        angles = rotary_angles(config, positions[:, None], positions[:, None] + 1, x.dtype)
        return x, [angles] * config.layers, state


class SoftmaxAttention(TokenMixer):
    """Causal multi-head softmax attention with rotary positions; state: a key-value cache."""

    growing = True

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        options = llama_options(config)
        self.heads, self.kv_heads = config.heads, options.key_value_heads(config.heads)
        self.head_dim, self.window = config.head_dim, options.window
        scaling = options.rope_scaling
        self.dynamic = scaling is not None and scaling.kind == "dynamic"
        width = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.qkv = nn.Linear(config.dim, width, bias=options.qkv_bias)
        self.out = nn.Linear(self.heads * self.head_dim, config.dim, bias=options.out_bias)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """q and k in one, (B, T, H + key-value heads, K), and v, (B, T, key-value heads, K)."""
        both = self.heads + self.kv_heads
        qkv = self.qkv(x).unflatten(-1, (both + self.kv_heads, self.head_dim))
        qk, v = qkv.split((both, self.kv_heads), dim=2)
        return qk, v

    def _project(self, x: Tensor, shared: Shared) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated q (B, T, H, K) and k, and v, (B, T, key-value heads, K)."""
        qk, v = self._heads(x)
        q, k = self._rotated(qk, shared).split((self.heads, self.kv_heads), dim=2)
        return q, k, v

    def _rotated(self, x: Tensor, shared: Shared) -> Tensor:
        """x (B, T, ., K) by the angles of the stem, where it has any."""
        return rotate(x, *shared) if shared else x

    def _softmax(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Softmax attention (B, T, H, K) of q over k, v (B, S, ., K); mask None: causal."""
        if self.kv_heads < self.heads:
            # On the CPU repeated keys are faster than the kernel's own grouping.
            group = self.heads // self.kv_heads
            k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
        )
        return out.transpose(1, 2)  # (B, T, H, K)

    def _read(
        self, q: Tensor, k: Tensor, v: Tensor, span: Span, state: LayerState | None
    ) -> Tensor:
        """Softmax attention (B, T, H, K) over the call's keys and those of the cache."""
        if state is None and causal(span, self.window):
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
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
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

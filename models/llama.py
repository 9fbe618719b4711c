"""LLaMA, the softmax baseline (arXiv 2406.16690 eqs. 5-7).

    Q, K, V = Norm(X) W_qkv,   O_i = softmax(R(Q_i) R(K_i)^T / sqrt(d/h)) V_i,   X + Concat(O) W_o

with R the rotary encoding, a causal mask, RMSNorm with weights and a SwiGLU channel mixer. The
paper does not state norm type and rotary base: RMSNorm and 10000 are LLaMA's own (arXiv
2302.13971).

Data flow: 1. one product gives q, k, v; 2. q and k are rotated by their positions; 3. softmax
attention through `scaled_dot_product_attention`; 4. output projection.

The state is a key-value cache (N, capacity, H, K): slot p holds the token at position p, and slots
at or above a sequence's length are never read. Packed sequences use an explicit mask of T x T (or
T x N capacity with a state), so that packing costs memory quadratic in the packed length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import ConfigError, ModelConfig
from models.layers import (
    Architecture,
    LayerState,
    RMSNorm,
    Shared,
    Span,
    Stem,
    TokenMixer,
    rotary_angles,
    rotate,
)

INITIAL_CAPACITY = 128
"""Cache slots of a fresh state; `reserve` doubles it as needed."""


class RotaryStem(Stem):
    """Shares cos and sin of the rotary angles, each (B or 1, T, 1, K / 2)."""

    def forward(
        self, x: Tensor, span: Span, state: LayerState | None
    ) -> tuple[Tensor, list[Shared], LayerState]:
        config = self.config
        angles = rotary_angles(span.positions, config.head_dim, config.rope_base, x.dtype)
        return x, [angles] * config.layers, {}

    def step(
        self, x: Tensor, positions: Tensor, state: LayerState
    ) -> tuple[Tensor, list[Shared], LayerState]:
        config = self.config
        angles = rotary_angles(positions[:, None], config.head_dim, config.rope_base, x.dtype)
        return x, [angles] * config.layers, state


class SoftmaxAttention(TokenMixer):
    """Causal multi-head softmax attention with rotary positions; state: a key-value cache."""

    growing = True

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        if config.head_dim % 2:
            raise ConfigError(
                f"model.dim={config.dim} with model.heads={config.heads} gives head dimension "
                f"{config.head_dim}; rotary embeddings need an even one."
            )
        self.heads, self.head_dim = config.heads, config.head_dim
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def _project(self, x: Tensor, shared: Shared) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated q and k, and v, each (B, T, H, K)."""
        cos, sin = shared
        qk, v = self.qkv(x).split((2 * x.shape[-1], x.shape[-1]), dim=-1)
        qk = rotate(qk.unflatten(-1, (2 * self.heads, self.head_dim)), cos, sin)
        q, k = qk.chunk(2, dim=2)
        return q, k, v.unflatten(-1, (self.heads, self.head_dim))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Softmax attention of q (B, T, H, K) over k, v (B, S, H, K); mask None: causal."""
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
        )
        return self.out(out.transpose(1, 2).flatten(-2))  # (B, T, d)

    def forward(
        self, x: Tensor, span: Span, shared: Shared, state: LayerState | None
    ) -> tuple[Tensor, LayerState]:
        q, k, v = self._project(x, shared)
        if state is None and span.sequence is None:
            return self._attend(q, k, v, None), {"k": k, "v": v} if span.keep_state else {}
        if state is None and not span.keep_state:
            return self._attend(q, k, v, _packed_mask(span)), {}
        if state is None:
            assert span.cu_seqlens is not None
            empty = k.new_zeros(span.cu_seqlens.numel() - 1, 0, self.heads, self.head_dim)
            state = {"k": empty, "v": empty}
        state = _write(state, k, v, span)
        keys, values = state["k"], state["v"]
        mask = _cache_mask(span, keys)
        if span.sequence is not None:
            keys, values = keys.flatten(0, 1)[None], values.flatten(0, 1)[None]
        return self._attend(q, keys, values, mask), state

    def step(
        self, x: Tensor, positions: Tensor, shared: Shared, state: LayerState
    ) -> tuple[Tensor, LayerState]:
        q, k, v = self._project(x[:, None], shared)  # (B, 1, H, K)
        rows = torch.arange(x.shape[0], device=x.device)
        state["k"].index_put_((rows, positions), k[:, 0].to(state["k"].dtype))
        state["v"].index_put_((rows, positions), v[:, 0].to(state["v"].dtype))
        slots = torch.arange(state["k"].shape[1], device=x.device)
        mask = (slots <= positions[:, None])[:, None, None]  # (B, 1, 1, S)
        out = self._attend(q, state["k"].to(q.dtype), state["v"].to(q.dtype), mask)
        return out[:, 0], state

    def initial_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> LayerState:
        shape = (batch_size, INITIAL_CAPACITY, self.heads, self.head_dim)
        return {name: torch.zeros(shape, device=device, dtype=dtype) for name in ("k", "v")}

    def reserve(self, state: LayerState, capacity: int) -> LayerState:
        have = state["k"].shape[1]
        if have >= capacity:
            return state
        more = max(capacity, 2 * have) - have
        return {name: F.pad(cache, (0, 0, 0, 0, 0, more)) for name, cache in state.items()}


def _write(state: LayerState, k: Tensor, v: Tensor, span: Span) -> LayerState:
    """A copy of the cache with T more slots that holds the new keys and values."""
    length = k.shape[1]
    positions = span.positions.expand(k.shape[0], length)
    if span.sequence is None:
        rows = torch.arange(k.shape[0], device=k.device)[:, None].expand(-1, length)
    else:
        rows = span.sequence[None]
    written = {}
    for name, new in (("k", k), ("v", v)):
        cache = F.pad(state[name], (0, 0, 0, 0, 0, length))  # (N, S + T, H, K)
        written[name] = cache.index_put((rows, positions), new.to(cache.dtype)).to(new.dtype)
    return written


def _packed_mask(span: Span) -> Tensor:
    """(T, T): a token sees itself and earlier tokens of its own sequence."""
    assert span.sequence is not None
    same = span.sequence[:, None] == span.sequence
    return same & (span.positions[0][:, None] >= span.positions[0])


def _cache_mask(span: Span, cache: Tensor) -> Tensor:
    """Which slots of the cache (N, S, H, K) each token sees: (B, 1, T, S) or (T, N S)."""
    slots = torch.arange(cache.shape[1], device=cache.device)
    if span.sequence is None:
        return (slots <= span.positions[..., None])[:, None]
    rows = torch.arange(cache.shape[0], device=cache.device)
    same = span.sequence[:, None, None] == rows[:, None]  # (T, N, 1)
    return (same & (slots <= span.positions[0][:, None, None])).flatten(1)


ARCHITECTURE = Architecture(
    mixer=SoftmaxAttention, norm=RMSNorm, activation=F.silu, stem=RotaryStem
)

"""LoLCATs: softmax attention to a window, linear attention to the past (arXiv 2410.10254).

    a_ts = sigmoid(g_h) exp(q_t.k_s / sqrt(K) - m_t)    s in the window of t, m_t the largest score
    a_ts = c_h phi_q(q_t).phi_k(k_s)                    s before the window
    o_t  = sum_s a_ts v_s / sum_s a_ts                  X + Concat(O) W_o

q and k are rotated before the feature maps; those of q and k are learned apart, with a map for each
query head also under grouped-query attention. g is the learned window factor of the head, and c is
1, or 1 - sigmoid(g) (`affine`). The window is block-aligned (`terraced`: the token's own block of w
tokens and the block before) or the last w tokens (`sliding`). m_t shifts the softmax part alone, so
that it is part of the formula. All as in the authors' released code.

Not in it: the first `sink_tokens` tokens of a sequence can be seen by softmax from everywhere, as
if they were in every window. With `shared_state` keys have one map, and the state one part, for
each key-value head; the query heads that share the one share the others. `reads` switches a part
off for measurements and for window dropout.

Data flow, linear in T: 1. q, k, v, rotated; 2. tokens into blocks of w (`models.linearize.blocks`);
3. scores of each block against itself and the block before; 4. states sum phi_k(k) [v, 1]^T of all
blocks before those, the last column being the denominator's; 5. their sum, output projection.

State of a sequence at position p in block b = p // w, so that a step costs one update (of every
query head, or with `shared_state` of every key-value head):
    kv       sum of phi_k(k) [v, 1]^T over positions before (b - 1) w
    pending  the same over (b - 1) w .. p - w: joins kv when the next block begins
    k, v     ring of the last 2 w keys and values
    sink_k, sink_v   keys and values of the first tokens, where there are sinks
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.architectures.lolcats import LoLCATs
from models.config import ModelConfig
from models.layers import (
    FullPrecision,
    LayerState,
    Shared,
    Span,
    TokenMixer,
    angle_dtype,
)
from models.linearize import blocks as tiles
from models.linearize.blocks import Blocks
from models.linearize.feature_maps import feature_map, repeat_heads
from models.llama import SoftmaxAttention, capped

Reads = Literal["both", "window", "past"]
"""What a query reads: both parts; its window and the sinks alone; or the linear part alone."""


class Sinks(NamedTuple):
    """First tokens of each block's sequence, S of them."""

    k: Tensor
    """(R, n or 1, S, H, K)."""
    v: Tensor
    """(R, n or 1, S, H, V)."""
    held: Tensor
    """Whether there is such a token, (R, n or 1, S)."""


class WindowFactor(FullPrecision):
    """Logit g of each head's factor on the softmax part, (H,)."""

    def __init__(self, heads: int, start: float) -> None:
        super().__init__()
        self.start = start
        self.logit = nn.Parameter(torch.empty(heads))

    def reset_parameters(self) -> None:
        share = torch.tensor(self.start, dtype=torch.float64)
        nn.init.constant_(self.logit, float(torch.logit(share)))

    def forward(self) -> Tensor:
        return torch.sigmoid(self.logit)


class HybridAttention(SoftmaxAttention):
    """Window softmax and linear attention on the projections of a softmax attention."""

    growing = False
    reserve = TokenMixer.reserve

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.options = config.options_as(LoLCATs)
        self.query_map = feature_map(self.options, self.heads, self.head_dim)
        self.state_heads = self.kv_heads if self.options.shared_state else self.heads
        self.key_map = feature_map(self.options, self.state_heads, self.head_dim)
        self.factor = WindowFactor(self.heads, self.options.window_factor)
        self.reads: Reads = "both"
        self.dropped = False
        """Read the past alone while training: window dropout."""

    def forward(
        self, x: Tensor, span: Span, shared: Shared, state: LayerState | None
    ) -> tuple[Tensor, LayerState]:
        q, k, v = self._project(x, shared)
        out, kept = self.attend(q, k, v, span, state)
        return self.out(out.flatten(-2)), kept

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, span: Span, state: LayerState | None = None
    ) -> tuple[Tensor, LayerState]:
        """Attention before the output projection.

        Args:
            q, k, v: rotated, (B, T, heads or key-value heads, K).
            span: positions and packing.
            state: before the first token; None: empty.

        Returns:
            (B, T, H, K) and the state after the last token ({} unless `span.keep_state`).
        """
        batch, length = q.shape[:2]
        window = self.options.window
        blocks = tiles.make_blocks(span, batch, length, window)
        ring = state or {"k": None, "v": None}
        first: LayerState = {}
        if count := self.options.sink_tokens:
            for name, new in (("sink_k", k), ("sink_v", v)):
                old = None if state is None else state[name]
                first[name] = tiles.first_tokens(new, count, span, blocks, old)
        q = tiles.lay_out(q, blocks)  # (R, n, w, H, K)
        k = tiles.lay_out(k, blocks, ring["k"])  # (R, n, w, G, K)
        v = tiles.lay_out(v, blocks, ring["v"])
        held = blocks.held.to(v.dtype)[..., None, None]
        keys, values = repeat_heads(k, self.state_heads), repeat_heads(v * held, self.state_heads)
        values = torch.cat((values, held.expand(*values.shape[:-1], 1)), -1)  # [v, 1]
        q_map, k_map = self.query_map(q), self.key_map(keys)  # (R, n, w, H or state heads, F)
        sinks = None
        if count:
            k_map = k_map * (blocks.position >= count)[..., None, None]
            own = [tiles.of_blocks(repeat_heads(x, self.heads), blocks) for x in first.values()]
            there = torch.arange(count, device=q.device) < blocks.end[:, None]  # (N, S)
            sinks = Sinks(own[0], own[1], tiles.of_blocks(there, blocks))
        initial = None
        if state is not None:
            assert span.offset is not None
            initial = _settle(state, span.offset, window)
        far = far_states(k_map, values, initial, blocks)  # (R, n, state heads, F, K + 1)
        repeated = [repeat_heads(x, self.heads) for x in (keys, values, k_map)]
        out = hybrid_attention(
            q, repeated[0], repeated[1], q_map, repeated[2], self._of_heads(far, 2), sinks,
            self.factor(), blocks, self.options,
            "past" if self.dropped and self.training else self.reads,
        )  # fmt: skip
        out = tiles.collect(out, blocks, length)
        if not span.keep_state:
            return out, {}
        return out, {
            **_final_states(k_map, values, far, blocks),
            "k": tiles.new_ring(k, blocks),
            "v": tiles.new_ring(v, blocks),
            **first,
        }

    def key_features(self, k: Tensor) -> Tensor:
        """phi_k of rotated keys (..., key-value heads, K) for each query head, (..., H, F)."""
        return repeat_heads(self.key_map(repeat_heads(k, self.state_heads)), self.heads)

    def _of_heads(self, states: Tensor, dim: int) -> Tensor:
        """States with their heads at `dim` repeated to the query heads that share them."""
        group = self.heads // self.state_heads
        return states if group == 1 else states.repeat_interleave(group, dim=dim)

    def step(
        self, x: Tensor, positions: Tensor, shared: Shared, state: LayerState
    ) -> tuple[Tensor, LayerState]:
        q, k, v = (part[:, 0] for part in self._project(x[:, None], shared))  # (B, ., K)
        window, terraced = self.options.window, self.options.arrangement == "terraced"
        ring, wide = {"k": state["k"], "v": state["v"]}, state["kv"].dtype
        rows = torch.arange(x.shape[0], device=x.device)

        begins = (positions % window == 0)[:, None, None, None]
        kv = torch.where(begins, state["kv"] + state["pending"], state["kv"])
        pending = torch.where(begins, 0, state["pending"])
        leaving = (positions + window) % (2 * window)  # the slot of position - window
        left = {
            name: repeat_heads(cache[rows, leaving], self.state_heads)
            for name, cache in ring.items()
        }
        features = self.key_map(left["k"].to(q.dtype)).to(wide)  # (B, state heads, F)
        features = features * (positions >= window + self.options.sink_tokens)[:, None, None]
        pending = (
            pending + features[..., None] * F.pad(left["v"].to(wide), (0, 1), value=1)[..., None, :]
        )

        slot = positions % (2 * window)
        for name, new in (("k", k), ("v", v)):
            ring[name].index_put_((rows, slot), new.to(ring[name].dtype))
        held = tiles.ring_positions(positions, window)  # (B, 2w)
        oldest = (positions // window - 1) * window if terraced else positions - window + 1
        visible = held >= oldest.clamp(min=0)[:, None]
        keys, values = ring["k"], ring["v"]
        first: LayerState = {}
        if count := self.options.sink_tokens:
            index = torch.arange(count, device=x.device)
            now = (index == positions[:, None])[..., None, None]
            for name, new in (("sink_k", k), ("sink_v", v)):
                first[name] = torch.where(now, new[:, None].to(state[name].dtype), state[name])
            keys = torch.cat((first["sink_k"], keys), 1)
            values = torch.cat((first["sink_v"], values), 1)
            visible = torch.cat((index < oldest[:, None], visible), 1)
        groups = q.unflatten(1, (self.kv_heads, -1))  # (B, G, H / G, K)
        scores = torch.einsum("bgak,bsgk->bgas", groups, keys.to(q.dtype)).flatten(1, 2)
        scores = self.capped(scores.to(wide) * q.shape[-1] ** -0.5)
        near = _near_weights(scores, visible[:, None], self.factor()[:, None])
        near = near * (self.reads != "past")
        weights = near.to(v.dtype).unflatten(1, (self.kv_heads, -1))
        sums = torch.einsum("bgas,bsgv->bgav", weights, values.to(v.dtype)).flatten(1, 2)
        read = self._of_heads(kv if terraced else kv + pending, 1)
        far = torch.einsum("bhf,bhfv->bhv", self.query_map(q).to(wide), read)
        far = far * _far_factor(self.factor(), self.options)[:, None] * (self.reads != "window")
        out = _divide(far[..., :-1] + sums.to(wide), far[..., -1:] + near.sum(-1, keepdim=True))
        after = {"kv": kv, "pending": pending, **ring, **first}
        return self.out(out.to(v.dtype).flatten(1)), after

    def compare(self, x: Tensor, span: Span, shared: Shared) -> tuple[Tensor, ...]:
        """Teacher and student on the same projections, for attention transfer.

        Args: as `forward`, without a state.

        Returns:
            q (B, T, H, K) and k (B, T, key-value heads, K), rotated; the softmax attention's and
            the hybrid's output, both (B, T, H, K) before the output projection. Gradients reach
            feature maps and window factor alone.
        """
        with torch.no_grad():
            q, k, v = self._project(x, shared)
            teacher = self._read(q, k, v, span, None)
        student, _ = self.attend(q, k, v, span)
        return q, k, teacher, student

    def initial_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> LayerState:
        features = self.options.features(self.head_dim)
        shape = (batch_size, self.state_heads, features, self.head_dim + 1)
        cache = (batch_size, 2 * self.options.window, self.kv_heads, self.head_dim)
        count = self.options.sink_tokens
        names = {"k": cache, "v": cache}
        if count:
            names |= dict.fromkeys(("sink_k", "sink_v"), (batch_size, count, *cache[2:]))
        return {
            "kv": torch.zeros(shape, device=device, dtype=angle_dtype(dtype)),
            "pending": torch.zeros(shape, device=device, dtype=angle_dtype(dtype)),
            **{n: torch.zeros(size, device=device, dtype=dtype) for n, size in names.items()},
        }


def hybrid_attention(
    q: Tensor,
    k: Tensor,
    values: Tensor,
    q_map: Tensor,
    k_map: Tensor,
    far: Tensor,
    sinks: Sinks | None,
    factor: Tensor,
    blocks: Blocks,
    options: LoLCATs,
    reads: Reads = "both",
) -> Tensor:
    """The module's formula on blocks.

    Args:
        q, k: rotated, (R, n, w, H, K).
        values: [v, 1], and 0 where a slot is empty, (R, n, w, H, V + 1).
        q_map, k_map: features, (R, n, w, H, F).
        far: `far_states`, (R, n, H, F, V + 1).
        sinks: first tokens; their features in k_map are 0.
        factor: on the softmax part, (H,).
        blocks: where the tokens are.
        options: arrangement and weighting.
        reads: both parts, or one. What nothing is read for is 0.

    Returns:
        (R, n, w, H, V).
    """
    window, wide, preceded = q.shape[2], far.dtype, blocks.preceded
    index = torch.arange(window, device=q.device)
    own = index <= index[:, None]  # (w, w): key j is not after query i
    earlier = torch.ones_like(own) if options.arrangement == "terraced" else ~own
    earlier = earlier & preceded[..., None, None]  # (R or 1, n, w, w)
    visible = torch.cat((earlier, own.expand(earlier.shape)), -1)[:, :, None]
    both = torch.cat((tiles.before(k), k), 2)  # (R, n, 2w, H, K)
    scores = torch.einsum("rnihk,rnjhk->rnhij", q, both)
    v = torch.cat((tiles.before(values), values), 2)[..., :-1]
    if sinks is not None:
        where, count = blocks.position[..., None], sinks.k.shape[2]
        terraced = options.arrangement == "terraced"
        oldest = (where // window - 1) * window if terraced else where - window + 1
        outside = torch.arange(count, device=q.device) < oldest  # (R or 1, n, w, S)
        outside = (outside & sinks.held[:, :, None])[:, :, None]  # (R, n, 1, w, S)
        visible = torch.cat((outside, visible.expand(len(outside), -1, -1, -1, -1)), -1)
        beside = torch.einsum("rnihk,rnjhk->rnhij", q, sinks.k.expand(-1, q.shape[1], -1, -1, -1))
        scores = torch.cat((beside, scores), -1)
        v = torch.cat((sinks.v.expand(-1, q.shape[1], -1, -1, -1), v), 2)
    scores = capped(scores.to(wide) * q.shape[-1] ** -0.5, options.llama.score_cap)
    near = _near_weights(scores, visible, factor[:, None, None])
    if reads == "past":
        near = near * 0  # and not zeros: DDP wants every parameter in the graph
    sums = torch.einsum("rnhij,rnjhv->rnihv", near.to(v.dtype), v)
    weight = _far_factor(factor, options)[:, None]  # (H, 1)
    linear = _in_full("rnihf,rnhfv->rnihv", q_map, far)
    if options.arrangement == "sliding":
        # Keys of the block before that have left the window.
        beyond = (own & preceded[..., None, None])[:, :, None]  # (R or 1, n, 1, w, w)
        products = _in_full("rnihf,rnjhf->rnhij", q_map, tiles.before(k_map).to(wide))
        linear = linear + _in_full(
            "rnhij,rnjhv->rnihv", products * beyond, tiles.before(values).to(wide)
        )
    linear = linear * (torch.zeros_like(weight) if reads == "window" else weight)
    mass = linear[..., -1:] + near.sum(-1).transpose(2, 3)[..., None]
    return _divide(linear[..., :-1] + sums.to(wide), mass).to(q.dtype)


def _divide(total: Tensor, mass: Tensor) -> Tensor:
    """total / mass; 0 where there is no mass, which happens where one part alone is read."""
    return total / mass.masked_fill(mass == 0, 1)


def far_states(k_map: Tensor, values: Tensor, initial: Tensor | None, blocks: Blocks) -> Tensor:
    """State of every block: sum of phi(k) [v, 1]^T up to two blocks before it, (R, n, H, F, V + 1).

    `initial` (N, H, F, V + 1) holds what came before the buffer.
    """
    wide = angle_dtype(k_map.dtype)
    sums = _in_full("rnjhf,rnjhv->rnhfv", k_map, values.to(wide))
    far = tiles.sum_before(sums, blocks.sequence, 2)
    if initial is None:
        return far
    initial = initial[:, None] if blocks.sequence is None else initial[blocks.sequence][None]
    return far + initial


def _settle(state: LayerState, offset: Tensor, window: int) -> Tensor:
    """`kv` of the block in which the next token lies, (N, H, F, V + 1)."""
    begins = (offset % window == 0)[:, None, None, None]
    return torch.where(begins, state["kv"] + state["pending"], state["kv"])


def _final_states(k_map: Tensor, values: Tensor, far: Tensor, blocks: Blocks) -> LayerState:
    """`kv` and `pending` after each sequence's last token."""
    last, window = tiles.last_block(blocks), blocks.window
    index = torch.arange(window, device=last.device)
    gone = index <= ((blocks.end - 1) % window)[:, None]  # (N, w): out of the last token's window
    gone = gone & blocks.preceded.expand(k_map.shape[0], -1)[blocks.row, last][:, None]
    earlier = (last - 1).clamp(min=0)
    features, v = k_map[blocks.row, earlier], values[blocks.row, earlier]  # (N, w, H, .)
    pending = _in_full("njhf,njhv->nhfv", features * gone[..., None, None], v.to(far.dtype))
    return {"kv": far[blocks.row, last], "pending": pending}


def _near_weights(scores: Tensor, visible: Tensor, factor: Tensor) -> Tensor:
    """factor exp(score - row's largest), 0 where not visible."""
    scores = scores.masked_fill(~visible, -torch.inf)
    return factor.to(scores.dtype) * (scores - scores.amax(-1, keepdim=True)).exp()


def _far_factor(factor: Tensor, options: LoLCATs) -> Tensor:
    return 1 - factor if options.affine else torch.ones_like(factor)


def _in_full(equation: str, x: Tensor, y: Tensor) -> Tensor:
    """A product in y's dtype (float32 or wider), also under autocast."""
    with torch.autocast(x.device.type, enabled=False):
        return torch.einsum(equation, x.to(y.dtype), y)

"""Per-channel decay, second pass: what every token reads, and its mirror image, dv.

    forward   o_t  = sum_{s <= t} A_ts v_s  + (q_t P(start, t)) S
    reverse   dv_s = sum_{t >= s} A_ts do_t + (k_s P(s, end)) dS

with S the state before and dS the state gradient after a tile. One program owns one tile of
2^LEVELS tokens of one head and BV value channels. States are stored once a chunk of C tokens, so
the program carries the nearest stored one across the tiles in between, at most C / tile - 1. Scores
(`vector_tiles`), a (tile, tile) float32 accumulator summed over key blocks, never leave registers.
Bytes moved a token and head with bfloat16, K = V = BV = 128: q, k (logits), v, o and one state a
chunk, 1280.
"""

from __future__ import annotations

import triton
import triton.language as tl

from models.kernels.triton.common import locate
from models.kernels.triton.vector_tiles import (
    add_scores,
    load_key,
    load_tile,
    store_tile,
    tile_update,
)


@triton.jit(do_not_specialize=["tokens", "sequences", "heads"])
def read_states(
    q, k, gate, low, w, states, out, cu_seqlens,
    q_b, q_t, q_h, q_c, k_b, k_t, k_h, k_c, gate_b, gate_t, gate_h, gate_c, low_h, low_c,
    w_b, w_t, w_h, w_c, tokens, sequences, heads,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    LEVELS: tl.constexpr, GATE: tl.constexpr, REVERSE: tl.constexpr, PACKED: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """o from values w = v and states S; in REVERSE dv from w = do and dstates.

    out: (B, T, H, V), contiguous. Grid: (entries * C / 2^LEVELS * H * ceil(V / BV),).
    """
    BT: tl.constexpr = 1 << LEVELS
    TILES: tl.constexpr = C // BT
    pid = tl.program_id(0)
    v_blocks: tl.constexpr = (V + BV - 1) // BV
    h = (pid // v_blocks % heads).to(tl.int64)
    tile = pid // v_blocks // heads
    entry = tile // TILES
    n, index, start, length = locate(entry, cu_seqlens, tokens, sequences, C, PACKED)
    t0 = index * C + tile % TILES * BT
    if n >= sequences or t0 >= length:
        return
    begin = start.to(tl.int64)
    batch = (n * (0 if PACKED else 1)).to(tl.int64)
    q += batch * q_b + begin * q_t + h * q_h
    k += batch * k_b + begin * k_t + h * k_h
    gate += batch * gate_b + begin * gate_t + h * gate_h
    w += batch * w_b + begin * w_t + h * w_h
    out += ((batch * tokens + begin) * heads + h) * V
    states += (entry.to(tl.int64) * heads + h) * (K * V)

    t = tl.arange(0, BT)
    row = t0 + t
    cv = pid % v_blocks * BV + tl.arange(0, BV)
    # Tiles between this one and the chunk's stored state, nearest the state first.
    between = TILES - 1 - tile % TILES if REVERSE else tile % TILES
    scores = tl.zeros([BT, BT], tl.float32)
    diagonal = tl.zeros([BT], tl.float32)
    read = tl.zeros([BT, BV], tl.float32)
    for k0 in tl.range(0, K, BK, disable_licm=True):
        ck = k0 + tl.arange(0, BK)
        if GATE:
            bound = tl.load(low + h * low_h + ck * low_c, mask=ck < K, other=0.0).to(tl.float32)
        else:
            bound = tl.zeros([BK], tl.float32)
        bq = load_tile(q, row, ck, q_t, q_c, length, K).to(tl.float32)
        bk, f = load_key(k, gate, bound, row, ck, k_t, k_c, gate_t, gate_c, length, K, GATE)
        scores, prefix, suffix = add_scores(scores, bq, bk, f, LEVELS, DOT, PRECISION)
        diagonal += tl.sum(bq * bk, 1)
        reader = (bk * suffix if REVERSE else bq * prefix).to(DOT)
        inside = (ck < K)[:, None] & (cv < V)[None, :]
        state = tl.load(states + ck[:, None] * V + cv[None, :], mask=inside, other=0.0)
        state = state.to(tl.float32)
        for i in range(0, between):
            near = index * C + (TILES - 1 - i if REVERSE else i) * BT
            weights, total = tile_update(
                q, k, gate, bound, near, ck, q_t, q_c, k_t, k_c, gate_t, gate_c, length,
                K, BT, GATE, REVERSE,
            )  # fmt: skip
            value = load_tile(w, near + t, cv, w_t, w_c, length, V).to(DOT)
            state = tl.dot(
                tl.trans(weights.to(DOT)), value, state * total[:, None], input_precision=PRECISION
            )
        read = tl.dot(reader, state.to(DOT), read, input_precision=PRECISION)
    value = load_tile(w, row, cv, w_t, w_c, length, V).to(DOT)
    causal = t[:, None] < t[None, :] if REVERSE else t[:, None] > t[None, :]
    scores = tl.where(causal, scores, 0.0)
    scores = tl.where(t[:, None] == t[None, :], diagonal[:, None], scores)
    read = tl.dot(scores.to(DOT), value, read, input_precision=PRECISION)
    store_tile(out, read, row, cv, heads * V, length, V)

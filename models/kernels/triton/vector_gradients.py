"""Per-channel decay, last pass of the backward: dq, dk and the gradient of the decay or the gate.

With S before and dS after a tile, D_ts = do_t . v_s, and the levels of `vector_tiles` (x, y):

    dq_t = D_tt k_t + sum_levels F_t y_t + P(start, t) (S do_t)
    dk_s = D_ss q_s + sum_levels R_s y_s + P(s, end) (dS v_s)
    dlog f_t = all that crosses t: pairs s < t <= r, S to r >= t, s < t to dS, S to dS

Row r of a level carries x_r y_r, the weight of all its pairs, and a level's rows of second halves
sum to what its rows of first halves sum to. So the pairs that cross t are a reverse running sum of
x y, positive in second halves and negative in first ones. The diagonal, which no decay touches, is
left out, and x is the rounded operand of the product: what must cancel then does so to float32's
precision, in bfloat16 too, and over one tile only.

With GATE, dk and dlog f fold into the logits' gradient in registers, dx = f' (dlog f / f - dk) with
f' = (1 - b) sigmoid(x) sigmoid(-x), and the lower bound's is summed over the tile. There a factor
below 2^-20 counts as 2^-20: for b = 0 and closed gates, dlog f / f is rounding noise over zero.
"""

from __future__ import annotations

import triton
import triton.language as tl

from models.kernels.triton.common import locate
from models.kernels.triton.vector_tiles import (
    double,
    load_key,
    load_tile,
    running_sum,
    sigmoids,
    store_tile,
    tile_update,
)


@triton.jit(do_not_specialize=["tokens", "sequences", "heads"])
def gradients(
    q, k, gate, low, v, do, states, dstates, dq, dk, dgate, dlow, cu_seqlens,
    q_b, q_t, q_h, q_c, k_b, k_t, k_h, k_c, gate_b, gate_t, gate_h, gate_c, low_h, low_c,
    v_b, v_t, v_h, v_c, do_b, do_t, do_h, do_c, tokens, sequences, heads,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    LEVELS: tl.constexpr, GATE: tl.constexpr, PACKED: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of 2^LEVELS tokens, one head and BK key channels.

    dq, dk, dgate: (B, T, H, K), contiguous; with GATE dk is absent, k is the logits and dgate their
    gradient. dlow: (tiles, H, K) float32, summed over each tile. Values are visited BV channels at
    a time. Grid: (entries * C / 2^LEVELS * H * ceil(K / BK),).
    """
    BT: tl.constexpr = 1 << LEVELS
    TILES: tl.constexpr = C // BT
    tl.static_assert(TILES == 1 or TILES == 2)
    pid = tl.program_id(0)
    k_blocks: tl.constexpr = (K + BK - 1) // BK
    h = (pid // k_blocks % heads).to(tl.int64)
    tile = pid // k_blocks // heads
    entry = tile // TILES
    n, index, start, length = locate(entry, cu_seqlens, tokens, sequences, C, PACKED)
    ck = pid % k_blocks * BK + tl.arange(0, BK)
    t0 = index * C + tile % TILES * BT
    if GATE:
        dlow += (tile.to(tl.int64) * heads + h) * K
    if n >= sequences or t0 >= length:
        if GATE:
            tl.store(dlow + ck, tl.zeros([BK], tl.float32), mask=ck < K)
        return
    begin = start.to(tl.int64)
    batch = (n * (0 if PACKED else 1)).to(tl.int64)
    q += batch * q_b + begin * q_t + h * q_h
    k += batch * k_b + begin * k_t + h * k_h
    gate += batch * gate_b + begin * gate_t + h * gate_h
    v += batch * v_b + begin * v_t + h * v_h
    do += batch * do_b + begin * do_t + h * do_h
    output = ((batch * tokens + begin) * heads + h) * K
    states += (entry.to(tl.int64) * heads + h) * (K * V)
    dstates += (entry.to(tl.int64) * heads + h) * (K * V)

    t = tl.arange(0, BT)
    row = t0 + t
    if GATE:
        bound = tl.load(low + h * low_h + ck * low_c, mask=ck < K, other=0.0).to(tl.float32)
    else:
        bound = tl.zeros([BK], tl.float32)

    # Pairs inside the tile.
    d_lower = tl.zeros([BT, BT], tl.float32)  # D
    d_upper = tl.zeros([BT, BT], tl.float32)  # D^T
    for v0 in tl.range(0, V, BV, disable_licm=True):
        cv = v0 + tl.arange(0, BV)
        bv = load_tile(v, row, cv, v_t, v_c, length, V).to(DOT)
        bdo = load_tile(do, row, cv, do_t, do_c, length, V).to(DOT)
        d_lower = tl.dot(bdo, tl.trans(bv), d_lower, input_precision=PRECISION)
        d_upper = tl.dot(bv, tl.trans(bdo), d_upper, input_precision=PRECISION)
    diagonal = tl.sum(tl.where(t[:, None] == t[None, :], d_lower, 0.0), 1)[:, None]
    d = tl.where(t[:, None] > t[None, :], d_lower, d_upper).to(DOT)
    bq = load_tile(q, row, ck, q_t, q_c, length, K).to(tl.float32)
    bk, prefix = load_key(k, gate, bound, row, ck, k_t, k_c, gate_t, gate_c, length, K, GATE)
    suffix = tl.full([BT, BK], 1.0, tl.float32)
    differ = t[:, None] ^ t[None, :]
    gq = diagonal * bk
    gk = diagonal * bq
    crossing = tl.zeros([BT, BK], tl.float32)
    for level in tl.static_range(LEVELS):
        second = ((t >> level) & 1 == 1)[:, None]
        weight = tl.where(second, prefix, suffix)
        x = (tl.where(second, bq, bk) * weight).to(DOT)
        pairs = tl.where((differ >> level) == 1, d, tl.zeros_like(d))
        y = tl.dot(pairs, x, input_precision=PRECISION)
        xy = x.to(tl.float32) * y
        crossing += tl.where(second, xy, -xy)
        gq += tl.where(second, weight * y, 0.0)
        gk += tl.where(second, 0.0, weight * y)
        prefix, suffix = double(prefix, suffix, second, 1 << level)

    # What crosses the tile's ends. A chunk is one tile or two: the second tile's S is the stored
    # one and the first tile's tokens, the first tile's dS the stored one and the second tile's.
    if TILES == 2:
        second_tile = tile % TILES == 1
        near0 = t0 - BT if second_tile else t0 + BT
        if second_tile:
            weights, total = tile_update(
                q, k, gate, bound, near0, ck, q_t, q_c, k_t, k_c, gate_t, gate_c, length,
                K, BT, GATE, False,
            )  # fmt: skip
        else:
            weights, total = tile_update(
                q, k, gate, bound, near0, ck, q_t, q_c, k_t, k_c, gate_t, gate_c, length,
                K, BT, GATE, True,
            )  # fmt: skip
        weights = weights.to(DOT)
        near = v if second_tile else do
        near_t = v_t if second_tile else do_t
        near_c = v_c if second_tile else do_c
    dq_state = tl.zeros([BT, BK], tl.float32)
    dk_state = tl.zeros([BT, BK], tl.float32)
    through = tl.zeros([BK], tl.float32)  # <S, dS>
    for v0 in tl.range(0, V, BV, disable_licm=True):
        cv = v0 + tl.arange(0, BV)
        inside = (cv < V)[:, None] & (ck < K)[None, :]
        block = ck[None, :] * V + cv[:, None]  # states transposed: (BV, BK)
        state = tl.load(states + block, mask=inside, other=0.0).to(tl.float32)
        dstate = tl.load(dstates + block, mask=inside, other=0.0).to(tl.float32)
        if TILES == 2:
            value = load_tile(near, near0 + t, cv, near_t, near_c, length, V).to(DOT)
            change = tl.dot(tl.trans(value), weights, input_precision=PRECISION)
            state = tl.where(second_tile, state * total[None, :] + change, state)
            dstate = tl.where(second_tile, dstate, dstate * total[None, :] + change)
        through += tl.sum(state * dstate, 0)
        bdo = load_tile(do, row, cv, do_t, do_c, length, V).to(DOT)
        dq_state = tl.dot(bdo, state.to(DOT), dq_state, input_precision=PRECISION)
        bv = load_tile(v, row, cv, v_t, v_c, length, V).to(DOT)
        dk_state = tl.dot(bv, dstate.to(DOT), dk_state, input_precision=PRECISION)
    dq_state *= prefix
    dk_state *= suffix
    gq += dq_state
    gk += dk_state
    crossing += bq * dq_state
    # The product of the tile's factors is prefix * suffix in every row.
    before, _ = running_sum(bk * dk_state, False)
    dlog = prefix * suffix * through[None, :] + before + tl.cumsum(crossing, 0, reverse=True)

    store_tile(dq + output, gq, row, ck, heads * K, length, K)
    if GATE:
        x = load_tile(gate, row, ck, gate_t, gate_c, length, K).to(tl.float32)
        keep, write = sigmoids(x)
        f = bound[None, :] + (1.0 - bound[None, :]) * keep
        # keep / f and write are at most 1; f = 0 only where keep = 0.
        dx = write * (keep / tl.maximum(f, 1e-37) * dlog - keep * gk) * (1.0 - bound[None, :])
        store_tile(dgate + output, dx, row, ck, heads * K, length, K)
        db = tl.where((row < length)[:, None], write * (dlog / tl.maximum(f, 2.0**-20) - gk), 0.0)
        tl.store(dlow + ck, tl.sum(db, 0), mask=ck < K)
    else:
        # Nothing passes a factor of zero; only rounding noise is left there.
        _, f = load_key(k, gate, bound, row, ck, k_t, k_c, gate_t, gate_c, length, K, False)
        dlog = tl.where(f > 0.0, dlog, 0.0)
        store_tile(dk + output, gk, row, ck, heads * K, length, K)
        store_tile(dgate + output, dlog, row, ck, heads * K, length, K)

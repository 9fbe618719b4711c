"""The delta rule, last pass of the backward: dq, dk and the gradient of the decay.

Keys read the state as queries do, with -dV in the place of dO. With S the state before and dS the
gradient after a tile, U its writes, D = dO U^T and G = dV U^T, masked to s <= t and s < t,

    dq = (D * W) k + P * (dO S^T)
    dk = (D * W)^T q - (G * W + (G * W)^T) k - P * (dV S^T) + R * (U dS^T)
    dlog f_t = all that crosses t: pairs s < t <= r, S to r >= t, s < t to dS, S to dS

for W of one decay a head. For one a channel the pairs are visited level by level, as in
`vector_gradients`, once with D for queries and once with -G for keys as queries. A token's pair
with itself, which no decay touches, is left out of dlog f, so that what must cancel does so in
float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from models.kernels.triton.common import FLOOR, LOG2E, locate
from models.kernels.triton.delta_tiles import head_factors, head_weights
from models.kernels.triton.vector_tiles import double, load_tile, running_sum, store_tile


@triton.jit
def _products(
    do, dv, errors, share, row, do_t, do_c, v_row, length,
    V: tl.constexpr, BV: tl.constexpr, BT: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """D, D^T, G and G^T of a tile; an accumulator is never transposed."""
    d = tl.zeros([BT, BT], tl.float32)
    d_mirrored = tl.zeros([BT, BT], tl.float32)
    g = tl.zeros([BT, BT], tl.float32)
    g_mirrored = tl.zeros([BT, BT], tl.float32)
    for v0 in tl.range(0, V, BV, disable_licm=True):
        cv = v0 + tl.arange(0, BV)
        bdo = load_tile(do, row, cv, do_t, do_c, length, V).to(DOT)
        bdv = load_tile(dv, row, cv, v_row, 1, length, V).to(DOT)
        u = load_tile(errors, row, cv, v_row, 1, length, V).to(tl.float32)
        u = (share[:, None] * u).to(DOT)
        d = tl.dot(bdo, tl.trans(u), d, input_precision=PRECISION)
        d_mirrored = tl.dot(u, tl.trans(bdo), d_mirrored, input_precision=PRECISION)
        g = tl.dot(bdv, tl.trans(u), g, input_precision=PRECISION)
        g_mirrored = tl.dot(u, tl.trans(bdv), g_mirrored, input_precision=PRECISION)
    return d, d_mirrored, g, g_mirrored


@triton.jit(do_not_specialize=["tokens", "sequences", "heads"])
def delta_gradients(
    q, k, beta, decay, do, dv, errors, states, dstates, dq, dk, ddecay, cu_seqlens,
    q_b, q_t, q_h, q_c, k_b, k_t, k_h, k_c, beta_b, beta_t, beta_h,
    decay_b, decay_t, decay_h, decay_c, do_b, do_t, do_h, do_c, tokens, sequences, heads,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    BT: tl.constexpr, LEVELS: tl.constexpr, MODE: tl.constexpr, PACKED: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of BT = 2^LEVELS tokens, one head and BK key channels.

    dv, errors: (B, T, H, V); dq, dk: (B, T, H, K); ddecay: of MODE 2 (B, T, H, K), of MODE 1 the
    part of these channels, (ceil(K / BK), B, T, H) float32; all contiguous. states, dstates:
    (entries * C / BT, H, K, V). Grid: (entries * C / BT * H * ceil(K / BK),).
    """
    TILES: tl.constexpr = C // BT
    pid = tl.program_id(0)
    k_blocks: tl.constexpr = (K + BK - 1) // BK
    h = (pid // k_blocks % heads).to(tl.int64)
    tile = pid // k_blocks // heads
    n, index, start, length = locate(tile // TILES, cu_seqlens, tokens, sequences, C, PACKED)
    t0 = index * C + tile % TILES * BT
    if n >= sequences or t0 >= length:
        return
    begin = start.to(tl.int64)
    batch = (n * (0 if PACKED else 1)).to(tl.int64)
    q += batch * q_b + begin * q_t + h * q_h
    k += batch * k_b + begin * k_t + h * k_h
    beta += batch * beta_b + begin * beta_t + h * beta_h
    decay += batch * decay_b + begin * decay_t + h * decay_h
    do += batch * do_b + begin * do_t + h * do_h
    token = (batch * tokens + begin) * heads + h
    dv += token * V
    errors += token * V
    at = (tile.to(tl.int64) * heads + h) * (K * V)
    states += at
    dstates += at

    t = tl.arange(0, BT)
    row = t0 + t
    ck = pid % k_blocks * BK + tl.arange(0, BK)
    share = tl.load(beta + row.to(tl.int64) * beta_t, mask=row < length, other=0.0).to(tl.float32)
    d, d_mirrored, g, g_mirrored = _products(
        do, dv, errors, share, row, do_t, do_c, heads * V, length, V, BV, BT, DOT, PRECISION
    )
    bq = load_tile(q, row, ck, q_t, q_c, length, K).to(tl.float32)
    bk = load_tile(k, row, ck, k_t, k_c, length, K).to(tl.float32)

    # Pairs inside the tile.
    if MODE == 2:
        own = tl.sum(tl.where(t[:, None] == t[None, :], d, 0.0), 1)[:, None]
        below = t[:, None] > t[None, :]
        d = tl.where(below, d, d_mirrored).to(DOT)
        g = tl.where(below, g, g_mirrored).to(DOT)
        x = load_tile(decay, row, ck, decay_t, decay_c, length, K).to(tl.float32)
        prefix = tl.exp2(x * LOG2E)
        suffix = tl.full([BT, BK], 1.0, tl.float32)
        differ = t[:, None] ^ t[None, :]
        gq = own * bk
        gk = own * bq
        crossing = tl.zeros([BT, BK], tl.float32)
        for level in tl.static_range(LEVELS):
            second = ((t >> level) & 1 == 1)[:, None]
            weight = tl.where(second, prefix, suffix)
            x = (tl.where(second, bq, bk) * weight).to(DOT)
            pairs = tl.where((differ >> level) == 1, d, tl.zeros_like(d))
            y = tl.dot(pairs, x, input_precision=PRECISION)
            xy = x.to(tl.float32) * y
            gq += tl.where(second, weight * y, 0.0)
            gk += tl.where(second, 0.0, weight * y)
            x = (bk * weight).to(DOT)
            pairs = tl.where((differ >> level) == 1, g, tl.zeros_like(g))
            y = tl.dot(pairs, x, input_precision=PRECISION)
            xy -= x.to(tl.float32) * y
            gk -= weight * y
            crossing += tl.where(second, xy, -xy)
            prefix, suffix = double(prefix, suffix, second, 1 << level)
        total = prefix * suffix  # the same in every row
    else:
        if MODE == 1:
            weights = head_weights(decay, row, decay_t, length, BT, False)
            d *= weights
            g *= weights
            weights = head_weights(decay, row, decay_t, length, BT, True)
            d_mirrored *= weights
            g_mirrored *= weights
        prefix, suffix, total = head_factors(decay, row, decay_t, length, MODE)
        below = t[:, None] > t[None, :]
        above = t[:, None] < t[None, :]
        if MODE == 1:
            reads = tl.dot(bq.to(DOT), tl.trans(bk.to(DOT)), input_precision=PRECISION)
            pairs = d * reads
            reads = tl.dot(bk.to(DOT), tl.trans(bk.to(DOT)), input_precision=PRECISION)
            pairs = tl.where(below, pairs - g * reads, 0.0)
            column = tl.sum(pairs, 0)
            # Pairs that end at or behind t, less those that begin there.
            crossing = tl.sum(pairs, 1) - column
        g = tl.where(below, g, tl.where(above, g_mirrored, 0.0)).to(DOT)
        d = tl.where(above, 0.0, d).to(DOT)
        d_mirrored = tl.where(below, 0.0, d_mirrored).to(DOT)
        gq = tl.dot(d, bk.to(DOT), input_precision=PRECISION)
        gk = tl.dot(d_mirrored, bq.to(DOT), input_precision=PRECISION)
        gk -= tl.dot(g, bk.to(DOT), input_precision=PRECISION)

    # What crosses the tile's ends.
    dread = tl.zeros([BT, BK], tl.float32)
    dkey = tl.zeros([BT, BK], tl.float32)
    donward = tl.zeros([BT, BK], tl.float32)
    through = tl.zeros([BK], tl.float32)  # <S, dS>
    for v0 in tl.range(0, V, BV, disable_licm=True):
        cv = v0 + tl.arange(0, BV)
        inside = (cv < V)[:, None] & (ck < K)[None, :]
        block = ck[None, :] * V + cv[:, None]  # states transposed: (BV, BK)
        state = tl.load(states + block, mask=inside, other=0.0)
        dstate = tl.load(dstates + block, mask=inside, other=0.0)
        through += tl.sum(state.to(tl.float32) * dstate.to(tl.float32), 0)
        bdo = load_tile(do, row, cv, do_t, do_c, length, V).to(DOT)
        dread = tl.dot(bdo, state.to(DOT), dread, input_precision=PRECISION)
        bdv = load_tile(dv, row, cv, heads * V, 1, length, V).to(DOT)
        dkey = tl.dot(bdv, state.to(DOT), dkey, input_precision=PRECISION)
        u = load_tile(errors, row, cv, heads * V, 1, length, V).to(tl.float32)
        u = (share[:, None] * u).to(DOT)
        donward = tl.dot(u, dstate.to(DOT), donward, input_precision=PRECISION)
    dread *= prefix
    dkey *= prefix
    donward *= suffix
    gq += dread
    gk += donward - dkey
    output = token * K
    store_tile(dq + output, gq, row, ck, heads * K, length, K)
    store_tile(dk + output, gk, row, ck, heads * K, length, K)
    if MODE == 2:
        crossing += bq * dread - bk * dkey
        before, _ = running_sum(bk * donward, False)
        dlog = total * through[None, :] + before + tl.cumsum(crossing, 0, reverse=True)
        # Nothing passes a factor of zero; only rounding noise is left there.
        x = load_tile(decay, row, ck, decay_t, decay_c, length, K).to(tl.float32)
        dlog = tl.where(tl.exp2(x * LOG2E) > 0.0, dlog, 0.0)
        store_tile(ddecay + output, dlog, row, ck, heads * K, length, K)
    if MODE == 1:
        crossing += tl.sum(bq * dread - bk * dkey, 1)
        before, _ = running_sum(tl.sum(bk * donward, 1), False)
        through = tl.sum(tl.sum(total * through[None, :], 1), 0)
        dlog = through + before + tl.cumsum(crossing, 0, reverse=True)
        x = tl.load(decay + row.to(tl.int64) * decay_t, mask=row < length, other=0.0)
        dlog = tl.where(x.to(tl.float32) * LOG2E > FLOOR, dlog, 0.0)
        rows = tokens * (n * 0 + (1 if PACKED else sequences)).to(tl.int64)
        ddecay += pid % k_blocks * rows * heads + token
        tl.store(ddecay + row.to(tl.int64) * heads, dlog, mask=row < length)

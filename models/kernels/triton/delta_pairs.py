"""The delta rule, first pass: products of all pairs of a tile's tokens, and their resolvent.

All that later passes need of pairs, for every decay (`delta_tiles`): scores and Q, each (tile,
tile) in the dtype of products. Bytes moved a token and head with bfloat16, K = 128, tiles of 64:
512 read, 256 written. With one decay a channel the doubling ends in P and R, and P q, P k and R k
are written too (256 read and 768 written more): whole tiles of factors, of all key channels, would
not fit the registers of the passes over tiles.
"""

from __future__ import annotations

import triton
import triton.language as tl

from models.kernels.triton.common import locate
from models.kernels.triton.delta_tiles import head_weights, resolvent
from models.kernels.triton.vector_tiles import add_scores, load_key, load_tile, store_tile


@triton.jit(do_not_specialize=["tokens", "sequences", "heads"])
def delta_pairs(
    q, k, beta, decay, scores, solved, reading, read_key, writing, totals, cu_seqlens,
    q_b, q_t, q_h, q_c, k_b, k_t, k_h, k_c, beta_b, beta_t, beta_h,
    decay_b, decay_t, decay_h, decay_c, tokens, sequences, heads,
    K: tl.constexpr, BK: tl.constexpr, C: tl.constexpr, BT: tl.constexpr, LEVELS: tl.constexpr,
    MODE: tl.constexpr, PACKED: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
    SOLVE: tl.constexpr,
):  # fmt: skip
    """Scores and Q of one tile of BT = 2^LEVELS tokens and one head.

    scores, solved: (entries * C / BT, H, BT, BT). In MODE 2 alone reading P q, read_key P k and
    writing R k, (B, T, H, K), and totals, the products of the tile's decays, (entries * C / BT, H,
    K) float32. All contiguous. Grid: (entries * C / BT * H,).
    """
    TILES: tl.constexpr = C // BT
    pid = tl.program_id(0)
    h = (pid % heads).to(tl.int64)
    tile = pid // heads
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
    output = ((batch * tokens + begin) * heads + h) * K
    totals += (tile.to(tl.int64) * heads + h) * K
    t = tl.arange(0, BT)
    row = t0 + t
    read = tl.zeros([BT, BT], tl.float32)
    overlap = tl.zeros([BT, BT], tl.float32)
    own = tl.zeros([BT], tl.float32)
    if MODE == 2:
        # A loop for queries as readers and one for keys, which together would not fit registers,
        # nor tensor memory on sm_100.
        for k0 in tl.range(0, K, BK, disable_licm=True):
            ck = k0 + tl.arange(0, BK)
            bq, f = load_key(q, decay, decay, row, ck, q_t, q_c, decay_t, decay_c, length, K, False)
            bk = load_tile(k, row, ck, k_t, k_c, length, K).to(tl.float32)
            own += tl.sum(bq * bk, 1)
            read, prefix, _ = add_scores(read, bq, bk, f, LEVELS, DOT, PRECISION)
            store_tile(reading + output, bq * prefix, row, ck, heads * K, length, K)
        read = tl.where(t[:, None] == t[None, :], own[:, None], read)
        for k0 in tl.range(0, K, BK, disable_licm=True):
            ck = k0 + tl.arange(0, BK)
            bk, f = load_key(k, decay, decay, row, ck, k_t, k_c, decay_t, decay_c, length, K, False)
            overlap, prefix, suffix = add_scores(overlap, bk, bk, f, LEVELS, DOT, PRECISION)
            store_tile(read_key + output, bk * prefix, row, ck, heads * K, length, K)
            store_tile(writing + output, bk * suffix, row, ck, heads * K, length, K)
            total = tl.sum(tl.where(t[:, None] == 0, prefix * suffix, 0.0), 0)
            tl.store(totals + ck, total, mask=ck < K)
    else:
        for k0 in tl.range(0, K, BK, disable_licm=True):
            ck = k0 + tl.arange(0, BK)
            bq = load_tile(q, row, ck, q_t, q_c, length, K).to(DOT)
            bk = load_tile(k, row, ck, k_t, k_c, length, K).to(DOT)
            read = tl.dot(bq, tl.trans(bk), read, input_precision=PRECISION)
            overlap = tl.dot(bk, tl.trans(bk), overlap, input_precision=PRECISION)
    if MODE == 1:
        weights = head_weights(decay, row, decay_t, length, BT, False)
        read *= weights
        overlap *= weights
    read = tl.where(t[:, None] >= t[None, :], read, 0.0)
    at = (tile.to(tl.int64) * heads + h) * (BT * BT) + t[:, None] * BT + t[None, :]
    tl.store(scores + at, read.to(scores.dtype.element_ty))
    overlap = tl.where(t[:, None] > t[None, :], overlap, 0.0)
    share = tl.load(beta + row.to(tl.int64) * beta_t, mask=row < length, other=0.0).to(tl.float32)
    found = resolvent(overlap, share, BT, LEVELS, SOLVE)
    tl.store(solved + at, found.to(solved.dtype.element_ty))

"""Gradient of decays per token and head, chunk by chunk and without cancellation.

The log decay of token t multiplies every pair (j < t <= i). With S the state before a chunk, dS the
gradient of the state after it, G the running sum inside it, and G_C its total:

    dlog f_t =   sum_{i >= t > j} M_ij,   M_ij = w_ij (q_i . k_j)(do_i . v_j)   both in the chunk
               + sum_{i >= t} exp(G_i) (q_i S) . do_i                           j before it
               + sum_{j < t}  exp(G_C - G_j) (k_j dS) . v_j                     i after it
               + exp(G_C) <S, dS>                                               both outside

The usual identity, a reverse running sum of q.dq - k.dk over the whole sequence, is cheaper, but it
subtracts numbers that agree in all digits bfloat16 keeps: its error grows with T and swamps the
gradient of a fast decay. Here sums stay inside a chunk and leave out a token's pair with itself.
"""

from __future__ import annotations

import triton
import triton.language as tl

from models.kernels.triton.common import FLOOR, LOG2E, locate
from models.kernels.triton.scalar_scan import running_decay


@triton.jit(do_not_specialize=["tokens", "sequences", "heads"])
def decay_gradient(
    q, k, v, do, decay, states, dstates, ddecay, cu_seqlens,
    q_b, q_t, q_h, q_d, k_b, k_t, k_h, k_d, v_b, v_t, v_h, v_d, do_b, do_t, do_h, do_d,
    decay_b, decay_t, decay_h,
    tokens, sequences, heads,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    PACKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dlog f of one chunk of C tokens and head, from states stored every C tokens.

    ddecay: (B, T, H) float32. Grid: (entries * heads,).
    """
    pid = tl.program_id(0)
    h = (pid % heads).to(tl.int64)
    entry = pid // heads
    n, index, start, length = locate(entry, cu_seqlens, tokens, sequences, C, PACKED)
    if n >= sequences:
        return
    row = (0 if PACKED else n) + n.to(tl.int64) * 0
    begin = start.to(tl.int64) + index.to(tl.int64) * C
    count = tl.minimum(length - index * C, C)
    q += row * q_b + begin * q_t + h * q_h
    k += row * k_b + begin * k_t + h * k_h
    v += row * v_b + begin * v_t + h * v_h
    do += row * do_b + begin * do_t + h * do_h
    decay += row * decay_b + begin * decay_t + h * decay_h
    states += (entry.to(tl.int64) * heads + h) * (K * V)
    dstates += (entry.to(tl.int64) * heads + h) * (K * V)

    rows = tl.arange(0, C)
    live = (rows < count)[:, None]
    hi, lo, total_hi, total_lo = running_decay(decay, decay_t, rows, count, 2)
    # Pairs inside the chunk, half of the earlier tokens at a time: fewer registers. Those that
    # straddle t are the ones that end at or after t less the ones that begin there.
    ends = tl.zeros([C], tl.float32)
    for j0 in range(0, C, C // 2):
        columns = j0 + tl.arange(0, C // 2)
        near = (columns < count)[:, None]
        scores = tl.zeros([C, C // 2], tl.float32)
        for a0 in range(0, K, BK):
            a = a0 + tl.arange(0, BK)[None, :]
            q_c = tl.load(q + rows[:, None] * q_t + a * q_d, mask=live & (a < K), other=0.0)
            k_c = tl.load(k + columns[:, None] * k_t + a * k_d, mask=near & (a < K), other=0.0)
            scores = tl.dot(q_c, tl.trans(k_c), scores, input_precision=PRECISION)
        dscores = tl.zeros([C, C // 2], tl.float32)
        for b0 in range(0, V, BV):
            b = b0 + tl.arange(0, BV)[None, :]
            do_c = tl.load(do + rows[:, None] * do_t + b * do_d, mask=live & (b < V), other=0.0)
            v_c = tl.load(v + columns[:, None] * v_t + b * v_d, mask=near & (b < V), other=0.0)
            dscores = tl.dot(do_c, tl.trans(v_c), dscores, input_precision=PRECISION)
        own = rows[:, None] == columns[None, :]
        span = hi[:, None] - tl.sum(tl.where(own, hi[:, None], 0.0), 0)[None, :]
        span += lo[:, None] - tl.sum(tl.where(own, lo[:, None], 0.0), 0)[None, :]
        # Strictly below the diagonal: a token paired with itself meets no decay.
        span = tl.where(rows[:, None] > columns[None, :], span, float("-inf"))
        pairs = scores * dscores * tl.exp2(span)
        ends += tl.sum(pairs, 1)
        ends -= tl.sum(tl.where(own, tl.sum(pairs, 0)[None, :], 0.0), 1)
    straddle = tl.cumsum(ends, 0, reverse=True)

    # Pairs with one or both ends outside.
    earlier = tl.zeros([C], tl.float32)
    later = tl.zeros([C], tl.float32)
    across = tl.zeros([BK], tl.float32)
    for k0 in range(0, K, BK):
        c = k0 + tl.arange(0, BK)
        q_c = tl.load(
            q + rows[:, None] * q_t + c[None, :] * q_d, mask=live & (c[None, :] < K), other=0.0
        )
        k_c = tl.load(
            k + rows[:, None] * k_t + c[None, :] * k_d, mask=live & (c[None, :] < K), other=0.0
        )
        for v0 in range(0, V, BV):
            d = v0 + tl.arange(0, BV)
            mask = live & (d[None, :] < V)
            do_c = tl.load(do + rows[:, None] * do_t + d[None, :] * do_d, mask=mask, other=0.0)
            v_c = tl.load(v + rows[:, None] * v_t + d[None, :] * v_d, mask=mask, other=0.0)
            tile = c[:, None] * V + d[None, :]
            inside = (c[:, None] < K) & (d[None, :] < V)
            state = tl.load(states + tile, mask=inside, other=0.0)
            dstate = tl.load(dstates + tile, mask=inside, other=0.0)
            read = tl.dot(q_c, state.to(q_c.dtype), input_precision=PRECISION)  # (C, BV)
            earlier += tl.sum(read * do_c.to(tl.float32), 1)
            read = tl.dot(k_c, dstate.to(k_c.dtype), input_precision=PRECISION)
            later += tl.sum(read * v_c.to(tl.float32), 1)
            across += tl.sum(state * dstate, 1)
    earlier *= tl.exp2(hi + lo)
    later *= tl.exp2((total_hi - hi) + (total_lo - lo))
    both = tl.exp2(total_hi + total_lo) * tl.sum(across, 0)
    # Sums over i >= t, and over j < t: never the difference of inclusive sums, since a token's own
    # product meets no decay and may exceed the answer by many orders. Padded rows hold zeros.
    gradient = straddle + tl.cumsum(earlier, 0, reverse=True) + both
    gradient += tl.sum(tl.where(rows[None, :] < rows[:, None], later[None, :], 0.0), 1)
    # A factor below float32's smallest number has no gradient; rounding must not give it one.
    step = tl.load(decay + rows * decay_t, mask=rows < count, other=0.0)
    alive = (rows < count) & (step.to(tl.float32) * LOG2E > FLOOR)
    gradient = tl.where(alive, gradient, 0.0)
    token = row * tokens + begin
    tl.store(ddecay + (token + rows) * heads + h, gradient, mask=rows < count)

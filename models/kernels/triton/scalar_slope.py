"""Gradient of a head's constant decay, by carrying the derivative of the state along with it.

With f = exp(decay) the factor of a head, S the state and T = dS/df,

    S_t = f S_{t-1} + k_t v_t^T          T_t = f T_{t-1} + S_{t-1}
    o_t = S_t^T q_t                      do_t/df = T_t^T q_t

so one walk over the tokens, in chunks as in `scalar_scan`, sums up dL/df = sum_t do_t . (T_t^T q_t)
and, at its end, <dS, T> with dS the gradient of the state it leaves; ddecay = f dL/df. No state
crosses memory for it, as the gradients of many decays (`scalar_decay`) need. Where a sequence is
cut, every segment starts from its stored S with T = 0 and ends with the stored dS: the chain rule.

Nothing is a difference of nearly equal numbers. Derivatives carry one power of f less than what
they belong to, and distances are divided by the length of the walk, so that all weights,
d f^(d - 1) / length, are at most 1: neither a factor of 1e-13 nor a long memory leaves float16.
"""

from __future__ import annotations

import triton
import triton.language as tl

from models.kernels.triton.common import locate, log2_decay
from models.kernels.triton.scalar_scan import load_state


@triton.jit(do_not_specialize=["tokens", "sequences", "segment", "heads"])
def slope_gradient(
    q, k, v, do, decay, initial, states, dfinal, dstates, ddecay, cu_seqlens,
    q_b, q_t, q_h, q_d, k_b, k_t, k_h, k_d, v_b, v_t, v_h, v_d, do_b, do_t, do_h, do_d,
    decay_h, initial_n, initial_h, initial_k, initial_v, dfinal_n, dfinal_h, dfinal_k, dfinal_v,
    tokens, sequences, segment, heads,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    PACKED: tl.constexpr, SEGMENTED: tl.constexpr, INITIAL: tl.constexpr, DFINAL: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The share of one segment, head and V tile in the gradient of the head's log decay.

    ddecay: (entries, heads, tiles) float32. Grid: (entries * heads * cdiv(V, BV),).
    """
    TILES: tl.constexpr = (V + BV - 1) // BV
    pid = tl.program_id(0)
    column0 = pid % TILES * BV
    h = ((pid // TILES) % heads).to(tl.int64)
    entry = pid // TILES // heads
    n, index, start, length = locate(entry, cu_seqlens, tokens, sequences, segment, PACKED)
    if n >= sequences:
        tl.store(ddecay + pid, 0.0)
        return
    row = (0 if PACKED else n) + n.to(tl.int64) * 0
    begin = start.to(tl.int64) + index.to(tl.int64) * segment
    size = tl.minimum(length - index * segment, segment)
    q += row * q_b + begin * q_t + h * q_h
    k += row * k_b + begin * k_t + h * k_h
    v += row * v_b + begin * v_t + h * v_h
    do += row * do_b + begin * do_t + h * do_h
    at = (entry.to(tl.int64) * heads + h) * (K * V)
    if SEGMENTED:
        state = load_state(states + at, V, 1, column0, K, V, BK, BV)
    elif INITIAL:
        state = load_state(
            initial + n.to(tl.int64) * initial_n + h * initial_h, initial_k, initial_v,
            column0, K, V, BK, BV,
        )  # fmt: skip
    else:
        state = tl.zeros([BK, BV], tl.float32)
    slope_hi, slope_lo = log2_decay(tl.load(decay + h * decay_h))
    slope = slope_hi + slope_lo
    unit = 1.0 / tl.maximum(size, 1).to(tl.float32)  # a distance of one step
    rows = tl.arange(0, C)
    c = tl.arange(0, BK)[None, :]
    d = column0 + tl.arange(0, BV)[None, :]
    tangent = tl.zeros([BK, BV], tl.float32)
    total = tl.zeros([BV], tl.float32)
    for chunk in range(0, tl.cdiv(size, C)):
        count = tl.minimum(size - chunk * C, C)
        # Rows past the end repeat the last one; only v and do are zeroed there.
        near = tl.minimum(rows, count - 1)[:, None]
        live = (rows < count)[:, None] & (d < V)
        q_c = tl.load(q + (near * q_t + c * q_d), mask=c < K, other=0.0)
        k_c = tl.load(k + (near * k_t + c * k_d), mask=c < K, other=0.0)
        v_c = tl.load(v + (rows[:, None] * v_t + d * v_d), mask=live, other=0.0)
        do_c = tl.load(do + (rows[:, None] * do_t + d * do_d), mask=live, other=0.0)
        # Both tokens in the chunk.
        pairs = tl.dot(q_c, tl.trans(k_c), input_precision=PRECISION)  # (C, C)
        pairs *= tl.dot(do_c, tl.trans(v_c), input_precision=PRECISION)
        steps = tl.minimum(rows + 1, count)
        distance = (steps[:, None] - steps[None, :]).to(tl.float32)
        weight = tl.exp2(tl.where(distance >= 1.0, (distance - 1.0) * slope, float("-inf")))
        inside = tl.sum(pairs * (weight * distance * unit))
        # The first before it.
        passed = steps.to(tl.float32)
        read = tl.dot(q_c, state.to(q_c.dtype), input_precision=PRECISION)  # (C, BV)
        read *= (tl.exp2((passed - 1.0) * slope) * passed * unit)[:, None]
        tangent_read = tl.dot(q_c, tangent.to(q_c.dtype), input_precision=PRECISION)
        read += tangent_read * tl.exp2(passed * slope)[:, None]
        total += tl.sum(read * do_c.to(tl.float32), 0)
        total += tl.where(tl.arange(0, BV) == 0, inside, 0.0)
        # On to the next chunk; T first, which wants the old S.
        last = count.to(tl.float32)
        left = (count - steps).to(tl.float32)
        value = v_c.to(tl.float32)
        weight = tl.exp2(tl.where(left >= 1.0, (left - 1.0) * slope, float("-inf"))) * left * unit
        tangent = tangent * tl.exp2(last * slope) + state * (
            tl.exp2((last - 1.0) * slope) * last * unit
        )
        key = tl.trans(k_c)
        tangent = tl.dot(
            key, (value * weight[:, None]).to(v_c.dtype), tangent, input_precision=PRECISION
        )
        state = tl.dot(
            key, (value * tl.exp2(left * slope)[:, None]).to(v_c.dtype),
            state * tl.exp2(last * slope), input_precision=PRECISION,
        )  # fmt: skip
        q += C * q_t
        k += C * k_t
        v += C * v_t
        do += C * do_t
    if SEGMENTED:
        dstate = load_state(dstates + at, V, 1, column0, K, V, BK, BV)
        total += tl.sum(tangent * dstate, 0)
    elif DFINAL:
        dstate = load_state(
            dfinal + n.to(tl.int64) * dfinal_n + h * dfinal_h, dfinal_k, dfinal_v,
            column0, K, V, BK, BV,
        )  # fmt: skip
        total += tl.sum(tangent * dstate, 0)
    # A factor below float32's smallest number is an exact zero: 2^slope is, too.
    scale = tl.exp2(slope) * tl.maximum(size, 1).to(tl.float32)
    tl.store(ddecay + pid, tl.sum(total, 0) * scale)

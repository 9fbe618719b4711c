"""Linear attention with scalar decay in one scan: output and all gradients are the same kernel.

With w_ij = exp(sum of log decays over j < m <= i) and D the decay-weighted causal pairs, the output
and the three input gradients share one shape, a scan over tokens that carries a state:

    o_i  = sum_{j <= i} w_ij (q_i . k_j)  v_j       scan(q, k, v),      forward in time
    dq_i = sum_{j <= i} w_ij (do_i . v_j) k_j       scan(do, v, k),     forward in time
    dk_j = sum_{i >= j} w_ij (v_j . do_i) q_i       scan(v, do, q),     backward in time
    dv_j = sum_{i >= j} w_ij (k_j . q_i)  do_i      scan(k, q, do),     backward in time

Each program owns one tile of output columns of one head and walks over chunks of C tokens:

    1. A = x y^T (C, C), masked to the causal side and weighted by w inside the chunk;
    2. out = exp(G) (x S) + A z, with S the carried state (contraction rows, tile columns);
    3. S <- exp(G_C) S + y^T (exp(G_C - G) z)              (G: running sum of log decays)

so no chunk state crosses memory when one program walks a whole sequence, and bytes are near the
floor. Where batch and heads give too few programs, sequences are cut into segments whose first
states `scalar_states` has stored; a program then walks one segment. The three gradients run as
one launch, the role read off the program number: programs of one head run side by side and share
their reads of q, k, v, do in L2.

Accumulators and states are float32; tensor-core operands are rounded to the input's dtype, the
carried state never is. float16 operands saturate at 65504: states beyond that need bfloat16.
"""

from __future__ import annotations

import triton
import triton.language as tl

from models.kernels.triton.common import locate, log2_decay


@triton.jit
def running_decay(decay, decay_t, rows, count, MODE: tl.constexpr):
    """Running sums G (hi, lo) of log2 decays inside a chunk, and their total.

    `decay` points at the head's slope (HEAD) or at its first token in the chunk (HEAD_T). Rows past
    `count` repeat the total.
    """
    if MODE == 1:
        step_hi, step_lo = log2_decay(tl.load(decay))
        steps = tl.minimum(rows + 1, count).to(tl.float32)
        hi = step_hi * steps
        lo = step_lo * steps
        total_hi = step_hi * count.to(tl.float32)
        total_lo = step_lo * count.to(tl.float32)
    else:
        raw = tl.load(decay + rows * decay_t, mask=rows < count, other=0.0)
        step_hi, step_lo = log2_decay(raw)
        hi = tl.cumsum(step_hi, 0)
        lo = tl.cumsum(step_lo, 0)
        total_hi = tl.sum(step_hi, 0)
        total_lo = tl.sum(step_lo, 0)
    return hi, lo, total_hi, total_lo


@triton.jit
def load_state(pointer, row, column, column0, R: tl.constexpr, N: tl.constexpr, BR: tl.constexpr,
               BN: tl.constexpr):  # fmt: skip
    """Tile (BR, BN) of a float32 state with given strides, from column `column0` on."""
    r = tl.arange(0, BR)
    n = column0 + tl.arange(0, BN)
    mask = (r[:, None] < R) & (n[None, :] < N)
    return tl.load(pointer + r[:, None] * row + n[None, :] * column, mask=mask, other=0.0).to(
        tl.float32
    )


@triton.jit
def scan(
    x, y, z, out,
    x_t, x_d, y_t, y_d, z_t, z_d, out_t,
    decay, decay_t,
    state, length, column0, direction, R, N,
    BR: tl.constexpr, BN: tl.constexpr, C: tl.constexpr,
    MODE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Walk `length` tokens and write out (length, tile); returns the carried state (BR, BN).

    Pointers are at the first token; x, y have R channels, z and out N, of which this tile covers
    [column0, column0 + BN). BR, BN: the padded widths. direction: 1 forward, -1 backward in time.
    """
    rows = tl.arange(0, C)
    r = tl.arange(0, BR)[None, :]
    n = column0 + tl.arange(0, BN)[None, :]
    chunks = tl.cdiv(length, C)
    backwards = (1 - direction) // 2
    # Base pointers move from chunk to chunk, so that the offsets of a thread's rows stay 32-bit.
    at = (length * 0 + chunks - 1) * C * backwards
    stride = direction * C
    first = at.to(tl.int64)
    x += first * x_t
    y += first * y_t
    z += first * z_t
    out += first * out_t
    if MODE == 2:
        decay += first * decay_t
    for _ in range(0, chunks):
        count = tl.minimum(length - at, C)
        # Rows past the end repeat the last one; only z, which multiplies them, is zeroed there.
        near = tl.minimum(rows, count - 1)[:, None]
        live = (rows < count)[:, None] & (n < N)
        x_c = tl.load(x + (near * x_t + r * x_d), mask=r < R, other=0.0)
        y_c = tl.load(y + (near * y_t + r * y_d), mask=r < R, other=0.0)
        z_c = tl.load(z + (rows[:, None] * z_t + n * z_d), mask=live, other=0.0)
        scores = tl.dot(x_c, tl.trans(y_c), input_precision=PRECISION)  # (C, C)
        # Positions capped at the chunk's end depend on the chunk, so masks and distances are
        # recomputed: hoisted out of the loop they would fill a third of the registers.
        steps = tl.minimum(rows + 1, count)
        distance = (steps[:, None] - steps[None, :]) * direction
        if MODE == 0:
            scores = tl.where(distance >= 0, scores, 0.0)
        else:
            # read: log weight from the carried state to each token; write: from token to state.
            if MODE == 1:
                slope_hi, slope_lo = log2_decay(tl.load(decay))
                slope = slope_hi + slope_lo
                passed = backwards * count + direction * steps
                read = passed.to(tl.float32) * slope
                write = (count - passed).to(tl.float32) * slope
                total = count.to(tl.float32) * slope
                span = distance.to(tl.float32) * slope
            else:
                hi, lo, total_hi, total_lo = running_decay(decay, decay_t, rows, count, MODE)
                read = (total_hi * backwards + hi * direction) + (
                    total_lo * backwards + lo * direction
                )
                total = total_hi + total_lo
                write = (total_hi * (1 - backwards) - hi * direction) + (
                    total_lo * (1 - backwards) - lo * direction
                )
                span = ((hi[:, None] - hi[None, :]) + (lo[:, None] - lo[None, :])) * direction
            scores *= tl.exp2(tl.where(distance >= 0, span, float("-inf")))
        weights = scores.to(z_c.dtype)
        acc = tl.dot(x_c, state.to(x_c.dtype), input_precision=PRECISION)  # (C, BN)
        if MODE != 0:
            acc *= tl.exp2(read)[:, None]
        acc = tl.dot(weights, z_c, acc, input_precision=PRECISION)
        tl.store(out + (rows[:, None] * out_t + n), acc.to(out.dtype.element_ty), mask=live)
        if MODE != 0:
            z_c = (z_c.to(tl.float32) * tl.exp2(write)[:, None]).to(z_c.dtype)
            state *= tl.exp2(total)
        state = tl.dot(tl.trans(y_c), z_c, state, input_precision=PRECISION)
        at += stride
        x += stride * x_t
        y += stride * y_t
        z += stride * z_t
        out += stride * out_t
        if MODE == 2:
            decay += stride * decay_t
    return state


@triton.jit(do_not_specialize=["tokens", "sequences", "segment", "heads"])
def output(
    q, k, v, o, decay, initial, states, final, cu_seqlens,
    q_b, q_t, q_h, q_d, k_b, k_t, k_h, k_d, v_b, v_t, v_h, v_d,
    decay_b, decay_t, decay_h, initial_n, initial_h, initial_k, initial_v,
    tokens, sequences, segment, heads,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    MODE: tl.constexpr, PACKED: tl.constexpr, SEGMENTED: tl.constexpr, INITIAL: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """o of one segment and V tile; the program of a sequence's last segment writes its final state.

    Grid: (entries * heads * cdiv(V, BV),), tiles of a head side by side.
    """
    TILES: tl.constexpr = (V + BV - 1) // BV
    pid = tl.program_id(0)
    column0 = pid % TILES * BV
    h = ((pid // TILES) % heads).to(tl.int64)
    entry = pid // TILES // heads
    n, index, start, length = locate(entry, cu_seqlens, tokens, sequences, segment, PACKED)
    if n >= sequences:
        return
    row = (0 if PACKED else n) + n.to(tl.int64) * 0
    begin = start.to(tl.int64) + index.to(tl.int64) * segment
    size = tl.minimum(length - index * segment, segment)

    if SEGMENTED:
        state = load_state(
            states + (entry.to(tl.int64) * heads + h) * (K * V), V, 1, column0, K, V, BK, BV
        )
    elif INITIAL:
        state = load_state(
            initial + n.to(tl.int64) * initial_n + h * initial_h, initial_k, initial_v,
            column0, K, V, BK, BV,
        )  # fmt: skip
    else:
        state = tl.zeros([BK, BV], tl.float32)
    state = scan(
        q + row * q_b + begin * q_t + h * q_h,
        k + row * k_b + begin * k_t + h * k_h,
        v + row * v_b + begin * v_t + h * v_h,
        o + ((row * tokens + begin) * heads + h) * V,
        q_t, q_d, k_t, k_d, v_t, v_d, heads * V,
        decay + row * decay_b + begin * decay_t + h * decay_h, decay_t,
        state, size, column0, 1, K, V, BK, BV, C, MODE, PRECISION,
    )  # fmt: skip
    if (index + 1) * segment >= length:
        rows = tl.arange(0, BK)[:, None]
        columns = column0 + tl.arange(0, BV)[None, :]
        base = final + (n.to(tl.int64) * heads + h) * (K * V)
        tl.store(base + rows * V + columns, state, mask=(rows < K) & (columns < V))


@triton.jit(do_not_specialize=["tokens", "sequences", "segment", "heads"])
def gradients(
    q, k, v, do, dq, dk, dv, decay, initial, states, dfinal, dstates, dinitial, cu_seqlens,
    q_b, q_t, q_h, q_d, k_b, k_t, k_h, k_d, v_b, v_t, v_h, v_d, do_b, do_t, do_h, do_d,
    decay_b, decay_t, decay_h, initial_n, initial_h, initial_k, initial_v,
    dfinal_n, dfinal_h, dfinal_k, dfinal_v,
    tokens, sequences, segment, heads,
    K: tl.constexpr, V: tl.constexpr, BR: tl.constexpr, BT: tl.constexpr, C: tl.constexpr,
    MODE: tl.constexpr, PACKED: tl.constexpr, SEGMENTED: tl.constexpr, INITIAL: tl.constexpr,
    DFINAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One of dq, dk (tiles of K), dv (tiles of V) of one segment; dv's first writes dinitial.

    The roles differ in pointers and direction only, so the scan is compiled once and its shared
    memory is that of one role. Grid: (entries * heads * (2 cdiv(K, BT) + cdiv(V, BT)),). BR: the
    larger of the padded K and V.
    """
    K_TILES: tl.constexpr = (K + BT - 1) // BT
    TILES: tl.constexpr = 2 * K_TILES + (V + BT - 1) // BT
    pid = tl.program_id(0)
    tile = pid % TILES
    h = ((pid // TILES) % heads).to(tl.int64)
    entry = pid // TILES // heads
    n, index, start, length = locate(entry, cu_seqlens, tokens, sequences, segment, PACKED)
    if n >= sequences:
        return
    row = (0 if PACKED else n) + n.to(tl.int64) * 0
    begin = start.to(tl.int64) + index.to(tl.int64) * segment
    size = tl.minimum(length - index * segment, segment)
    q += row * q_b + begin * q_t + h * q_h
    k += row * k_b + begin * k_t + h * k_h
    v += row * v_b + begin * v_t + h * v_h
    do += row * do_b + begin * do_t + h * do_h
    decay += row * decay_b + begin * decay_t + h * decay_h
    token = (row * tokens + begin) * heads + h
    dq += token * K
    dk += token * K
    dv += token * V
    if SEGMENTED:
        # Dense (K, V): the states before the segment, and the gradients after it.
        states += (entry.to(tl.int64) * heads + h) * (K * V)
        dstates += (entry.to(tl.int64) * heads + h) * (K * V)
    else:
        initial += n.to(tl.int64) * initial_n + h * initial_h
        dfinal += n.to(tl.int64) * dfinal_n + h * dfinal_h

    is_dq = tile < K_TILES
    is_dv = tile >= 2 * K_TILES
    if is_dq:
        x, x_t, x_d, y, y_t, y_d, z, z_t, z_d = do, do_t, do_d, v, v_t, v_d, k, k_t, k_d
        out, column0, direction = dq, tile * BT, 1
    elif is_dv:
        x, x_t, x_d, y, y_t, y_d, z, z_t, z_d = k, k_t, k_d, q, q_t, q_d, do, do_t, do_d
        out, column0, direction = dv, (tile - 2 * K_TILES) * BT, -1
    else:
        x, x_t, x_d, y, y_t, y_d, z, z_t, z_d = v, v_t, v_d, do, do_t, do_d, q, q_t, q_d
        out, column0, direction = dk, (tile - K_TILES) * BT, -1
    if K == V:
        R: tl.constexpr = K
        N: tl.constexpr = K
    else:
        R = tl.where(is_dv, K, V)
        N = tl.where(is_dv, V, K)

    # dq and dk carry transposed states.
    r = tl.arange(0, BR)[:, None]
    c = column0 + tl.arange(0, BT)[None, :]
    inside = (r < R) & (c < N)
    if SEGMENTED:
        edge = states if is_dq else dstates
        edge_r = tl.where(is_dv, V, 1)
        edge_c = tl.where(is_dv, 1, V)
        state = tl.load(edge + r * edge_r + c * edge_c, mask=inside, other=0.0)
    else:
        state = tl.zeros([BR, BT], tl.float32)
        if INITIAL:
            at = initial + r * initial_v + c * initial_k
            state += tl.load(at, mask=inside & (r * 0 + tile < K_TILES), other=0.0).to(tl.float32)
        if DFINAL:
            dfinal_r = tl.where(is_dv, dfinal_k, dfinal_v)
            dfinal_c = tl.where(is_dv, dfinal_v, dfinal_k)
            at = dfinal + r * dfinal_r + c * dfinal_c
            state += tl.load(at, mask=inside & (r * 0 + tile >= K_TILES), other=0.0).to(tl.float32)
    state = scan(
        x, y, z, out, x_t, x_d, y_t, y_d, z_t, z_d, heads * N, decay, decay_t,
        state, size, column0, direction, R, N, BR, BT, C, MODE, PRECISION,
    )  # fmt: skip
    if INITIAL:
        # Only dv's programs hold dS untransposed: tiles from 2 * K_TILES on.
        base = dinitial + (n.to(tl.int64) * heads + h) * (K * V)
        first = tl.where(index == 0, tile, 0)
        tl.store(base + r * V + c, state, mask=inside & (r * 0 + first >= 2 * K_TILES))

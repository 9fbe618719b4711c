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
    state, length, column0,
    R: tl.constexpr, N: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr, C: tl.constexpr,
    MODE: tl.constexpr, REVERSE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Walk `length` tokens and write out (length, tile); returns the carried state (BR, BN).

    Pointers are at the first token; x, y have R channels, z and out N, of which this tile covers
    [column0, column0 + BN). BR, BN: the padded widths.
    """
    rows = tl.arange(0, C)
    r = tl.arange(0, BR)
    n = column0 + tl.arange(0, BN)
    chunks = tl.cdiv(length, C)
    for step in range(0, chunks):
        if REVERSE:
            begin = (chunks - 1 - step) * C
        else:
            begin = step * C
        count = tl.minimum(length - begin, C)
        at = (length * 0 + begin).to(tl.int64)
        live = rows < count
        r_mask = live[:, None] & (r[None, :] < R)
        n_mask = live[:, None] & (n[None, :] < N)
        x_c = tl.load(x + at * x_t + rows[:, None] * x_t + r[None, :] * x_d, mask=r_mask, other=0.0)
        y_c = tl.load(y + at * y_t + rows[:, None] * y_t + r[None, :] * y_d, mask=r_mask, other=0.0)
        z_c = tl.load(z + at * z_t + rows[:, None] * z_t + n[None, :] * z_d, mask=n_mask, other=0.0)
        scores = tl.dot(x_c, tl.trans(y_c), input_precision=PRECISION)  # (C, C)
        acc = tl.dot(x_c, state.to(x_c.dtype), input_precision=PRECISION)  # (C, BN)
        if REVERSE:
            causal = rows[:, None] <= rows[None, :]
        else:
            causal = rows[:, None] >= rows[None, :]
        if MODE == 0:
            scores = tl.where(causal, scores, 0.0)
            state += tl.dot(tl.trans(y_c), z_c, input_precision=PRECISION)
        else:
            hi, lo, total_hi, total_lo = running_decay(
                decay + at * decay_t, decay_t, rows, count, MODE
            )
            from_start = tl.exp2(hi + lo)
            to_end = tl.exp2((total_hi - hi) + (total_lo - lo))
            span = (hi[:, None] - hi[None, :]) + (lo[:, None] - lo[None, :])
            if REVERSE:
                span = -span
                acc = acc * to_end[:, None]
                z_w = z_c.to(tl.float32) * from_start[:, None]
            else:
                acc = acc * from_start[:, None]
                z_w = z_c.to(tl.float32) * to_end[:, None]
            scores = scores * tl.exp2(tl.where(causal, span, float("-inf")))
            state = state * tl.exp2(total_hi + total_lo) + tl.dot(
                tl.trans(y_c), z_w.to(z_c.dtype), input_precision=PRECISION
            )
        acc += tl.dot(scores.to(z_c.dtype), z_c, input_precision=PRECISION)
        tl.store(
            out + at * out_t + rows[:, None] * out_t + n[None, :],
            acc.to(out.dtype.element_ty),
            mask=n_mask,
        )
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
        state, size, column0, K, V, BK, BV, C, MODE, False, PRECISION,
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
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BT: tl.constexpr,
    C: tl.constexpr,
    MODE: tl.constexpr, PACKED: tl.constexpr, SEGMENTED: tl.constexpr, INITIAL: tl.constexpr,
    DFINAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One of dq, dk (tiles of K), dv (tiles of V) of one segment; dv's first writes dinitial.

    Grid: (entries * heads * (2 cdiv(K, BT) + cdiv(V, BT)),). BK, BV: padded K and V.
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
    head = n.to(tl.int64) * heads + h
    if SEGMENTED:
        # Stored states are dense (K, V); the first segment's are the initial state, the last's
        # dstates the final gradient.
        states += (entry.to(tl.int64) * heads + h) * (K * V)
        dstates += (entry.to(tl.int64) * heads + h) * (K * V)
    else:
        initial += n.to(tl.int64) * initial_n + h * initial_h
        dfinal += n.to(tl.int64) * dfinal_n + h * dfinal_h

    if tile < K_TILES:
        column0 = tile * BT
        if SEGMENTED:
            state = load_state(states, 1, V, column0, V, K, BV, BT)
        elif INITIAL:
            state = load_state(initial, initial_v, initial_k, column0, V, K, BV, BT)
        else:
            state = tl.zeros([BV, BT], tl.float32)
        scan(
            do, v, k, dq + token * K, do_t, do_d, v_t, v_d, k_t, k_d, heads * K, decay, decay_t,
            state, size, column0, V, K, BV, BT, C, MODE, False, PRECISION,
        )  # fmt: skip
    elif tile < 2 * K_TILES:
        column0 = (tile - K_TILES) * BT
        if SEGMENTED:
            state = load_state(dstates, 1, V, column0, V, K, BV, BT)
        elif DFINAL:
            state = load_state(dfinal, dfinal_v, dfinal_k, column0, V, K, BV, BT)
        else:
            state = tl.zeros([BV, BT], tl.float32)
        scan(
            v, do, q, dk + token * K, v_t, v_d, do_t, do_d, q_t, q_d, heads * K, decay, decay_t,
            state, size, column0, V, K, BV, BT, C, MODE, True, PRECISION,
        )  # fmt: skip
    else:
        column0 = (tile - 2 * K_TILES) * BT
        if SEGMENTED:
            state = load_state(dstates, V, 1, column0, K, V, BK, BT)
        elif DFINAL:
            state = load_state(dfinal, dfinal_k, dfinal_v, column0, K, V, BK, BT)
        else:
            state = tl.zeros([BK, BT], tl.float32)
        state = scan(
            k, q, do, dv + token * V, k_t, k_d, q_t, q_d, do_t, do_d, heads * V, decay, decay_t,
            state, size, column0, K, V, BK, BT, C, MODE, True, PRECISION,
        )  # fmt: skip
        if INITIAL and index == 0:
            rows = tl.arange(0, BK)[:, None]
            columns = column0 + tl.arange(0, BT)[None, :]
            mask = (rows < K) & (columns < V)
            tl.store(dinitial + head * (K * V) + rows * V + columns, state, mask=mask)

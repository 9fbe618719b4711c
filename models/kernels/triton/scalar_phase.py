"""Linear attention without decay whose queries and keys turn with position (cosFormer2, LRPE).

    q~_t = [q_t cos(theta t), q_t sin(theta t)],   k~ alike;   o_t = sum_{s <= t} (q~_t . k~_s) v_s

(arXiv 2406.16690 eq. 17.) The concatenation, twice as wide as q, never exists in memory: a program
rotates its tile as it loads it and carries the cosine and sine halves of the state (2K, V). Two
scans cover everything, as in `scalar_scan`. Rotated tiles and their states would fill the registers
at K = 128, so `read` takes the channels in up to four blocks, one after the other.

    read     o  (x, y, z) = (q, k, v) forward;  dv: (k, q, do) backward; the contraction turns
    inputs   dq (x, y, z) = (do, v, k) forward; dk: (v, do, q) backward; values and outputs turn,
             dq = dq~cos cos + dq~sin sin, and  dtheta += t q (dq~sin cos - dq~cos sin), k alike
"""

from __future__ import annotations

import triton
import triton.language as tl

from models.kernels.triton.common import locate, rotation, turns


@triton.jit
def turned(x, cos, sin):
    """(C, D) to (C, 2 D) in x's dtype: x cos and x sin, the two of a channel next to each other.

    In pairs and not in halves, because the compiler then passes the result to the tensor cores
    through shared memory. Halves it computes again in the registers of every warp group, which
    spills.
    """
    wide = x.to(tl.float32)
    pair = tl.join((wide * cos).to(x.dtype), (wide * sin).to(x.dtype))
    return tl.reshape(pair, [x.shape[0], 2 * x.shape[1]])


@triton.jit
def block_rows(block: tl.constexpr, K: tl.constexpr, BR: tl.constexpr):
    """Of block `block` of BR channels in pairs: row in a (2K, V) state in memory, all cosines
    first, and whether it is inside; both (2 BR, 1)."""
    pair = tl.arange(0, 2 * BR)
    channel = block * BR + pair // 2
    return (pair % 2 * K + channel)[:, None], (channel < K)[:, None]


@triton.jit
def load_block(
    block: tl.constexpr, edge, states, edge_k, edge_v, n_v, h, entry, heads,
    K: tl.constexpr, V: tl.constexpr, BR: tl.constexpr, BV: tl.constexpr,
    SEGMENTED: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """State (2 BR, BV) of one block of channels that a scan starts from."""
    row, inside = block_rows(block, K, BR)
    inside = inside & (n_v < V)
    if SEGMENTED:
        base = states + (entry.to(tl.int64) * heads + h) * (2 * K * V)
        state = tl.load(base + row * V + n_v, mask=inside, other=0.0)
    elif EDGE:
        state = tl.load(edge + row * edge_k + n_v * edge_v, mask=inside, other=0.0).to(tl.float32)
    else:
        state = tl.zeros([2 * BR, BV], tl.float32)
    return state


@triton.jit
def store_block(
    block: tl.constexpr, final, state, n_v, K: tl.constexpr, V: tl.constexpr, BR: tl.constexpr
):
    """Write one block of channels of the state (2K, V)."""
    row, inside = block_rows(block, K, BR)
    tl.store(final + row * V + n_v, state, mask=inside & (n_v < V))


@triton.jit
def add_block(
    block: tl.constexpr, scores, acc, state, x, y, z_c, x_t, x_d, y_t, y_d, near, position,
    theta, theta_k, K: tl.constexpr, BR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of channels of a chunk: its part of scores (C, C) and acc (C, BV), its state."""
    r = (block * BR + tl.arange(0, BR))[None, :]
    step = turns(tl.load(theta + r * theta_k, mask=r < K, other=0.0))
    x_c = tl.load(x + (near * x_t + r * x_d), mask=r < K, other=0.0)
    y_c = tl.load(y + (near * y_t + r * y_d), mask=r < K, other=0.0)
    cos, sin = rotation(position * step)
    x_c = turned(x_c, cos, sin)
    y_c = turned(y_c, cos, sin)
    scores = tl.dot(x_c, tl.trans(y_c), scores, input_precision=PRECISION)
    acc = tl.dot(x_c, state.to(x_c.dtype), acc, input_precision=PRECISION)
    state = tl.dot(tl.trans(y_c), z_c, state, input_precision=PRECISION)
    return scores, acc, state


@triton.jit(do_not_specialize=["tokens", "sequences", "segment", "heads"])
def phase_read(
    x, y, z, out, theta, offset, edge, states, final, cu_seqlens,
    x_b, x_t, x_h, x_d, y_b, y_t, y_h, y_d, z_b, z_t, z_h, z_d,
    theta_h, theta_k, offset_n, edge_n, edge_h, edge_k, edge_v,
    tokens, sequences, segment, heads,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    REVERSE: tl.constexpr, PACKED: tl.constexpr, SEGMENTED: tl.constexpr, EDGE: tl.constexpr,
    FINAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """o and the final state, or (REVERSE) dv and the initial state's gradient, of one V tile.

    Grid: (entries * heads * cdiv(V, BV),). `edge`: the state a sequence starts from in scan order;
    `final`: (N, H, 2K, V), the state it ends with (FINAL).
    """
    TILES: tl.constexpr = (V + BV - 1) // BV
    BLOCKS: tl.constexpr = min(BK // 32, 4) if BK > 32 else 1
    BR: tl.constexpr = BK // BLOCKS
    pid = tl.program_id(0)
    n_v = pid % TILES * BV + tl.arange(0, BV)[None, :]
    h = ((pid // TILES) % heads).to(tl.int64)
    entry = pid // TILES // heads
    n, index, start, length = locate(entry, cu_seqlens, tokens, sequences, segment, PACKED)
    if n >= sequences:
        return
    row = (0 if PACKED else n) + n.to(tl.int64) * 0
    begin = start.to(tl.int64) + index.to(tl.int64) * segment
    size = tl.minimum(length - index * segment, segment)
    chunks = tl.cdiv(size, C)
    direction: tl.constexpr = -1 if REVERSE else 1
    at = (size * 0 + chunks - 1) * C if REVERSE else size * 0
    first = begin + at
    x += row * x_b + first * x_t + h * x_h
    y += row * y_b + first * y_t + h * y_h
    z += row * z_b + first * z_t + h * z_h
    out += ((row * tokens + first) * heads + h) * V
    position0 = tl.load(offset + n * offset_n).to(tl.int32) + index * segment

    edge += n.to(tl.int64) * edge_n + h * edge_h
    theta += h * theta_h
    state_0 = load_block(
        0, edge, states, edge_k, edge_v, n_v, h, entry, heads, K, V, BR, BV, SEGMENTED, EDGE
    )
    if BLOCKS > 1:
        state_1 = load_block(
            1, edge, states, edge_k, edge_v, n_v, h, entry, heads, K, V, BR, BV, SEGMENTED, EDGE
        )
    if BLOCKS > 2:
        state_2 = load_block(
            2, edge, states, edge_k, edge_v, n_v, h, entry, heads, K, V, BR, BV, SEGMENTED, EDGE
        )
        state_3 = load_block(
            3, edge, states, edge_k, edge_v, n_v, h, entry, heads, K, V, BR, BV, SEGMENTED, EDGE
        )
    rows = tl.arange(0, C)
    for _ in tl.range(0, chunks, disable_licm=True):
        count = tl.minimum(size - at, C)
        near = tl.minimum(rows, count - 1)[:, None]
        live = (rows < count)[:, None] & (n_v < V)
        z_c = tl.load(z + (rows[:, None] * z_t + n_v * z_d), mask=live, other=0.0)
        position = (position0 + at + rows)[:, None]
        scores = tl.zeros([C, C], tl.float32)
        acc = tl.zeros([C, BV], tl.float32)
        scores, acc, state_0 = add_block(
            0, scores, acc, state_0, x, y, z_c, x_t, x_d, y_t, y_d, near, position, theta,
            theta_k, K, BR, PRECISION,
        )  # fmt: skip
        if BLOCKS > 1:
            scores, acc, state_1 = add_block(
                1, scores, acc, state_1, x, y, z_c, x_t, x_d, y_t, y_d, near, position, theta,
                theta_k, K, BR, PRECISION,
            )  # fmt: skip
        if BLOCKS > 2:
            scores, acc, state_2 = add_block(
                2, scores, acc, state_2, x, y, z_c, x_t, x_d, y_t, y_d, near, position, theta,
                theta_k, K, BR, PRECISION,
            )  # fmt: skip
            scores, acc, state_3 = add_block(
                3, scores, acc, state_3, x, y, z_c, x_t, x_d, y_t, y_d, near, position, theta,
                theta_k, K, BR, PRECISION,
            )  # fmt: skip
        steps = tl.minimum(rows + 1, count)
        distance = (steps[:, None] - steps[None, :]) * direction
        scores = tl.where(distance >= 0, scores, 0.0)
        acc = tl.dot(scores.to(z_c.dtype), z_c, acc, input_precision=PRECISION)
        tl.store(out + (rows[:, None] * (heads * V) + n_v), acc.to(out.dtype.element_ty), mask=live)
        at += direction * C
        x += direction * C * x_t
        y += direction * C * y_t
        z += direction * C * z_t
        out += direction * C * heads * V
    if FINAL:
        last = index == 0 if REVERSE else (index + 1) * segment >= length
        if last:
            final += (n.to(tl.int64) * heads + h) * (2 * K * V)
            store_block(0, final, state_0, n_v, K, V, BR)
            if BLOCKS > 1:
                store_block(1, final, state_1, n_v, K, V, BR)
            if BLOCKS > 2:
                store_block(2, final, state_2, n_v, K, V, BR)
                store_block(3, final, state_3, n_v, K, V, BR)


@triton.jit(do_not_specialize=["tokens", "sequences", "segment", "heads"])
def phase_inputs(
    q, k, v, do, dq, dk, dtheta, theta, offset, initial, states, dfinal, dstates, cu_seqlens,
    q_b, q_t, q_h, q_d, k_b, k_t, k_h, k_d, v_b, v_t, v_h, v_d, do_b, do_t, do_h, do_d,
    theta_h, theta_k, offset_n, initial_n, initial_h, initial_k, initial_v,
    dfinal_n, dfinal_h, dfinal_k, dfinal_v,
    tokens, sequences, segment, heads, entries,
    K: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, BT: tl.constexpr, C: tl.constexpr,
    PACKED: tl.constexpr, SEGMENTED: tl.constexpr, INITIAL: tl.constexpr, DFINAL: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dq or dk, and its share of dtheta, of one K tile.

    dtheta: (2, entries, H, K) float32, one share a role and segment.
    Grid: (entries * heads * 2 cdiv(K, BT),).
    """
    TILES: tl.constexpr = (K + BT - 1) // BT
    pid = tl.program_id(0)
    tile = pid % (2 * TILES)
    role = tile // TILES  # 0: dq, forward in time; 1: dk, backward
    column = tile % TILES * BT + tl.arange(0, BT)
    n_k = column[None, :]
    h = ((pid // (2 * TILES)) % heads).to(tl.int64)
    entry = pid // (2 * TILES) // heads
    share = dtheta + ((role * entries + entry).to(tl.int64) * heads + h) * K + column
    n, index, start, length = locate(entry, cu_seqlens, tokens, sequences, segment, PACKED)
    if n >= sequences:
        tl.store(share, tl.zeros([BT], tl.float32), mask=column < K)
        return
    row = (0 if PACKED else n) + n.to(tl.int64) * 0
    begin = start.to(tl.int64) + index.to(tl.int64) * segment
    size = tl.minimum(length - index * segment, segment)
    chunks = tl.cdiv(size, C)
    direction = 1 - 2 * role
    at = (size * 0 + chunks - 1) * C * role
    first = begin + at
    q += row * q_b + first * q_t + h * q_h
    k += row * k_b + first * k_t + h * k_h
    v += row * v_b + first * v_t + h * v_h
    do += row * do_b + first * do_t + h * do_h
    out0 = ((row * tokens + first) * heads + h) * K
    if role == 0:
        x, x_t, x_d, y, y_t, y_d = do, do_t, do_d, v, v_t, v_d
        z, z_t, z_d, own, own_t, own_d = k, k_t, k_d, q, q_t, q_d
        out = dq + out0
    else:
        x, x_t, x_d, y, y_t, y_d = v, v_t, v_d, do, do_t, do_d
        z, z_t, z_d, own, own_t, own_d = q, q_t, q_d, k, k_t, k_d
        out = dk + out0
    position0 = tl.load(offset + n * offset_n).to(tl.int32) + index * segment
    step = turns(tl.load(theta + h * theta_h + column * theta_k, mask=column < K, other=0.0))
    step = step[None, :]

    r = tl.arange(0, BV)
    # Transposed states: rows are value channels; columns in pairs, as in `phase_read`.
    pair = tl.arange(0, 2 * BT)
    pair_k = tile % TILES * BT + pair // 2
    channel = (pair % 2 * K + pair_k)[None, :]
    inside = (r[:, None] < V) & (pair_k[None, :] < K)
    state = tl.zeros([BV, 2 * BT], tl.float32)
    if SEGMENTED:
        base = (states if role == 0 else dstates) + (entry.to(tl.int64) * heads + h) * (2 * K * V)
        state += tl.load(base + r[:, None] + channel * V, mask=inside, other=0.0)
    else:
        if INITIAL:
            base = initial + n.to(tl.int64) * initial_n + h * initial_h
            base = base + r[:, None] * initial_v + channel * initial_k
            forwards = inside & (r[:, None] * 0 + role == 0)
            state += tl.load(base, mask=forwards, other=0.0).to(tl.float32)
        if DFINAL:
            base = dfinal + n.to(tl.int64) * dfinal_n + h * dfinal_h
            base = base + r[:, None] * dfinal_v + channel * dfinal_k
            backwards = inside & (r[:, None] * 0 + role == 1)
            state += tl.load(base, mask=backwards, other=0.0).to(tl.float32)
    gradient = tl.zeros([BT], tl.float32)
    rows = tl.arange(0, C)
    for _ in tl.range(0, chunks, disable_licm=True):
        count = tl.minimum(size - at, C)
        near = tl.minimum(rows, count - 1)[:, None]
        live = (rows < count)[:, None] & (n_k < K)
        x_c = tl.load(x + (near * x_t + r[None, :] * x_d), mask=r[None, :] < V, other=0.0)
        y_c = tl.load(y + (near * y_t + r[None, :] * y_d), mask=r[None, :] < V, other=0.0)
        z_c = tl.load(z + (rows[:, None] * z_t + n_k * z_d), mask=live, other=0.0)
        acc = tl.dot(x_c, state.to(x_c.dtype), input_precision=PRECISION)
        scores = tl.dot(x_c, tl.trans(y_c), input_precision=PRECISION)
        position = position0 + at + rows
        cos, sin = rotation(position[:, None] * step)
        steps = tl.minimum(rows + 1, count)
        distance = (steps[:, None] - steps[None, :]) * direction
        weights = tl.where(distance >= 0, scores, 0.0).to(z_c.dtype)
        z_c = turned(z_c, cos, sin)
        acc = tl.dot(weights, z_c, acc, input_precision=PRECISION)
        acc_c, acc_s = tl.split(tl.reshape(acc, [C, BT, 2]))
        tl.store(
            out + (rows[:, None] * (heads * K) + n_k),
            (acc_c * cos + acc_s * sin).to(out.dtype.element_ty),
            mask=live,
        )
        own_c = tl.load(own + (rows[:, None] * own_t + n_k * own_d), mask=live, other=0.0)
        across = (acc_s * cos - acc_c * sin) * own_c.to(tl.float32)
        gradient += tl.sum(across * position[:, None].to(tl.float32), 0)
        state = tl.dot(tl.trans(y_c), z_c, state, input_precision=PRECISION)
        stride = direction * C
        at += stride
        x += stride * x_t
        y += stride * y_t
        z += stride * z_t
        own += stride * own_t
        out += stride * heads * K
    tl.store(share, gradient, mask=column < K)

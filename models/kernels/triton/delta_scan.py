"""The delta rule, tile after tile: states and outputs, errors, and the way back.

    delta_scan       E = M - Q (beta M)         O = (P * Q) S + scores U        U = beta E
                     S <- diag(total) S + (R * K)^T U       stored before every C tokens
    delta_errors     the same E again, and S before every tile, from the stored states
    delta_reverse    dU = scores^T dO + (R * K) dS          Z = dU - Q^T (beta dU)
                     dV = beta Z                dbeta = sum_v E Z
                     dS <- diag(total) dS + (P * Q)^T dO - (P * K)^T dV     stored after every tile

(In O and dS, Q are the queries; elsewhere the resolvent of `delta_tiles`.) One program carries a
(K, BV) block of one sequence's and head's state, or of one entry's of C tokens, in float32
registers; stored copies are rounded, the carried one never is.
"""

from __future__ import annotations

import triton
import triton.language as tl

from models.kernels.triton.common import first_entry, locate
from models.kernels.triton.delta_tiles import factors_before, factors_behind
from models.kernels.triton.vector_tiles import load_tile, store_tile


@triton.jit
def _missing(
    k, v, beta, solved, state, prefix, row, ck, cv, k_t, k_c, v_t, v_c, beta_t, length,
    K: tl.constexpr, V: tl.constexpr, BT: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """E (BT, BV) of a tile behind `state`, and its writes U; `solved` is the tile's resolvent."""
    t = tl.arange(0, BT)
    key = load_tile(k, row, ck, k_t, k_c, length, K).to(tl.float32) * prefix
    found = tl.dot(key.to(DOT), state.to(DOT), input_precision=PRECISION)
    missing = load_tile(v, row, cv, v_t, v_c, length, V).to(tl.float32) - found
    share = tl.load(beta + row.to(tl.int64) * beta_t, mask=row < length, other=0.0).to(tl.float32)
    between = tl.load(solved + t[:, None] * BT + t[None, :])
    written = (share[:, None] * missing).to(DOT)
    error = missing - tl.dot(between, written, input_precision=PRECISION)
    return error, (share[:, None] * error).to(DOT)


@triton.jit
def _onward(
    k, decay, state, written, row, ck, k_t, k_c, decay_t, decay_c, length,
    K: tl.constexpr, MODE: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The state behind a tile."""
    suffix, total = factors_behind(decay, row, ck, decay_t, decay_c, length, K, MODE)
    key = load_tile(k, row, ck, k_t, k_c, length, K).to(tl.float32) * suffix
    return tl.dot(tl.trans(key.to(DOT)), written, state * total[:, None], input_precision=PRECISION)


@triton.jit(do_not_specialize=["tokens", "sequences", "heads"])
def delta_scan(
    q, k, v, beta, decay, scores, solved, start_state, states, end_state, out, cu_seqlens,
    q_b, q_t, q_h, q_c, k_b, k_t, k_h, k_c, v_b, v_t, v_h, v_c, beta_b, beta_t, beta_h,
    decay_b, decay_t, decay_h, decay_c, start_n, start_h, start_k, start_v,
    tokens, sequences, heads,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    BT: tl.constexpr, MODE: tl.constexpr, PACKED: tl.constexpr, START: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """o, the state before every C tokens and the last one; BK holds all key channels.

    scores, solved: of `delta_pairs`. start_state: (N, H, K, V), with START. states: (entries, H, K,
    V). end_state: (N, H, K, V) float32, contiguous. out: (B, T, H, V), contiguous.
    Grid: (N * H * ceil(V / BV),).
    """
    TILES: tl.constexpr = C // BT
    pid = tl.program_id(0)
    v_blocks: tl.constexpr = (V + BV - 1) // BV
    h = (pid // v_blocks % heads).to(tl.int64)
    n = pid // v_blocks // heads
    if PACKED:
        begin = tl.load(cu_seqlens + n).to(tl.int64)
        length = (tl.load(cu_seqlens + n + 1) - begin).to(tl.int32)
        batch = h * 0
    else:
        begin = h * 0
        length = tokens
        batch = n.to(tl.int64)
    q += batch * q_b + begin * q_t + h * q_h
    k += batch * k_b + begin * k_t + h * k_h
    v += batch * v_b + begin * v_t + h * v_h
    beta += batch * beta_b + begin * beta_t + h * beta_h
    decay += batch * decay_b + begin * decay_t + h * decay_h
    out += ((batch * tokens + begin) * heads + h) * V
    entry = first_entry(n, cu_seqlens, tokens, C, PACKED).to(tl.int64)
    states += (entry * heads + h) * (K * V)
    scores += (entry * TILES * heads + h) * (BT * BT)
    solved += (entry * TILES * heads + h) * (BT * BT)

    t = tl.arange(0, BT)
    pair = t[:, None] * BT + t[None, :]
    ck = tl.arange(0, BK)
    cv = pid % v_blocks * BV + tl.arange(0, BV)
    inside = (ck < K)[:, None] & (cv < V)[None, :]
    block = ck[:, None] * V + cv[None, :]
    state = tl.zeros([BK, BV], tl.float32)
    if START:
        start_state += n.to(tl.int64) * start_n + h * start_h
        start_state += ck[:, None] * start_k + cv[None, :] * start_v
        state = tl.load(start_state, mask=inside, other=0.0).to(tl.float32)
    for i in tl.range(0, tl.cdiv(length, BT), disable_licm=True):
        row = i * BT + t
        if i % TILES == 0:
            tl.store(states + block, state.to(states.dtype.element_ty), mask=inside)
            states += heads * (K * V)
        prefix = factors_before(decay, row, ck, decay_t, decay_c, length, K, MODE)
        _, written = _missing(
            k, v, beta, solved, state, prefix, row, ck, cv, k_t, k_c, v_t, v_c, beta_t, length,
            K, V, BT, DOT, PRECISION,
        )  # fmt: skip
        query = load_tile(q, row, ck, q_t, q_c, length, K).to(tl.float32) * prefix
        read = tl.dot(query.to(DOT), state.to(DOT), input_precision=PRECISION)
        read = tl.dot(tl.load(scores + pair), written, read, input_precision=PRECISION)
        store_tile(out, read, row, cv, heads * V, length, V)
        state = _onward(
            k, decay, state, written, row, ck, k_t, k_c, decay_t, decay_c, length,
            K, MODE, DOT, PRECISION,
        )  # fmt: skip
        scores += heads * (BT * BT)
        solved += heads * (BT * BT)
    end_state += (n.to(tl.int64) * heads + h) * (K * V)
    tl.store(end_state + block, state, mask=inside)


@triton.jit(do_not_specialize=["tokens", "sequences", "heads"])
def delta_errors(
    k, v, beta, decay, solved, states, tile_states, errors, cu_seqlens,
    k_b, k_t, k_h, k_c, v_b, v_t, v_h, v_c, beta_b, beta_t, beta_h,
    decay_b, decay_t, decay_h, decay_c, tokens, sequences, heads,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    BT: tl.constexpr, MODE: tl.constexpr, PACKED: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """E of one entry of C tokens, and the state before each of its tiles.

    states: of `delta_scan`. tile_states: (entries * C / BT, H, K, V). errors: (B, T, H, V),
    contiguous. Grid: (entries * H * ceil(V / BV),).
    """
    TILES: tl.constexpr = C // BT
    pid = tl.program_id(0)
    v_blocks: tl.constexpr = (V + BV - 1) // BV
    h = (pid // v_blocks % heads).to(tl.int64)
    entry = pid // v_blocks // heads
    n, index, start, length = locate(entry, cu_seqlens, tokens, sequences, C, PACKED)
    if n >= sequences or index * C >= length:
        return
    begin = start.to(tl.int64)
    batch = (n * (0 if PACKED else 1)).to(tl.int64)
    k += batch * k_b + begin * k_t + h * k_h
    v += batch * v_b + begin * v_t + h * v_h
    beta += batch * beta_b + begin * beta_t + h * beta_h
    decay += batch * decay_b + begin * decay_t + h * decay_h
    errors += ((batch * tokens + begin) * heads + h) * V
    at = entry.to(tl.int64)
    tile_states += (at * TILES * heads + h) * (K * V)
    solved += (at * TILES * heads + h) * (BT * BT)

    t = tl.arange(0, BT)
    ck = tl.arange(0, BK)
    cv = pid % v_blocks * BV + tl.arange(0, BV)
    inside = (ck < K)[:, None] & (cv < V)[None, :]
    block = ck[:, None] * V + cv[None, :]
    states += (at * heads + h) * (K * V)
    state = tl.load(states + block, mask=inside, other=0.0).to(tl.float32)
    last = tl.minimum(tl.cdiv(length - index * C, BT), TILES)
    for i in tl.range(0, last, disable_licm=True):
        row = index * C + i * BT + t
        tl.store(tile_states + block, state.to(tile_states.dtype.element_ty), mask=inside)
        prefix = factors_before(decay, row, ck, decay_t, decay_c, length, K, MODE)
        error, written = _missing(
            k, v, beta, solved, state, prefix, row, ck, cv, k_t, k_c, v_t, v_c, beta_t, length,
            K, V, BT, DOT, PRECISION,
        )  # fmt: skip
        store_tile(errors, error, row, cv, heads * V, length, V)
        state = _onward(
            k, decay, state, written, row, ck, k_t, k_c, decay_t, decay_c, length,
            K, MODE, DOT, PRECISION,
        )  # fmt: skip
        tile_states += heads * (K * V)
        solved += heads * (BT * BT)


@triton.jit(do_not_specialize=["tokens", "sequences", "heads"])
def delta_reverse(
    q, k, beta, decay, do, errors, scores, solved, start_state, states, end_state, dv, dbeta,
    cu_seqlens, q_b, q_t, q_h, q_c, k_b, k_t, k_h, k_c, beta_b, beta_t, beta_h,
    decay_b, decay_t, decay_h, decay_c, do_b, do_t, do_h, do_c, start_n, start_h, start_k, start_v,
    tokens, sequences, heads,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    BT: tl.constexpr, MODE: tl.constexpr, PACKED: tl.constexpr, START: tl.constexpr,
    END: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dv, dbeta of some value channels, and the gradient of the state after every tile.

    start_state: gradient of the final state, with START. states: (entries * C / BT, H, K, V).
    end_state: gradient of the initial state, (N, H, K, V) float32, with END. dv: (B, T, H, V),
    dbeta: (ceil(V / BV), B, T, H) float32, contiguous. Grid: (N * H * ceil(V / BV),).
    """
    TILES: tl.constexpr = C // BT
    pid = tl.program_id(0)
    v_blocks: tl.constexpr = (V + BV - 1) // BV
    h = (pid // v_blocks % heads).to(tl.int64)
    n = pid // v_blocks // heads
    if PACKED:
        begin = tl.load(cu_seqlens + n).to(tl.int64)
        length = (tl.load(cu_seqlens + n + 1) - begin).to(tl.int32)
        batch = h * 0
        rows = tokens + h * 0
    else:
        begin = h * 0
        length = tokens
        batch = n.to(tl.int64)
        rows = tokens * sequences.to(tl.int64)
    q += batch * q_b + begin * q_t + h * q_h
    k += batch * k_b + begin * k_t + h * k_h
    beta += batch * beta_b + begin * beta_t + h * beta_h
    decay += batch * decay_b + begin * decay_t + h * decay_h
    do += batch * do_b + begin * do_t + h * do_h
    token = (batch * tokens + begin) * heads + h
    errors += token * V
    dv += token * V
    dbeta += pid % v_blocks * rows * heads + token
    tiles = tl.cdiv(length, BT)
    entry = first_entry(n, cu_seqlens, tokens, C, PACKED).to(tl.int64)
    after = (entry * TILES + tiles) * heads + h

    t = tl.arange(0, BT)
    mirrored = t[None, :] * BT + t[:, None]
    ck = tl.arange(0, BK)
    cv = pid % v_blocks * BV + tl.arange(0, BV)
    inside = (ck < K)[:, None] & (cv < V)[None, :]
    block = ck[:, None] * V + cv[None, :]
    dstate = tl.zeros([BK, BV], tl.float32)
    if START:
        start_state += n.to(tl.int64) * start_n + h * start_h
        start_state += ck[:, None] * start_k + cv[None, :] * start_v
        dstate = tl.load(start_state, mask=inside, other=0.0).to(tl.float32)
    for step in tl.range(0, tiles, disable_licm=True):
        row = (tiles - 1 - step) * BT + t
        after -= heads
        at = after * (K * V)
        tl.store(states + at + block, dstate.to(states.dtype.element_ty), mask=inside)
        share = tl.load(beta + row.to(tl.int64) * beta_t, mask=row < length, other=0.0)
        share = share.to(tl.float32)[:, None]
        bdo = load_tile(do, row, cv, do_t, do_c, length, V).to(DOT)
        at = after * (BT * BT)
        change = tl.dot(tl.load(scores + at + mirrored), bdo, input_precision=PRECISION)
        suffix, total = factors_behind(decay, row, ck, decay_t, decay_c, length, K, MODE)
        key = load_tile(k, row, ck, k_t, k_c, length, K).to(tl.float32) * suffix
        change = tl.dot(key.to(DOT), dstate.to(DOT), change, input_precision=PRECISION)
        between = tl.load(solved + at + mirrored)
        z = change - tl.dot(between, (share * change).to(DOT), input_precision=PRECISION)
        error = load_tile(errors, row, cv, heads * V, 1, length, V).to(tl.float32)
        tl.store(dbeta + row.to(tl.int64) * heads, tl.sum(error * z, 1), mask=row < length)
        z = share * z
        store_tile(dv, z, row, cv, heads * V, length, V)
        prefix = factors_before(decay, row, ck, decay_t, decay_c, length, K, MODE)
        query = load_tile(q, row, ck, q_t, q_c, length, K).to(tl.float32) * prefix
        dstate = tl.dot(
            tl.trans(query.to(DOT)), bdo, dstate * total[:, None], input_precision=PRECISION
        )
        key = load_tile(k, row, ck, k_t, k_c, length, K).to(tl.float32) * -prefix
        dstate = tl.dot(tl.trans(key.to(DOT)), z.to(DOT), dstate, input_precision=PRECISION)
    if END:
        end_state += (n.to(tl.int64) * heads + h) * (K * V)
        tl.store(end_state + block, dstate, mask=inside)

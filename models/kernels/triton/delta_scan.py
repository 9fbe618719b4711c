"""The delta rule, tile after tile: states and outputs, errors, and the way back.

    delta_scan       E = M - Q (beta M)         O = (P * Q) S + scores U        U = beta E
                     S <- diag(total) S + (R * K)^T U       stored before every C tokens
    delta_errors     the same E again, and S before every tile, from the stored states
    delta_reverse    dU = scores^T dO + (R * K) dS          Z = dU - Q^T (beta dU)
                     dV = beta Z                dbeta = sum_v E Z
                     dS <- diag(total) dS + (P * Q)^T dO - (P * K)^T dV     stored after every tile

(In O and dS, Q are the queries; elsewhere the resolvent of `delta_tiles`.) One program carries a
(K, BV) block of one sequence's and head's state, or of one entry's of C tokens, in float32
registers; stored copies are rounded, the carried one never is. In MODE 2 (`delta_tiles`) q, k and
`writing` are P q, P k and R k of `delta_pairs`, and `decay` its totals; else `writing` is k.
"""

from __future__ import annotations

import triton
import triton.language as tl

from models.kernels.triton.common import first_entry, locate, whole_sequence
from models.kernels.triton.delta_tiles import head_factors
from models.kernels.triton.vector_tiles import load_tile, store_tile


@triton.jit
def _load(
    x, factor, row, ck, x_t, x_c, length, K: tl.constexpr, MODE: tl.constexpr, DOT: tl.constexpr
):  # fmt: skip
    """A tile of queries or keys times its factors, which those of MODE 2 hold already."""
    tile = load_tile(x, row, ck, x_t, x_c, length, K)
    if MODE == 1:
        tile = tile.to(tl.float32) * factor
    return tile.to(DOT)


@triton.jit
def _factors(decay, at, row, ck, decay_t, length, K: tl.constexpr, MODE: tl.constexpr):
    """P and R of a tile (1 in MODE 2) and the product of its decays, (1, 1) or (BK, 1).

    decay: of the sequence's first token; in MODE 2 the totals, of which the tile's is number `at`.
    """
    if MODE == 2:
        total = tl.load(decay + at * K + ck, mask=ck < K, other=0.0)
        return 1.0, 1.0, total[:, None]
    else:
        return head_factors(decay, row, decay_t, length, MODE)


@triton.jit
def _missing(
    k, v, beta, solved, state, prefix, row, ck, cv, k_t, k_c, v_t, v_c, beta_t, length,
    K: tl.constexpr, V: tl.constexpr, BT: tl.constexpr, MODE: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """E (BT, BV) of a tile behind `state`, and its writes U; `solved` is the tile's resolvent."""
    t = tl.arange(0, BT)
    key = _load(k, prefix, row, ck, k_t, k_c, length, K, MODE, DOT)
    found = tl.dot(key, state.to(DOT), input_precision=PRECISION)
    missing = load_tile(v, row, cv, v_t, v_c, length, V).to(tl.float32) - found
    share = tl.load(beta + row.to(tl.int64) * beta_t, mask=row < length, other=0.0).to(tl.float32)
    between = tl.load(solved + t[:, None] * BT + t[None, :])
    written = (share[:, None] * missing).to(DOT)
    error = missing - tl.dot(between, written, input_precision=PRECISION)
    return error, (share[:, None] * error).to(DOT)


@triton.jit(do_not_specialize=["tokens", "sequences", "heads"])
def delta_scan(
    q, k, writing, v, beta, decay, scores, solved, start_state, states, end_state, out, cu_seqlens,
    q_b, q_t, q_h, q_c, k_b, k_t, k_h, k_c, v_b, v_t, v_h, v_c, beta_b, beta_t, beta_h,
    decay_b, decay_t, decay_h, start_n, start_h, start_k, start_v,
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
    batch, begin, length = whole_sequence(n, h, cu_seqlens, tokens, PACKED)
    q += batch * q_b + begin * q_t + h * q_h
    k += batch * k_b + begin * k_t + h * k_h
    writing += batch * k_b + begin * k_t + h * k_h
    v += batch * v_b + begin * v_t + h * v_h
    beta += batch * beta_b + begin * beta_t + h * beta_h
    if MODE != 2:
        decay += batch * decay_b + begin * decay_t + h * decay_h
    out += ((batch * tokens + begin) * heads + h) * V
    entry = first_entry(n, cu_seqlens, tokens, C, PACKED).to(tl.int64)
    states += (entry * heads + h) * (K * V)
    at = entry * TILES * heads + h  # tile and head

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
        prefix, suffix, total = _factors(decay, at, row, ck, decay_t, length, K, MODE)
        between = at * (BT * BT)
        _, written = _missing(
            k, v, beta, solved + between, state, prefix, row, ck, cv, k_t, k_c, v_t, v_c, beta_t,
            length, K, V, BT, MODE, DOT, PRECISION,
        )  # fmt: skip
        query = _load(q, prefix, row, ck, q_t, q_c, length, K, MODE, DOT)
        read = tl.dot(query, state.to(DOT), input_precision=PRECISION)
        read = tl.dot(tl.load(scores + between + pair), written, read, input_precision=PRECISION)
        store_tile(out, read, row, cv, heads * V, length, V)
        key = _load(writing, suffix, row, ck, k_t, k_c, length, K, MODE, DOT)
        state = tl.dot(tl.trans(key), written, state * total, input_precision=PRECISION)
        at += heads
    end_state += (n.to(tl.int64) * heads + h) * (K * V)
    tl.store(end_state + block, state, mask=inside)


@triton.jit(do_not_specialize=["tokens", "sequences", "heads"])
def delta_errors(
    k, writing, v, beta, decay, solved, states, tile_states, errors, cu_seqlens,
    k_b, k_t, k_h, k_c, v_b, v_t, v_h, v_c, beta_b, beta_t, beta_h,
    decay_b, decay_t, decay_h, tokens, sequences, heads,
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
    writing += batch * k_b + begin * k_t + h * k_h
    v += batch * v_b + begin * v_t + h * v_h
    beta += batch * beta_b + begin * beta_t + h * beta_h
    if MODE != 2:
        decay += batch * decay_b + begin * decay_t + h * decay_h
    errors += ((batch * tokens + begin) * heads + h) * V
    at = entry.to(tl.int64) * TILES * heads + h  # tile and head

    t = tl.arange(0, BT)
    ck = tl.arange(0, BK)
    cv = pid % v_blocks * BV + tl.arange(0, BV)
    inside = (ck < K)[:, None] & (cv < V)[None, :]
    block = ck[:, None] * V + cv[None, :]
    states += (entry.to(tl.int64) * heads + h) * (K * V)
    state = tl.load(states + block, mask=inside, other=0.0).to(tl.float32)
    last = tl.minimum(tl.cdiv(length - index * C, BT), TILES)
    for i in tl.range(0, last, disable_licm=True):
        row = index * C + i * BT + t
        tl.store(
            tile_states + at * (K * V) + block, state.to(tile_states.dtype.element_ty), mask=inside
        )
        prefix, suffix, total = _factors(decay, at, row, ck, decay_t, length, K, MODE)
        error, written = _missing(
            k, v, beta, solved + at * (BT * BT), state, prefix, row, ck, cv, k_t, k_c, v_t, v_c,
            beta_t, length, K, V, BT, MODE, DOT, PRECISION,
        )  # fmt: skip
        store_tile(errors, error, row, cv, heads * V, length, V)
        key = _load(writing, suffix, row, ck, k_t, k_c, length, K, MODE, DOT)
        state = tl.dot(tl.trans(key), written, state * total, input_precision=PRECISION)
        at += heads


@triton.jit(do_not_specialize=["tokens", "sequences", "heads"])
def delta_reverse(
    q, k, writing, beta, decay, do, errors, scores, solved, start_state, states, end_state, dv,
    dbeta, cu_seqlens, q_b, q_t, q_h, q_c, k_b, k_t, k_h, k_c, beta_b, beta_t, beta_h,
    decay_b, decay_t, decay_h, do_b, do_t, do_h, do_c, start_n, start_h, start_k, start_v,
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
    batch, begin, length = whole_sequence(n, h, cu_seqlens, tokens, PACKED)
    rows = tokens + h * 0 if PACKED else tokens * sequences.to(tl.int64)
    q += batch * q_b + begin * q_t + h * q_h
    k += batch * k_b + begin * k_t + h * k_h
    writing += batch * k_b + begin * k_t + h * k_h
    beta += batch * beta_b + begin * beta_t + h * beta_h
    if MODE != 2:
        decay += batch * decay_b + begin * decay_t + h * decay_h
    do += batch * do_b + begin * do_t + h * do_h
    token = (batch * tokens + begin) * heads + h
    errors += token * V
    dv += token * V
    dbeta += pid % v_blocks * rows * heads + token
    tiles = tl.cdiv(length, BT)
    entry = first_entry(n, cu_seqlens, tokens, C, PACKED).to(tl.int64)
    at = (entry * TILES + tiles) * heads + h  # tile and head

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
        at -= heads
        row = (tiles - 1 - step) * BT + t
        prefix, suffix, total = _factors(decay, at, row, ck, decay_t, length, K, MODE)
        tl.store(states + at * (K * V) + block, dstate.to(states.dtype.element_ty), mask=inside)
        share = tl.load(beta + row.to(tl.int64) * beta_t, mask=row < length, other=0.0)
        share = share.to(tl.float32)[:, None]
        bdo = load_tile(do, row, cv, do_t, do_c, length, V).to(DOT)
        mirror = at * (BT * BT) + mirrored
        change = tl.dot(tl.load(scores + mirror), bdo, input_precision=PRECISION)
        key = _load(writing, suffix, row, ck, k_t, k_c, length, K, MODE, DOT)
        change = tl.dot(key, dstate.to(DOT), change, input_precision=PRECISION)
        between = tl.load(solved + mirror)
        z = change - tl.dot(between, (share * change).to(DOT), input_precision=PRECISION)
        error = load_tile(errors, row, cv, heads * V, 1, length, V).to(tl.float32)
        tl.store(dbeta + row.to(tl.int64) * heads, tl.sum(error * z, 1), mask=row < length)
        z = share * z
        store_tile(dv, z, row, cv, heads * V, length, V)
        query = _load(q, prefix, row, ck, q_t, q_c, length, K, MODE, DOT)
        dstate = tl.dot(tl.trans(query), bdo, dstate * total, input_precision=PRECISION)
        key = _load(k, prefix, row, ck, k_t, k_c, length, K, MODE, DOT)
        dstate = tl.dot(tl.trans(key), (-z).to(DOT), dstate, input_precision=PRECISION)
    if END:
        end_state += (n.to(tl.int64) * heads + h) * (K * V)
        tl.store(end_state + block, dstate, mask=inside)

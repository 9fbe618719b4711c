"""Per-channel decay, first pass: the states between chunks of every sequence.

    forward   S <- diag(total) S + sum_s (k_s P(s, end)) v_s^T         before each chunk S is stored
    reverse   dS <- diag(total) dS + sum_t (q_t P(start, t)) do_t^T    after each chunk dS is stored

One program carries a (BK, BV) block of one sequence's and head's state through its tokens, a tile
of 2^LEVELS at a time, in float32 registers. Stored copies are rounded to `states`' dtype; the
carried one never is. Bytes moved a token and head with bfloat16, K = V = BV = 128, C = 128: 512
read, 256 written.
"""

from __future__ import annotations

import triton
import triton.language as tl

from models.kernels.triton.common import first_entry, whole_sequence
from models.kernels.triton.vector_tiles import load_tile, tile_update


@triton.jit(do_not_specialize=["tokens", "sequences", "heads"])
def scan_states(
    q, k, gate, low, w, start_state, states, end_state, cu_seqlens,
    q_b, q_t, q_h, q_c, k_b, k_t, k_h, k_c, gate_b, gate_t, gate_h, gate_c, low_h, low_c,
    w_b, w_t, w_h, w_c, start_n, start_h, start_k, start_v, tokens, sequences, heads,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    LEVELS: tl.constexpr, GATE: tl.constexpr, REVERSE: tl.constexpr, PACKED: tl.constexpr,
    START: tl.constexpr, END: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Store the state before (REVERSE: its gradient after) each chunk, and the one left at the end.

    w: values, in REVERSE output gradients. k is not read with GATE or REVERSE, q only in REVERSE.
    start_state: (N, H, K, V), with START. end_state: (N, H, K, V) float32, contiguous, with END.
    states: (entries, H, K, V). Grid: (N * H * ceil(K / BK) * ceil(V / BV),).
    """
    BT: tl.constexpr = 1 << LEVELS
    TILES: tl.constexpr = C // BT
    pid = tl.program_id(0)
    v_blocks: tl.constexpr = (V + BV - 1) // BV
    blocks: tl.constexpr = ((K + BK - 1) // BK) * v_blocks
    v0 = (pid % v_blocks) * BV
    k0 = (pid % blocks) // v_blocks * BK
    h = (pid // blocks % heads).to(tl.int64)
    n = pid // blocks // heads
    batch, begin, length = whole_sequence(n, h, cu_seqlens, tokens, PACKED)
    q += batch * q_b + begin * q_t + h * q_h
    k += batch * k_b + begin * k_t + h * k_h
    gate += batch * gate_b + begin * gate_t + h * gate_h
    w += batch * w_b + begin * w_t + h * w_h
    entry = first_entry(n, cu_seqlens, tokens, C, PACKED).to(tl.int64)

    ck = k0 + tl.arange(0, BK)
    cv = v0 + tl.arange(0, BV)
    inside = (ck < K)[:, None] & (cv < V)[None, :]
    block = ck[:, None] * V + cv[None, :]
    if GATE:
        bound = tl.load(low + h * low_h + ck * low_c, mask=ck < K, other=0.0).to(tl.float32)
    else:
        bound = tl.zeros([BK], tl.float32)
    state = tl.zeros([BK, BV], tl.float32)
    if START:
        start_state += n.to(tl.int64) * start_n + h * start_h
        start_state += ck[:, None] * start_k + cv[None, :] * start_v
        state = tl.load(start_state, mask=inside, other=0.0).to(tl.float32)
    tiles = tl.maximum(tl.cdiv(length, BT), 1)
    for step in tl.range(0, tiles, disable_licm=True):
        i = tiles - 1 - step if REVERSE else step
        # A chunk's state belongs to the end it is entered from.
        entered = (i + 1) % TILES == 0 or i == tiles - 1 if REVERSE else i % TILES == 0
        if entered:
            at = ((entry + i // TILES) * heads + h) * (K * V)
            tl.store(states + at + block, state.to(states.dtype.element_ty), mask=inside)
        weights, total = tile_update(
            q, k, gate, bound, i * BT, ck, q_t, q_c, k_t, k_c, gate_t, gate_c, length,
            K, BT, GATE, REVERSE,
        )  # fmt: skip
        value = load_tile(w, i * BT + tl.arange(0, BT), cv, w_t, w_c, length, V).to(DOT)
        state = tl.dot(
            tl.trans(weights.to(DOT)), value, state * total[:, None], input_precision=PRECISION
        )
    if END:
        at = (n.to(tl.int64) * heads + h) * (K * V)
        tl.store(end_state + at + block, state, mask=inside)

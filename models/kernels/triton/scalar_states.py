"""States at segment boundaries, where one program a head and tile would leave the GPU idle.

    forward:  S  before each segment,  S_t = f_t S_{t-1} + k_t v_t^T     (tiles of (K, V))
    reverse:  dS after each segment,   dS_{t-1} = f_t dS_t + f_t-weighted q_t do_t^T

Programs are independent over sequences, heads and tiles of the state and walk the tokens once,
reading two tensors; a state is stored every `segment` tokens, at least 128, in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from models.kernels.triton.common import first_entry, rotation, turns
from models.kernels.triton.scalar_scan import running_decay


@triton.jit(do_not_specialize=["tokens", "segment", "heads"])
def boundary_states(
    y, z, decay, theta, offset, edge, states, cu_seqlens,
    y_b, y_t, y_h, y_d, z_b, z_t, z_h, z_d, decay_b, decay_t, decay_h,
    theta_h, theta_k, offset_n, edge_n, edge_h, edge_k, edge_v,
    tokens, segment, heads,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    MODE: tl.constexpr, PACKED: tl.constexpr, EDGE: tl.constexpr, REVERSE: tl.constexpr,
    PHASE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Forward: y = k, z = v, edge = initial state. Reverse: y = q, z = do, edge = its gradient.

    PHASE: y is rotated by its position (see `scalar_phase`); states are (2K, V), cosines first.
    Grid: (sequences * heads * cdiv(K, BK) * cdiv(V, BV) * planes,), with planes 2 under PHASE and 1
    without. `segment` is a multiple of C.
    """
    PLANES: tl.constexpr = 2 if PHASE else 1
    K_TILES: tl.constexpr = (K + BK - 1) // BK
    V_TILES: tl.constexpr = (V + BV - 1) // BV
    pid = tl.program_id(0)
    rows_k = pid % K_TILES * BK + tl.arange(0, BK)
    columns = pid // K_TILES % V_TILES * BV + tl.arange(0, BV)
    pid = pid // (K_TILES * V_TILES)
    plane = pid % PLANES
    pid = pid // PLANES
    h = (pid % heads).to(tl.int64)
    n = pid // heads
    if PACKED:
        start = tl.load(cu_seqlens + n).to(tl.int64)
        length = (tl.load(cu_seqlens + n + 1) - start).to(tl.int32)
        row = start * 0
    else:
        start = n.to(tl.int64) * 0
        length = n * 0 + tokens
        row = n.to(tl.int64)
    y += row * y_b + start * y_t + h * y_h
    z += row * z_b + start * z_t + h * z_h
    decay += row * decay_b + start * decay_t + h * decay_h
    inside = (rows_k[:, None] < K) & (columns[None, :] < V)
    channel = plane * K + rows_k
    tile = channel[:, None] * V + columns[None, :]
    entry = first_entry(n, cu_seqlens, tokens, segment, PACKED).to(tl.int64)
    if EDGE:
        base = edge + n.to(tl.int64) * edge_n + h * edge_h
        state = tl.load(
            base + channel[:, None] * edge_k + columns[None, :] * edge_v, mask=inside, other=0.0
        ).to(tl.float32)
    else:
        state = tl.zeros([BK, BV], tl.float32)

    if PHASE:
        step_k = turns(tl.load(theta + h * theta_h + rows_k * theta_k, mask=rows_k < K, other=0.0))
        position0 = tl.load(offset + n * offset_n).to(tl.int32)
    rows = tl.arange(0, C)
    chunks = tl.maximum(tl.cdiv(length, C), 1)
    for step in range(0, chunks):
        if REVERSE:
            begin = length * 0 + (chunks - 1 - step) * C
            # Store before the segment's last chunk is added.
            beyond = tl.where(begin + C >= length, 0, (begin + C) % segment)
        else:
            begin = length * 0 + step * C
            beyond = begin % segment
        at = begin.to(tl.int64)
        tl.store(
            states + ((entry + at // segment) * heads + h) * (PLANES * K * V) + tile,
            state,
            mask=inside & (tile * 0 + beyond == 0),
        )
        count = tl.minimum(length - begin, C)
        live = (rows < count)[:, None]
        y_c = tl.load(
            y + at * y_t + rows[:, None] * y_t + rows_k[None, :] * y_d,
            mask=live & (rows_k[None, :] < K),
            other=0.0,
        )
        z_c = tl.load(
            z + at * z_t + rows[:, None] * z_t + columns[None, :] * z_d,
            mask=live & (columns[None, :] < V),
            other=0.0,
        )
        if PHASE:
            cos, sin = rotation((position0 + begin + rows)[:, None] * step_k[None, :])
            y_c = (y_c.to(tl.float32) * tl.where(plane == 0, cos, sin)).to(y_c.dtype)
        if MODE == 0:
            state = tl.dot(tl.trans(y_c), z_c, state, input_precision=PRECISION)
        else:
            hi, lo, total_hi, total_lo = running_decay(
                decay + at * decay_t, decay_t, rows, count, MODE
            )
            if REVERSE:
                weight = tl.exp2(hi + lo)
            else:
                weight = tl.exp2((total_hi - hi) + (total_lo - lo))
            z_w = (z_c.to(tl.float32) * weight[:, None]).to(z_c.dtype)
            state *= tl.exp2(total_hi + total_lo)
            state = tl.dot(tl.trans(y_c), z_w, state, input_precision=PRECISION)

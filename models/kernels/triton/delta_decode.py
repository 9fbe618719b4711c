"""The delta rule itself, token by token: decoding, and prefill of a few dozen tokens.

    S~ = diag(f_t) S_{t-1}      S_t = S~ + beta_t k_t (v_t - S~^T k_t)^T        o_t = S_t^T q_t

One program holds a (K, BV) block of one sequence's and head's state in float32 registers, walks its
tokens, and writes the state back, as `decode` does for linear attention: 8 K V bytes a head and
call and one launch, for every decay.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.kernels.delta.call import DeltaCall
from models.kernels.triton.common import LOG2E, block, check_inputs, strides, whole_sequence
from models.kernels.triton.decode import BLOCK_ELEMENTS

MODES = {"delta": 0, "delta_head": 1, "delta_channel": 2}
"""What the kernels call a `DeltaCall.mode`."""


@triton.jit(do_not_specialize=["tokens", "heads"])
def recurrent_delta(
    q, k, v, beta, decay, start_state, end_state, o, cu_seqlens,
    q_b, q_t, q_h, q_c, k_b, k_t, k_h, k_c, v_b, v_t, v_h, v_c, beta_b, beta_t, beta_h,
    decay_b, decay_t, decay_h, decay_c, start_n, start_h, start_k, start_v, tokens, heads,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, MODE: tl.constexpr,
    PACKED: tl.constexpr, START: tl.constexpr,
):  # fmt: skip
    """Walk all tokens of one sequence, head and block of BV value channels.

    start_state: (N, H, K, V), with START. end_state: (N, H, K, V) float32, contiguous.
    o: (B, T, H, V), contiguous. Grid: (N * H * ceil(V / BV),).
    """
    pid = tl.program_id(0)
    v_blocks: tl.constexpr = (V + BV - 1) // BV
    h = (pid // v_blocks % heads).to(tl.int64)
    n = pid // v_blocks // heads
    batch, begin, length = whole_sequence(n, h, cu_seqlens, tokens, PACKED)
    ck = tl.arange(0, BK)
    cv = pid % v_blocks * BV + tl.arange(0, BV)
    k_inside = ck < K
    v_inside = cv < V
    q += batch * q_b + begin * q_t + h * q_h + ck * q_c
    k += batch * k_b + begin * k_t + h * k_h + ck * k_c
    v += batch * v_b + begin * v_t + h * v_h + cv * v_c
    beta += batch * beta_b + begin * beta_t + h * beta_h
    decay += batch * decay_b + begin * decay_t + h * decay_h
    o += ((batch * tokens + begin) * heads + h) * V + cv
    inside = k_inside[:, None] & v_inside[None, :]
    state = tl.zeros([BK, BV], tl.float32)
    if START:
        start_state += n.to(tl.int64) * start_n + h * start_h
        at = ck[:, None] * start_k + cv[None, :] * start_v
        state = tl.load(start_state + at, mask=inside, other=0.0).to(tl.float32)
    for _ in range(0, length):
        query = tl.load(q, mask=k_inside, other=0.0).to(tl.float32)
        key = tl.load(k, mask=k_inside, other=0.0).to(tl.float32)
        value = tl.load(v, mask=v_inside, other=0.0).to(tl.float32)
        if MODE == 2:
            x = tl.load(decay + ck * decay_c, mask=k_inside, other=0.0).to(tl.float32)
            state = state * tl.exp2(x * LOG2E)[:, None]
        elif MODE == 1:
            state = state * tl.exp2(tl.load(decay).to(tl.float32) * LOG2E)
        missing = value - tl.sum(state * key[:, None], 0)
        written = tl.load(beta).to(tl.float32) * missing
        state = state + key[:, None] * written[None, :]
        read = tl.sum(state * query[:, None], 0)
        tl.store(o, read.to(o.dtype.element_ty), mask=v_inside)
        q += q_t
        k += k_t
        v += v_t
        beta += beta_t
        decay += decay_t
        o += heads * V
    end_state += (n.to(tl.int64) * heads + h) * (K * V)
    tl.store(end_state + ck[:, None] * V + cv[None, :], state, mask=inside)


def empty_states(call: DeltaCall) -> Tensor:
    """Nothing is kept: backward computes the states that it needs."""
    return torch.empty(0, dtype=torch.float32, device=call.q.device)


def forward(call: DeltaCall) -> tuple[Tensor, Tensor, Tensor]:
    """o (B, T, H, V), final state (N, H, K, V) float32, token by token, and nothing kept.

    For one token and short prompts: the time grows with T, not with the work.

    Raises:
        ValueError: device, dtype or shape outside what the kernel supports.
    """
    check_inputs(call.without_beta)
    q, k, v, beta, decay, initial, cu_seqlens = call
    batch, tokens, heads, key_dim = q.shape
    value_dim, sequences = v.shape[-1], call.sequences
    o = torch.empty((batch, tokens, heads, value_dim), dtype=v.dtype, device=v.device)
    final = torch.empty(call.state_shape, dtype=torch.float32, device=q.device)
    if sequences == 0 or heads == 0:
        return o, final, empty_states(call)
    rows = block(key_dim)
    columns = min(block(value_dim), max(16, BLOCK_ELEMENTS // rows))
    decay_strides = (0, 0, 0, 0) if decay is None else (*decay.stride(), 0)[:4]
    with torch.cuda.device_of(q):
        recurrent_delta[(sequences * heads * -(-value_dim // columns),)](
            q, k, v, beta, q if decay is None else decay, q if initial is None else initial,
            final, o, q if cu_seqlens is None else cu_seqlens,
            *q.stride(), *k.stride(), *v.stride(), *beta.stride(), *decay_strides,
            *strides(initial, 4), tokens, heads, K=key_dim, V=value_dim, BK=rows, BV=columns,
            MODE=MODES[call.mode], PACKED=call.packed, START=initial is not None,
            num_warps=4, num_stages=1,
        )  # fmt: skip
    return o, final, empty_states(call)

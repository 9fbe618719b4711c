"""The recurrence itself, token by token: decoding, and prefill of a few dozen tokens.

    S_t = diag(f_t) S_{t-1} + k_t v_t^T        o_t = S_t^T q_t

One program holds a (K, BV) block of one sequence's and head's state in float32 registers, walks its
tokens, and writes the state back: 8 K V bytes a head and call, the floor of decoding, and one
launch. All decays are one kernel: none, a head's, a token's and head's, a channel's, or HGRN2's
gate. Decoding (`step`, `hgrn2_step`) updates the state in place, in the rows that `cache_indices`
name, or writes it elsewhere; `forward` is the forward pass of per-channel decays for sequences of
up to `launch.PREFILL` tokens: one launch, where chunks are two and mostly padding.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.kernels.call import Call
from models.kernels.triton.common import (
    LOG2E,
    MAX_HEAD_DIM,
    block,
    check_inputs,
    interpreted,
    strides,
    whole_sequence,
)
from models.kernels.triton.vector_tiles import sigmoids

NONE, SCALAR, CHANNEL, GATE = 0, 1, 2, 3
"""Decay of the kernel: absent, one number a token and head, one a channel, or logits of one."""
BLOCK_ELEMENTS = 2048
"""State elements of one program, of 128 threads: enough programs to fill a GPU at batch 1."""


@triton.jit(do_not_specialize=["tokens", "heads"])
def recurrent(
    q, k, v, decay, low, start_state, end_state, o, cu_seqlens, rows,
    q_b, q_t, q_h, q_c, k_b, k_t, k_h, k_c, v_b, v_t, v_h, v_c, decay_b, decay_t, decay_h, decay_c,
    low_h, low_c, start_n, start_h, start_k, start_v, end_n, end_h, end_k, end_v, tokens, heads,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, MODE: tl.constexpr,
    PACKED: tl.constexpr, START: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Walk all tokens of one sequence, head and block of BV value channels.

    start_state, end_state: (N or slots, H, K, V), maybe the same memory; end_state is float32.
    o: (B, T, H, V), contiguous. Grid: (N * H * ceil(V / BV),).
    """
    pid = tl.program_id(0)
    v_blocks: tl.constexpr = (V + BV - 1) // BV
    h = (pid // v_blocks % heads).to(tl.int64)
    n = pid // v_blocks // heads
    batch, begin, length = whole_sequence(n, h, cu_seqlens, tokens, PACKED)
    row = n.to(tl.int64)
    if ROWS:
        row = tl.load(rows + n).to(tl.int64)
    ck = tl.arange(0, BK)
    cv = pid % v_blocks * BV + tl.arange(0, BV)
    k_inside = ck < K
    v_inside = cv < V
    q += batch * q_b + begin * q_t + h * q_h + ck * q_c
    k += batch * k_b + begin * k_t + h * k_h + ck * k_c
    v += batch * v_b + begin * v_t + h * v_h + cv * v_c
    decay += batch * decay_b + begin * decay_t + h * decay_h
    o += ((batch * tokens + begin) * heads + h) * V + cv
    inside = k_inside[:, None] & v_inside[None, :]
    state = tl.zeros([BK, BV], tl.float32)
    if START:
        start_state += row * start_n + h * start_h
        at = ck[:, None] * start_k + cv[None, :] * start_v
        state = tl.load(start_state + at, mask=inside, other=0.0).to(tl.float32)
    if MODE == 3:
        bound = tl.load(low + h * low_h + ck * low_c, mask=k_inside, other=0.0).to(tl.float32)
    for _ in range(0, length):
        query = tl.load(q, mask=k_inside, other=0.0).to(tl.float32)
        value = tl.load(v, mask=v_inside, other=0.0).to(tl.float32)
        if MODE == 3:
            x = tl.load(decay + ck * decay_c, mask=k_inside, other=0.0).to(tl.float32)
            keep, write = sigmoids(x)
            key = (1.0 - bound) * write
            state = state * (bound + (1.0 - bound) * keep)[:, None]
        else:
            key = tl.load(k, mask=k_inside, other=0.0).to(tl.float32)
            if MODE == 2:
                x = tl.load(decay + ck * decay_c, mask=k_inside, other=0.0).to(tl.float32)
                state = state * tl.exp2(x * LOG2E)[:, None]
            elif MODE == 1:
                state = state * tl.exp2(tl.load(decay).to(tl.float32) * LOG2E)
        state = state + key[:, None] * value[None, :]
        read = tl.sum(state * query[:, None], 0)
        tl.store(o, read.to(o.dtype.element_ty), mask=v_inside)
        q += q_t
        k += k_t
        v += v_t
        decay += decay_t
        o += heads * V
    end_state += row * end_n + h * end_h
    tl.store(end_state + ck[:, None] * end_k + cv[None, :] * end_v, state, mask=inside)


def _launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    low: Tensor | None,
    start: Tensor | None,
    end: Tensor,
    cu_seqlens: Tensor | None,
    cache_indices: Tensor | None,
) -> Tensor:
    """q, k, v: (B, T, H, D); decay already (B, T, H), (B, T, H, K) or None, by strides."""
    batch, tokens, heads, key_dim = q.shape
    value_dim = v.shape[-1]
    sequences = batch if cu_seqlens is None else cu_seqlens.numel() - 1
    o = torch.empty((batch, tokens, heads, value_dim), dtype=v.dtype, device=v.device)
    if sequences == 0 or heads == 0:
        return o
    if decay is None:
        mode, decay_strides = NONE, (0, 0, 0, 0)
    elif decay.ndim == 3:
        mode, decay_strides = SCALAR, (*decay.stride(), 0)
    else:
        mode, decay_strides = CHANNEL if low is None else GATE, decay.stride()
    rows = block(key_dim)
    columns = min(block(value_dim), max(16, BLOCK_ELEMENTS // rows))
    low_strides = (0, 0) if low is None else low.stride()
    with torch.cuda.device_of(q):
        recurrent[(sequences * heads * -(-value_dim // columns),)](
            q, k, v, q if decay is None else decay, q if low is None else low,
            end if start is None else start, end, o,
            q if cu_seqlens is None else cu_seqlens, q if cache_indices is None else cache_indices,
            *q.stride(), *k.stride(), *v.stride(), *decay_strides, *low_strides, *strides(start, 4),
            *end.stride(), tokens, heads, K=key_dim, V=value_dim, BK=rows, BV=columns, MODE=mode,
            PACKED=cu_seqlens is not None, START=start is not None,
            ROWS=cache_indices is not None, num_warps=4, num_stages=1,
        )  # fmt: skip
    return o


def _check_step(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, cache_indices: Tensor | None
) -> None:
    """Raise ValueError, naming the argument and the remedy, for what `recurrent` cannot take."""
    if q.device.type not in ("cuda", "meta") and not interpreted():
        raise ValueError(
            f"Triton kernels need tensors on a GPU, got {q.device}; on a CPU call "
            "models.kernels.linear_attention_step, which picks the PyTorch form."
        )
    if q.ndim != 3 or k.shape != q.shape or v.ndim != 3 or v.shape[:2] != q.shape[:2]:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: one step takes (B, H, K),"
            " (B, H, K) and (B, H, V)."
        )
    if (
        q.shape[2] > MAX_HEAD_DIM
        or v.shape[2] > MAX_HEAD_DIM
        or torch.float64 in (q.dtype, v.dtype)
    ):
        raise ValueError(
            f"head dimensions {q.shape[2]} and {v.shape[2]}, dtype {q.dtype}: the kernels support "
            f"dimensions up to {MAX_HEAD_DIM} in float32, bfloat16 or float16."
        )
    slots = state.shape[:1] if cache_indices is not None else q.shape[:1]
    expected = (*slots, q.shape[1], q.shape[2], v.shape[2])
    if tuple(state.shape) != expected or state.dtype != torch.float32:
        raise ValueError(
            f"state has shape {tuple(state.shape)} and dtype {state.dtype}: it is updated in place "
            f"and must be float32 of shape {expected}; with cache_indices its first dimension is "
            "the number of slots."
        )
    if cache_indices is not None and (
        cache_indices.shape != q.shape[:1] or cache_indices.dtype not in (torch.int32, torch.int64)
    ):
        raise ValueError(
            f"cache_indices has shape {tuple(cache_indices.shape)} and dtype {cache_indices.dtype}:"
            f" it must hold one distinct integer slot a batch row, shape ({q.shape[0]},)."
        )


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    decay: Tensor | None = None,
    cache_indices: Tensor | None = None,
    after: Tensor | None = None,
) -> Tensor:
    """One token: updates the state and returns o, (B, H, V) in v's dtype.

    Args:
        q, k, v: (B, H, K), (B, H, K), (B, H, V).
        state: float32, (B, H, K, V), or (slots, H, K, V) with cache_indices.
        decay: log decay in nats, None, (H,), (B, H) or (B, H, K).
        cache_indices: slot of each batch row, distinct integers, (B,).
        after: where the new state goes, with `state`'s shape; None: in place.

    Raises:
        ValueError: device, dtype or shape outside what the kernel supports.
    """
    _check_step(q, k, v, state, cache_indices)
    batch, heads, key_dim = q.shape
    if decay is not None:
        if tuple(decay.shape) not in {(heads,), (batch, heads), (batch, heads, key_dim)}:
            raise ValueError(
                f"decay has shape {tuple(decay.shape)}: one step of q {tuple(q.shape)} takes None, "
                f"{(heads,)}, {(batch, heads)} or {(batch, heads, key_dim)}."
            )
        decay = decay.expand(batch, heads) if decay.ndim == 1 else decay
        decay = decay[:, None]
    parts = (q[:, None], k[:, None], v[:, None])
    end = state if after is None else after
    return _launch(*parts, decay, None, state, end, None, cache_indices)[:, 0]


def hgrn2_step(
    q: Tensor,
    gate_logits: Tensor,
    v: Tensor,
    state: Tensor,
    lower_bound: Tensor,
    cache_indices: Tensor | None = None,
    after: Tensor | None = None,
) -> Tensor:
    """`step` with f = b + (1 - b) sigmoid(x), k = 1 - f; x (B, H, K), b (H, K)."""
    _check_step(q, gate_logits, v, state, cache_indices)
    if lower_bound.shape != q.shape[1:]:
        raise ValueError(
            f"lower_bound has shape {tuple(lower_bound.shape)}, expected (H, K) = "
            f"{tuple(q.shape[1:])}."
        )
    parts = (q[:, None], gate_logits[:, None], v[:, None], gate_logits[:, None])
    end = state if after is None else after
    return _launch(*parts, lower_bound, state, end, None, cache_indices)[:, 0]


def empty_states(call: Call) -> Tensor:
    """Nothing is kept: backward computes the states that it needs."""
    return torch.empty(0, dtype=torch.float32, device=call.q.device)


def forward(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """o (B, T, H, V), final state (N, H, K, V) float32, token by token, and nothing kept.

    Every mode but `phase`. For short prompts: the time grows with T, not with the work.
    """
    check_inputs(call)
    q, k, v, decay, initial_state, cu_seqlens, _ = call
    low = None
    if call.mode == "gate":
        decay, low = k, decay
    elif decay is not None and decay.ndim == 1:
        decay = decay.expand(q.shape[:3])
    final = torch.empty(call.state_shape, dtype=torch.float32, device=q.device)
    o = _launch(q, k, v, decay, low, initial_state, final, cu_seqlens, None)
    return o, final, empty_states(call)

"""Forward and backward of linear attention without decay or with scalar decays, on a GPU.

Launches:
    forward   output                                              when batch x heads fill the GPU
              boundary states, output                             otherwise
    backward  gradients                                           when they fill the GPU
              boundary gradients, gradients                       otherwise
              and the slope gradient                              when slopes (H,) want gradients
              2 boundary passes, gradients, decay gradient        when decays (B, T, H) do

`segment_length` decides from shapes alone (never from cu_seqlens' values), so nothing waits for the
device and a CUDA graph can capture the calls. No input is copied: all strides are passed on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.kernels.triton.common import (
    HEAD,
    HEAD_T,
    MODE_NAMES,
    NONE,
    architecture,
    block,
    check_inputs,
    dot_precision,
    multiprocessors,
    segment_entries,
    strides,
    tuned,
)
from models.kernels.triton.scalar_decay import decay_gradient as decay_gradient_kernel
from models.kernels.triton.scalar_scan import gradients, output
from models.kernels.triton.scalar_slope import slope_gradient as slope_gradient_kernel
from models.kernels.triton.scalar_states import boundary_states

STATE_INTERVAL = 128
"""Tokens between stored states where they are densest."""
SEGMENT_MINIMUM = 256
"""A sequence is not cut into shorter pieces than this: the extra pass would cost more."""


def segment_length(tokens: int, programs: int, sms: int) -> int:
    """Tokens one program walks: the whole sequence when `programs` (sequences x heads x tiles)
    give every multiprocessor work, else enough pieces for two programs on each."""
    whole = max(-(-tokens // STATE_INTERVAL), 1) * STATE_INTERVAL
    if programs >= sms or tokens <= 2 * SEGMENT_MINIMUM:
        return whole
    pieces = min(-(-2 * sms // max(programs, 1)), -(-tokens // SEGMENT_MINIMUM))
    return -(-tokens // (pieces * STATE_INTERVAL)) * STATE_INTERVAL


def decay_mode(decay: Tensor | None, q: Tensor) -> int:
    """NONE, HEAD or HEAD_T from a decay's shape.

    Raises:
        ValueError: the shape is none of (H,) and (B, T, H).
    """
    if decay is None:
        return NONE
    if decay.shape == (q.shape[2],):
        return HEAD
    if decay.shape == q.shape[:3]:
        return HEAD_T
    raise ValueError(
        f"decay has shape {tuple(decay.shape)}; with q of shape {tuple(q.shape)} it must be None, "
        f"({q.shape[2]},), {tuple(q.shape[:3])} or {tuple(q.shape)}."
    )


def decay_strides(decay: Tensor | None) -> tuple[int, int, int]:
    """Strides over (batch, token, head); a per-head slope repeats over batch and tokens."""
    if decay is None:
        return (0, 0, 0)
    if decay.ndim == 1:
        return (0, 0, decay.stride(0))
    return decay.stride()  # pyright: ignore[reportReturnType]


def natural_segment(q: Tensor, v: Tensor, cu_seqlens: Tensor | None) -> int:
    """`segment_length` for these shapes; packed sequences count as one: it may be the longest."""
    batch, tokens, heads, key_dim = q.shape
    arch = architecture(q.device)
    config = tuned(
        "scalar", "output", "none", q.dtype, key_dim, v.shape[-1], arch, cu_seqlens is not None
    )
    tiles = -(-v.shape[-1] // config["BV"])
    sequences = batch if cu_seqlens is None else 1
    return segment_length(tokens, sequences * heads * tiles, multiprocessors(q.device))


def empty_states(
    q: Tensor, v: Tensor, cu_seqlens: Tensor | None, segment: int | None = None
) -> Tensor:
    """Room for the states before every segment, (entries, H, K, V); empty when nothing is cut."""
    batch, tokens, heads, key_dim = q.shape
    segment = natural_segment(q, v, cu_seqlens) if segment is None else segment
    sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    entries = segment_entries(tokens, sequences, segment, cu_seqlens is not None)
    if segment >= tokens or entries == 0:
        return torch.empty(0, dtype=torch.float32, device=q.device)
    shape = (entries, heads, key_dim, v.shape[-1])
    return torch.empty(shape, dtype=torch.float32, device=q.device)


def launch_states(
    y: Tensor,
    z: Tensor,
    decay: Tensor | None,
    edge: Tensor | None,
    cu_seqlens: Tensor | None,
    sequences: int,
    segment: int,
    reverse: bool,
) -> Tensor:
    """States before (reverse: gradients after) every segment, (entries, H, K, V) float32."""
    tokens, heads, key_dim = y.shape[1:]
    value_dim = z.shape[-1]
    arch, mode, packed = architecture(y.device), decay_mode(decay, y), cu_seqlens is not None
    config = tuned("scalar", "states", MODE_NAMES[mode], y.dtype, key_dim, value_dim, arch, packed)
    entries = segment_entries(tokens, sequences, segment, packed)
    states = torch.empty((entries, heads, key_dim, value_dim), dtype=torch.float32, device=y.device)
    tiles = -(-key_dim // config["BK"]) * -(-value_dim // config["BV"])
    boundary_states[(sequences * heads * tiles,)](
        y, z, y if decay is None else decay, y, y, y if edge is None else edge, states,
        y if cu_seqlens is None else cu_seqlens,
        *y.stride(), *z.stride(), *decay_strides(decay), 0, 0, 0, *strides(edge, 4),
        tokens, segment, heads, K=key_dim, V=value_dim, MODE=mode, PACKED=packed,
        EDGE=edge is not None, REVERSE=reverse, PHASE=False,
        PRECISION=dot_precision(y.dtype, arch), **config,
    )  # fmt: skip
    return states


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    segment: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """o (B, T, H, V), final state (N, H, K, V) float32 and boundary states (maybe empty).

    Args:
        q, k, v: (B, T, H, K), (B, T, H, K), (B, T, H, V); bfloat16, float16 or float32.
        decay: log decay in nats a step, None, (H,) or (B, T, H).
        initial_state: (N, H, K, V).
        cu_seqlens: offsets of N packed sequences, (N + 1,).
        segment: tokens a program walks, a multiple of 128; None: `natural_segment`.
    """
    batch, tokens, heads, key_dim, value_dim, sequences = check_inputs(
        q, k, v, initial_state, cu_seqlens
    )
    arch, mode, packed = architecture(q.device), decay_mode(decay, q), cu_seqlens is not None
    segment = natural_segment(q, v, cu_seqlens) if segment is None else segment
    o = torch.empty((batch, tokens, heads, value_dim), dtype=v.dtype, device=v.device)
    final = torch.empty(
        (sequences, heads, key_dim, value_dim), dtype=torch.float32, device=q.device
    )
    segmented = segment < tokens
    if sequences == 0 or heads == 0:
        return o, final, final.new_empty(0)
    with torch.cuda.device_of(q):
        if segmented:
            states = launch_states(
                k, v, decay, initial_state, cu_seqlens, sequences, segment, reverse=False
            )
        else:
            states = final.new_empty(0)
        config = tuned(
            "scalar", "output", MODE_NAMES[mode], q.dtype, key_dim, value_dim, arch, packed
        )
        entries = segment_entries(tokens, sequences, segment, packed)
        output[(entries * heads * -(-value_dim // config["BV"]),)](
            q, k, v, o, q if decay is None else decay,
            q if initial_state is None else initial_state, states if segmented else q, final,
            q if cu_seqlens is None else cu_seqlens,
            *q.stride(), *k.stride(), *v.stride(), *decay_strides(decay),
            *strides(initial_state, 4),
            tokens, sequences, segment, heads, K=key_dim, V=value_dim, BK=block(key_dim),
            MODE=mode, PACKED=packed, SEGMENTED=segmented, INITIAL=initial_state is not None,
            PRECISION=dot_precision(q.dtype, arch), **config,
        )  # fmt: skip
    return o, final, states


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    states: Tensor,
    do: Tensor,
    dfinal_state: Tensor | None,
    decay_gradient: bool = True,
    segment: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """dq, dk, dv in the inputs' dtypes, ddecay (None without one) and dinitial_state.

    Args:
        states: third result of `forward` with the same inputs and `segment`.
        do: gradient of o, (B, T, H, V).
        dfinal_state: gradient of the final state, (N, H, K, V), or None for zeros.
        decay_gradient: False skips ddecay (returned as None).
    """
    _, tokens, heads, key_dim, value_dim, sequences = check_inputs(
        q, k, v, initial_state, cu_seqlens
    )
    arch, mode, packed = architecture(q.device), decay_mode(decay, q), cu_seqlens is not None
    wants_decay = decay is not None and decay_gradient
    segment = natural_segment(q, v, cu_seqlens) if segment is None else segment
    segmented = segment < tokens
    do = do.to(v.dtype)
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    dinitial = (
        None
        if initial_state is None
        else torch.empty(initial_state.shape, dtype=torch.float32, device=q.device)
    )
    ddecay = None
    if sequences == 0 or heads == 0:
        return dq, dk, dv, torch.zeros_like(decay) if wants_decay else None, dinitial
    per_token = wants_decay and mode == HEAD_T
    with torch.cuda.device_of(q):
        dstates = states
        if per_token:
            # Both boundary states every STATE_INTERVAL tokens; the scan reuses them if it is cut.
            if not (segmented and segment == STATE_INTERVAL):
                states = launch_states(
                    k, v, decay, initial_state, cu_seqlens, sequences, STATE_INTERVAL, reverse=False
                )
            segment = STATE_INTERVAL if segmented else segment
        if per_token or segmented:
            dstates = launch_states(
                q, do, decay, dfinal_state, cu_seqlens, sequences,
                STATE_INTERVAL if per_token else segment, reverse=True,
            )  # fmt: skip
        if per_token:
            ddecay = launch_decay_gradient(
                q, k, v, do, decay, states, dstates, cu_seqlens, sequences
            )
        elif wants_decay:
            ddecay = launch_slope_gradient(
                q, k, v, do, decay, initial_state, states, dfinal_state, dstates, cu_seqlens,
                sequences, segment,
            )  # fmt: skip
        config = tuned(
            "scalar", "gradients", MODE_NAMES[mode], q.dtype, key_dim, value_dim, arch, packed
        )
        tiles = 2 * -(-key_dim // config["BT"]) + -(-value_dim // config["BT"])
        entries = segment_entries(tokens, sequences, segment, packed)
        gradients[(entries * heads * tiles,)](
            q, k, v, do, dq, dk, dv, q if decay is None else decay,
            q if initial_state is None else initial_state, states if segmented else q,
            q if dfinal_state is None else dfinal_state, dstates if segmented else q,
            q if dinitial is None else dinitial, q if cu_seqlens is None else cu_seqlens,
            *q.stride(), *k.stride(), *v.stride(), *do.stride(), *decay_strides(decay),
            *strides(initial_state, 4), *strides(dfinal_state, 4),
            tokens, sequences, segment, heads, K=key_dim, V=value_dim,
            BR=max(block(key_dim), block(value_dim)), MODE=mode, PACKED=packed, SEGMENTED=segmented,
            INITIAL=initial_state is not None, DFINAL=dfinal_state is not None,
            PRECISION=dot_precision(q.dtype, arch), **config,
        )  # fmt: skip
    if dinitial is not None:
        dinitial = dinitial.to(initial_state.dtype)  # pyright: ignore[reportOptionalMemberAccess]
    return dq, dk, dv, ddecay, dinitial


def launch_decay_gradient(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    do: Tensor,
    decay: Tensor,
    states: Tensor,
    dstates: Tensor,
    cu_seqlens: Tensor | None,
    sequences: int,
) -> Tensor:
    """ddecay (B, T, H) in decay's dtype, from states every `STATE_INTERVAL` tokens."""
    tokens, heads, key_dim = q.shape[1:]
    value_dim = v.shape[-1]
    arch, packed = architecture(q.device), cu_seqlens is not None
    config = tuned("scalar", "decay", "head_t", q.dtype, key_dim, value_dim, arch, packed)
    entries = segment_entries(tokens, sequences, STATE_INTERVAL, packed)
    ddecay = torch.empty(decay.shape, dtype=torch.float32, device=q.device)
    decay_gradient_kernel[(entries * heads,)](
        q, k, v, do, decay, states, dstates, ddecay, q if cu_seqlens is None else cu_seqlens,
        *q.stride(), *k.stride(), *v.stride(), *do.stride(), *decay.stride(),
        tokens, sequences, heads, K=key_dim, V=value_dim, C=STATE_INTERVAL, PACKED=packed,
        PRECISION=dot_precision(q.dtype, arch), **config,
    )  # fmt: skip
    return ddecay.to(decay.dtype)


def launch_slope_gradient(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    do: Tensor,
    decay: Tensor,
    initial_state: Tensor | None,
    states: Tensor,
    dfinal_state: Tensor | None,
    dstates: Tensor,
    cu_seqlens: Tensor | None,
    sequences: int,
    segment: int,
) -> Tensor:
    """ddecay (H,) in decay's dtype; `states` and `dstates` are read when sequences are cut."""
    tokens, heads, key_dim = q.shape[1:]
    value_dim = v.shape[-1]
    arch, packed, segmented = architecture(q.device), cu_seqlens is not None, segment < tokens
    config = tuned("scalar", "slope", "head", q.dtype, key_dim, value_dim, arch, packed)
    entries = segment_entries(tokens, sequences, segment, packed)
    tiles = -(-value_dim // config["BV"])
    ddecay = torch.empty((entries, heads, tiles), dtype=torch.float32, device=q.device)
    slope_gradient_kernel[(entries * heads * tiles,)](
        q, k, v, do, decay, q if initial_state is None else initial_state,
        states if segmented else q, q if dfinal_state is None else dfinal_state,
        dstates if segmented else q, ddecay, q if cu_seqlens is None else cu_seqlens,
        *q.stride(), *k.stride(), *v.stride(), *do.stride(), decay.stride(0),
        *strides(initial_state, 4), *strides(dfinal_state, 4),
        tokens, sequences, segment, heads, K=key_dim, V=value_dim, BK=block(key_dim),
        PACKED=packed, SEGMENTED=segmented, INITIAL=initial_state is not None,
        DFINAL=dfinal_state is not None, PRECISION=dot_precision(q.dtype, arch), **config,
    )  # fmt: skip
    return ddecay.sum((0, 2)).to(decay.dtype)

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

from functools import cache

import torch
from torch import Tensor

from models.chunk_sizes import STATE_INTERVAL
from models.kernels.call import Call, Gradients
from models.kernels.triton.common import (
    HEAD,
    HEAD_T,
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

MODES = {"none": NONE, "head": HEAD, "head_t": HEAD_T}
INTERVAL = STATE_INTERVAL["cuda"]
"""Tokens between stored states where they are densest."""
SEGMENT_MINIMUM = 256
"""A sequence is not cut into shorter pieces than this: the extra pass would cost more."""


MOST_PIECES = 512
"""Of a sequence: more than twice the multiprocessors of any device here, but for one program."""


@cache
def segment_length(tokens: int, programs: int, sms: int) -> int:
    """Tokens one program walks: the whole sequence when `programs` (sequences x heads x tiles)
    give every multiprocessor work, else what takes least time by

        waves x (segment + INTERVAL),   waves = ceil(programs x pieces / (2 sms))

    two programs a multiprocessor at once, and a state at the end of each piece that costs about as
    much as INTERVAL tokens. Of equals the one with the fewest pieces.
    """
    whole = max(-(-tokens // INTERVAL), 1) * INTERVAL
    if programs >= sms or programs < 1 or tokens <= 2 * SEGMENT_MINIMUM:
        return whole

    def time(pieces: int) -> int:
        waves = -(-programs * pieces // (2 * sms))
        return waves * (_share(tokens, pieces) + INTERVAL)

    most = min(MOST_PIECES, -(-tokens // SEGMENT_MINIMUM))
    return _share(tokens, min(range(1, most + 1), key=time))


def _share(tokens: int, pieces: int) -> int:
    """Tokens of each of so many pieces, a multiple of INTERVAL."""
    return -(-tokens // (pieces * INTERVAL)) * INTERVAL


def decay_strides(decay: Tensor | None) -> tuple[int, int, int]:
    """Strides over (batch, token, head); a per-head slope repeats over batch and tokens."""
    if decay is None:
        return (0, 0, 0)
    if decay.ndim == 1:
        return (0, 0, decay.stride(0))
    return decay.stride()  # pyright: ignore[reportReturnType]


def natural_segment(call: Call) -> int:
    """`segment_length` for these shapes; packed sequences count as one: it may be the longest."""
    batch, tokens, heads, _ = call.q.shape
    plain = call._replace(decay=None)
    tile = tuned("scalar", "output", plain, architecture(call.q.device))["BV"]
    programs = (1 if call.packed else batch) * heads * -(-call.v.shape[-1] // tile)
    return segment_length(tokens, programs, multiprocessors(call.q.device))


def empty_states(call: Call, segment: int | None = None) -> Tensor:
    """Room for the states before every segment, (entries, H, K, V); empty when nothing is cut."""
    tokens = call.q.shape[1]
    segment = natural_segment(call) if segment is None else segment
    entries = segment_entries(tokens, call.sequences, segment, call.packed)
    if segment >= tokens or entries == 0:
        return torch.empty(0, dtype=torch.float32, device=call.q.device)
    return _states(call, entries)


def _states(call: Call, entries: int) -> Tensor:
    shape = (entries, *call.state_shape[1:])
    return torch.empty(shape, dtype=torch.float32, device=call.q.device)


def launch_states(
    call: Call, y: Tensor, z: Tensor, edge: Tensor | None, segment: int, reverse: bool
) -> Tensor:
    """States before (reverse: gradients after) every segment, (entries, H, K, V) float32."""
    tokens, heads, key_dim = y.shape[1:]
    value_dim = z.shape[-1]
    decay, cu_seqlens = call.decay, call.cu_seqlens
    arch = architecture(y.device)
    config = tuned("scalar", "states", call, arch)
    states = _states(call, segment_entries(tokens, call.sequences, segment, call.packed))
    tiles = -(-key_dim // config["BK"]) * -(-value_dim // config["BV"])
    boundary_states[(call.sequences * heads * tiles,)](
        y, z, y if decay is None else decay, y, y, y if edge is None else edge, states,
        y if cu_seqlens is None else cu_seqlens,
        *y.stride(), *z.stride(), *decay_strides(decay), 0, 0, 0, *strides(edge, 4),
        tokens, segment, heads, K=key_dim, V=value_dim, MODE=MODES[call.mode],
        PACKED=call.packed, EDGE=edge is not None, REVERSE=reverse, PHASE=False,
        PRECISION=dot_precision(y.dtype, arch), **config,
    )  # fmt: skip
    return states


def forward(call: Call, segment: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """o (B, T, H, V), final state (N, H, K, V) float32 and boundary states (maybe empty).

    Args:
        call: bfloat16, float16 or float32; decays None, (H,) or (B, T, H).
        segment: tokens a program walks, a multiple of 128; None: `natural_segment`.

    Raises:
        ValueError: device, dtype or shape outside what the kernels support.
    """
    check_inputs(call)
    q, k, v, decay, initial_state, cu_seqlens, _ = call
    tokens, heads, key_dim = q.shape[1:]
    value_dim, sequences = v.shape[-1], call.sequences
    arch = architecture(q.device)
    segment = natural_segment(call) if segment is None else segment
    o = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    final = torch.empty(call.state_shape, dtype=torch.float32, device=q.device)
    segmented = segment < tokens
    if sequences == 0 or heads == 0:
        return o, final, final.new_empty(0)
    with torch.cuda.device_of(q):
        if segmented:
            states = launch_states(call, k, v, initial_state, segment, reverse=False)
        else:
            states = final.new_empty(0)
        config = tuned("scalar", "output", call, arch)
        entries = segment_entries(tokens, sequences, segment, call.packed)
        output[(entries * heads * -(-value_dim // config["BV"]),)](
            q, k, v, o, q if decay is None else decay,
            q if initial_state is None else initial_state, states if segmented else q, final,
            q if cu_seqlens is None else cu_seqlens,
            *q.stride(), *k.stride(), *v.stride(), *decay_strides(decay),
            *strides(initial_state, 4),
            tokens, sequences, segment, heads, K=key_dim, V=value_dim, BK=block(key_dim),
            MODE=MODES[call.mode], PACKED=call.packed, SEGMENTED=segmented,
            INITIAL=initial_state is not None, PRECISION=dot_precision(q.dtype, arch), **config,
        )  # fmt: skip
    return o, final, states


def backward(
    call: Call,
    states: Tensor,
    do: Tensor,
    dfinal_state: Tensor | None,
    decay_gradient: bool = True,
    segment: int | None = None,
) -> Gradients:
    """dq, dk, dv in the inputs' dtypes, ddecay (None without one) and dinitial_state.

    Args:
        call, segment: as in `forward`.
        states: third result of `forward`.
        do: gradient of o, (B, T, H, V).
        dfinal_state: gradient of the final state, (N, H, K, V), or None for zeros.
        decay_gradient: False skips ddecay (returned as None), which saves one or two launches: a
            constant slope needs none.
    """
    check_inputs(call)
    q, k, v, decay, initial_state, cu_seqlens, _ = call
    tokens, heads, key_dim = q.shape[1:]
    value_dim, sequences = v.shape[-1], call.sequences
    arch = architecture(q.device)
    wants_decay = decay is not None and decay_gradient
    segment = natural_segment(call) if segment is None else segment
    segmented = segment < tokens
    do = do.to(v.dtype)
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    dinitial = None
    if initial_state is not None:
        dinitial = torch.empty(call.state_shape, dtype=torch.float32, device=q.device)
    ddecay = None
    if sequences == 0 or heads == 0:
        return dq, dk, dv, torch.zeros_like(decay) if wants_decay else None, dinitial
    per_token = wants_decay and call.mode == "head_t"
    with torch.cuda.device_of(q):
        dstates = states
        if per_token:
            # Both boundary states every INTERVAL tokens; the scan reuses them if it is cut.
            if not (segmented and segment == INTERVAL):
                states = launch_states(call, k, v, initial_state, INTERVAL, reverse=False)
            segment = INTERVAL if segmented else segment
        if per_token or segmented:
            interval = INTERVAL if per_token else segment
            dstates = launch_states(call, q, do, dfinal_state, interval, reverse=True)
        if per_token:
            ddecay = launch_decay_gradient(call, do, states, dstates)
        elif wants_decay:
            ddecay = launch_slope_gradient(call, do, states, dfinal_state, dstates, segment)
        config = tuned("scalar", "gradients", call, arch)
        tiles = 2 * -(-key_dim // config["BT"]) + -(-value_dim // config["BT"])
        entries = segment_entries(tokens, sequences, segment, call.packed)
        gradients[(entries * heads * tiles,)](
            q, k, v, do, dq, dk, dv, q if decay is None else decay,
            q if initial_state is None else initial_state, states if segmented else q,
            q if dfinal_state is None else dfinal_state, dstates if segmented else q,
            q if dinitial is None else dinitial, q if cu_seqlens is None else cu_seqlens,
            *q.stride(), *k.stride(), *v.stride(), *do.stride(), *decay_strides(decay),
            *strides(initial_state, 4), *strides(dfinal_state, 4),
            tokens, sequences, segment, heads, K=key_dim, V=value_dim,
            BR=max(block(key_dim), block(value_dim)), MODE=MODES[call.mode], PACKED=call.packed,
            SEGMENTED=segmented, INITIAL=initial_state is not None,
            DFINAL=dfinal_state is not None, PRECISION=dot_precision(q.dtype, arch), **config,
        )  # fmt: skip
    if dinitial is not None and initial_state is not None:
        dinitial = dinitial.to(initial_state.dtype)
    return dq, dk, dv, ddecay, dinitial


def launch_decay_gradient(call: Call, do: Tensor, states: Tensor, dstates: Tensor) -> Tensor:
    """ddecay (B, T, H) in decay's dtype, from states every `INTERVAL` tokens."""
    q, k, v, decay, _, cu_seqlens, _ = call
    assert decay is not None
    tokens, heads, key_dim = q.shape[1:]
    arch = architecture(q.device)
    config = tuned("scalar", "decay", call, arch)
    entries = segment_entries(tokens, call.sequences, INTERVAL, call.packed)
    ddecay = torch.empty(decay.shape, dtype=torch.float32, device=q.device)
    decay_gradient_kernel[(entries * heads,)](
        q, k, v, do, decay, states, dstates, ddecay, q if cu_seqlens is None else cu_seqlens,
        *q.stride(), *k.stride(), *v.stride(), *do.stride(), *decay.stride(),
        tokens, call.sequences, heads, K=key_dim, V=v.shape[-1], C=INTERVAL,
        PACKED=call.packed, PRECISION=dot_precision(q.dtype, arch), **config,
    )  # fmt: skip
    return ddecay.to(decay.dtype)


def launch_slope_gradient(
    call: Call,
    do: Tensor,
    states: Tensor,
    dfinal_state: Tensor | None,
    dstates: Tensor,
    segment: int,
) -> Tensor:
    """ddecay (H,) in decay's dtype; `states` and `dstates` are read when sequences are cut."""
    q, k, v, decay, initial_state, cu_seqlens, _ = call
    assert decay is not None
    tokens, heads, key_dim = q.shape[1:]
    value_dim, segmented = v.shape[-1], segment < tokens
    arch = architecture(q.device)
    config = tuned("scalar", "slope", call, arch)
    entries = segment_entries(tokens, call.sequences, segment, call.packed)
    tiles = -(-value_dim // config["BV"])
    ddecay = torch.empty((entries, heads, tiles), dtype=torch.float32, device=q.device)
    slope_gradient_kernel[(entries * heads * tiles,)](
        q, k, v, do, decay, q if initial_state is None else initial_state,
        states if segmented else q, q if dfinal_state is None else dfinal_state,
        dstates if segmented else q, ddecay, q if cu_seqlens is None else cu_seqlens,
        *q.stride(), *k.stride(), *v.stride(), *do.stride(), decay.stride(0),
        *strides(initial_state, 4), *strides(dfinal_state, 4),
        tokens, call.sequences, segment, heads, K=key_dim, V=value_dim, BK=block(key_dim),
        PACKED=call.packed, SEGMENTED=segmented, INITIAL=initial_state is not None,
        DFINAL=dfinal_state is not None, PRECISION=dot_precision(q.dtype, arch), **config,
    )  # fmt: skip
    return ddecay.sum((0, 2)).to(decay.dtype)

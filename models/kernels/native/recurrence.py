"""Linear attention with decay, and HGRN2's, on the CPU: calls of the compiled recurrence.

The functions of `models.kernels.chunked`, on the same calls and with the same states kept, for
float32 and bfloat16. What else there is (float64, float16) is the chunked form's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.kernels.call import Call, Gradients
from models.kernels.chunked import CHUNK, check_decay, empty_states, states_shape
from models.kernels.native.library import library
from models.kernels.native.problem import MODES, TYPES, Problem

__all__ = ["backward", "empty_states", "forward", "serves"]


def serves(call: Call) -> bool:
    """Whether the compiled recurrence runs this call."""
    return call.q.dtype in TYPES and call.mode in MODES and library() is not None


def forward(call: Call, chunk: int = CHUNK) -> tuple[Tensor, Tensor, Tensor]:
    """As `models.kernels.chunked.forward`."""
    o = torch.empty_like(call.v, memory_format=torch.contiguous_format)
    final_state = torch.empty(call.state_shape, dtype=torch.float32)
    # Packed sequences may leave the last slots unused.
    make = torch.zeros if call.packed else torch.empty
    states = make(states_shape(call, chunk), dtype=torch.float32)
    problem = _problem(call, chunk)
    initial = None if call.initial_state is None else call.initial_state.float()
    problem.set(o=o, initial=initial, final=final_state, states=states)
    if not problem.run("linscale_forward"):
        check_decay(call.decay)
    return o, final_state, states


def backward(
    call: Call,
    states: Tensor,
    do: Tensor,
    dfinal_state: Tensor | None,
    decay_gradient: bool = True,
    chunk: int = CHUNK,
) -> Gradients:
    """As `models.kernels.chunked.backward`."""
    q, k, v, decay, initial_state, _, _ = call
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    dinitial = torch.empty(call.state_shape, dtype=torch.float32)
    problem = _problem(call, chunk)
    dfinal = None if dfinal_state is None else dfinal_state.float()
    problem.set(grad_o=do, dq=dq, dk=dk, dv=dv)
    problem.set(states=states, dfinal=dfinal, dinitial=dinitial)
    ddecay = None
    if decay is not None and (decay_gradient or call.mode == "gate"):
        if decay.ndim <= 2:  # a part of each sequence
            ddecay = torch.empty((call.sequences, *decay.shape), dtype=torch.float32)
            problem.set(dconstant=ddecay)
        else:
            ddecay = torch.empty(decay.shape, dtype=torch.float32)
            problem.set(ddecay=ddecay if decay.ndim == 4 else ddecay[..., None])
    problem.run("linscale_backward", learned=ddecay is not None)
    if ddecay is not None and decay is not None:
        ddecay = (ddecay.sum(0) if decay.ndim <= 2 else ddecay).to(decay.dtype)
    return (
        dq, dk, dv, ddecay,
        None if initial_state is None else dinitial.to(initial_state.dtype),
    )  # fmt: skip


def _problem(call: Call, chunk: int) -> Problem:
    """A problem with the inputs of forward and backward."""
    q, k, v, decay, _, _, _ = call
    problem = Problem(call, chunk)
    problem.set(q=q, k=k, v=v)
    if decay is not None and decay.ndim <= 2:
        problem.set(constant=decay.float())
    elif decay is not None:
        decay = decay if decay.dtype in TYPES else decay.float()
        problem.set(decay=decay if decay.ndim == 4 else decay[..., None])
    return problem

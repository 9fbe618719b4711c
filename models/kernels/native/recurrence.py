"""Linear attention with decay, HGRN2's and the cosine form: calls of the compiled recurrence.

The functions of `models.kernels.chunked` and `rotated`, on the same calls and with the same states
kept, for float32 and bfloat16. Float64 and float16 are theirs alone.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from models.kernels.call import Call, Gradients
from models.kernels.chunked import CHUNK, check_decay, empty_states, states_shape
from models.kernels.layout import check_bounds, chunk_length
from models.kernels.native import TYPES, available
from models.kernels.native.arguments import Arguments, structure

__all__ = ["backward", "empty_states", "forward", "serves"]

MODES = {"none": 0, "head": 1, "head_t": 2, "vector": 3, "gate": 4, "phase": 5}


class Problem(Arguments):
    """`Problem` of `job.h`."""

    layout = structure(
        ("q", "k", "v", "o", "grad_o", "dq", "dk", "dv", "decay", "ddecay", "beta", "dbeta"),
        ("constant", "dconstant", "offsets", "initial", "final", "states", "dfinal", "dinitial",
         "bounds", "slots"),
        (),
        ("sequences", "batch", "tokens", "heads", "keys", "values", "mode", "learned", "interval",
         "threads"),
    )  # fmt: skip


def serves(call: Call) -> bool:
    """Whether the compiled recurrence runs this call."""
    return call.mode in MODES and available(call.q.dtype)


def forward(call: Call, chunk: int = CHUNK) -> tuple[Tensor, Tensor, Tensor]:
    """As `models.kernels.chunked.forward`."""
    problem = problem_of(call, MODES[call.mode], chunk)
    return run_forward(call, problem, chunk, "linscale_forward")


def run_forward(
    call: Call, problem: Problem, chunk: int, function: str
) -> tuple[Tensor, Tensor, Tensor]:
    """o, the final state and the states kept, by a compiled forward pass of these inputs."""
    o = torch.empty_like(call.v, memory_format=torch.contiguous_format)
    final_state = torch.empty(call.state_shape, dtype=torch.float32)
    # Packed sequences may leave the last slots unused.
    make = torch.zeros if call.packed else torch.empty
    states = make(states_shape(call, chunk), dtype=torch.float32)
    problem.arrays(o=o)
    initial = None if call.initial_state is None else call.initial_state.float()
    problem.pointers(initial=initial, final=final_state, states=states)
    if not problem.run(function):
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
    problem = problem_of(call, MODES[call.mode], chunk)
    problem.arrays(grad_o=do, dq=dq, dk=dk, dv=dv)
    dfinal = None if dfinal_state is None else dfinal_state.float()
    problem.pointers(states=states, dfinal=dfinal, dinitial=dinitial)
    ddecay = None
    if decay is not None and decay_gradient:
        if decay.ndim <= 2:  # a part of each sequence
            ddecay = torch.empty((call.sequences, *decay.shape), dtype=torch.float32)
            problem.pointers(dconstant=ddecay)
        else:
            ddecay = torch.empty(decay.shape, dtype=torch.float32)
            problem.arrays(ddecay=ddecay if decay.ndim == 4 else ddecay[..., None])
    problem.run("linscale_backward", learned=int(ddecay is not None))
    if ddecay is not None and decay is not None:
        ddecay = (ddecay.sum(0) if decay.ndim <= 2 else ddecay).to(decay.dtype)
    return (
        dq, dk, dv, ddecay,
        None if initial_state is None else dinitial.to(initial_state.dtype),
    )  # fmt: skip


def problem_of(call: Call, mode: int, chunk: int) -> Problem:
    """A problem with the inputs that forward and backward share."""
    q, k, v, decay, _, cu_seqlens, offset = call
    batch, tokens, heads, keys = q.shape
    interval = chunk_length(tokens, chunk)
    problem = Problem(
        sequences=call.sequences, batch=batch, tokens=tokens, heads=heads, keys=keys,
        values=v.shape[-1], mode=mode, interval=interval,
    )  # fmt: skip
    problem.arrays(q=q, k=k, v=v)
    if cu_seqlens is not None:
        bounds: list[int] = cu_seqlens.tolist()
        check_bounds(bounds, tokens)
        slots = [0]
        for start, end in pairwise(bounds):
            slots.append(slots[-1] + (end - start + interval - 1) // interval)
        problem.pointers(bounds=torch.tensor(bounds), slots=torch.tensor(slots[:-1]))
    if offset is not None:
        problem.pointers(offsets=offset.long().expand(call.sequences))
    if decay is not None and decay.ndim <= 2:
        problem.pointers(constant=decay.float())
    elif decay is not None:
        decay = decay if decay.dtype in TYPES else decay.float()
        problem.arrays(decay=decay if decay.ndim == 4 else decay[..., None])
    return problem

"""The delta rule on the CPU: calls of the compiled recurrence.

The functions of `models.kernels.delta.chunked`, on the same calls and with the same states kept,
for float32 and bfloat16. Float64 and float16 are its alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.kernels.delta.call import DeltaCall, DeltaGradients
from models.kernels.delta.chunked import CHUNK, empty_states
from models.kernels.native import available
from models.kernels.native.recurrence import Problem, problem_of, run_forward

__all__ = ["backward", "empty_states", "forward", "serves"]

MODES = {"delta": 0, "delta_head": 2, "delta_channel": 3}


def serves(call: DeltaCall) -> bool:
    """Whether the compiled recurrence runs this call."""
    return available(call.q.dtype)


def forward(call: DeltaCall, chunk: int = CHUNK) -> tuple[Tensor, Tensor, Tensor]:
    """As `models.kernels.delta.chunked.forward`."""
    problem = _problem(call, chunk)
    return run_forward(call.without_beta, problem, chunk, "linscale_delta_forward")


def backward(
    call: DeltaCall,
    states: Tensor,
    do: Tensor,
    dfinal_state: Tensor | None,
    decay_gradient: bool = True,
    chunk: int = CHUNK,
) -> DeltaGradients:
    """As `models.kernels.delta.chunked.backward`."""
    q, k, v, beta, decay, initial_state, _ = call
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    dbeta = torch.empty(beta.shape, dtype=torch.float32)
    dinitial = torch.empty(call.state_shape, dtype=torch.float32)
    problem = _problem(call, chunk)
    problem.arrays(grad_o=do, dq=dq, dk=dk, dv=dv, dbeta=dbeta[..., None])
    dfinal = None if dfinal_state is None else dfinal_state.float()
    problem.pointers(states=states, dfinal=dfinal, dinitial=dinitial)
    ddecay = None
    if decay is not None and decay_gradient:
        ddecay = torch.empty(decay.shape, dtype=torch.float32)
        problem.arrays(ddecay=ddecay if decay.ndim == 4 else ddecay[..., None])
    problem.run("linscale_delta_backward", learned=int(ddecay is not None))
    return (
        dq, dk, dv, dbeta.to(beta.dtype),
        None if ddecay is None or decay is None else ddecay.to(decay.dtype),
        None if initial_state is None else dinitial.to(initial_state.dtype),
    )  # fmt: skip


def _problem(call: DeltaCall, chunk: int) -> Problem:
    problem = problem_of(call.without_beta, MODES[call.mode], chunk)
    beta = call.beta if call.beta.dtype == call.q.dtype else call.beta.float()
    problem.arrays(beta=beta[..., None])
    return problem

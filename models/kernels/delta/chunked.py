"""The delta rule in PyTorch: tokens folded into chunks, as in `models.kernels.chunked`.

Plain PyTorch without autograd: `operators` wraps it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.chunk_sizes import STATE_INTERVAL
from models.kernels import chunked
from models.kernels.chunked import check_decay, decay_gradient_of, fold_decay
from models.kernels.delta.call import DeltaCall, DeltaGradients
from models.kernels.delta.passes import backward_pass, forward_pass
from models.kernels.layout import layout

CHUNK = STATE_INTERVAL["cpu"]
"""Tokens in a chunk."""


def forward(call: DeltaCall, chunk: int = CHUNK) -> tuple[Tensor, Tensor, Tensor]:
    """The recurrence of `models.kernels.delta.reference`.

    Returns:
        o, (B, T, H, V) in v's dtype; the final state, (N, H, K, V); and for `backward` the state
        before each chunk, of `models.kernels.chunked.states_shape`. States are in the working
        dtype.

    Raises:
        ValueError: a decay above 0, or cu_seqlens that do not rise from 0 to T.
    """
    q, k, v, beta, decay, initial_state, cu_seqlens = call
    check_decay(decay)
    dtype = torch.promote_types(q.dtype, torch.float32)
    cut = layout(q.shape[1], cu_seqlens, chunk)
    o, final_state, states = forward_pass(
        cut,
        cut.fold(q, dtype),
        cut.fold(k, dtype),
        cut.fold(v, dtype),
        cut.fold(beta[..., None], dtype),
        fold_decay(cut, decay, dtype),
        initial_state,
        chunked.states_shape(call.without_beta, chunk)[0],
    )
    return cut.unfold(o, v.dtype), final_state, states


def backward(
    call: DeltaCall,
    states: Tensor,
    do: Tensor,
    dfinal_state: Tensor | None,
    decay_gradient: bool = True,
    chunk: int = CHUNK,
) -> DeltaGradients:
    """Gradients from those of o and of the final state.

    Args:
        call, chunk: as in `forward`.
        states: what `forward` returned.
        do: (B, T, H, V).
        dfinal_state: (N, H, K, V); None is zero.
        decay_gradient: compute the decay's gradient.

    Returns:
        dq, dk, dv, dbeta, ddecay (None without a decay, or when not asked for) and dinitial_state
        (None without an initial state), each of its input's shape and dtype.
    """
    q, k, v, beta, decay, initial_state, cu_seqlens = call
    dtype = states.dtype
    cut = layout(q.shape[1], cu_seqlens, chunk)
    found = backward_pass(
        cut,
        cut.fold(q, dtype),
        cut.fold(k, dtype),
        cut.fold(v, dtype),
        cut.fold(beta[..., None], dtype),
        fold_decay(cut, decay, dtype),
        states,
        cut.fold(do, dtype),
        dfinal_state,
        decay_gradient,
    )
    rate, dinitial = found.ddecay, found.dinitial_state
    return (
        cut.unfold(found.dq, q.dtype),
        cut.unfold(found.dk, k.dtype),
        cut.unfold(found.dv, v.dtype),
        cut.unfold(found.dbeta, beta.dtype).squeeze(-1),
        None if rate is None or decay is None else decay_gradient_of(cut, decay, rate),
        None if initial_state is None else dinitial.to(initial_state.dtype),
    )


def empty_states(call: DeltaCall) -> Tensor:
    """An uninitialised third result of `forward`, from shapes alone: what fake tensors need."""
    return chunked.empty_states(call.without_beta)

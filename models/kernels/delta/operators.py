"""The delta rule behind `torch.library`, so that `torch.compile` and autograd see it.

As in `models.kernels.operators`: one operator and one for its backward pass, with the arguments of
`DeltaCall` in its order, and shapes for fake tensors; `models.kernels.launch` chooses what runs by
the shapes and the device. Nothing that an operator returns shares memory with its arguments. FLOPs
are counted in the recurrent form, 6 K V a token and head forward and twice that backward, whatever
algorithm runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from models.kernels import launch, selfcheck
from models.kernels.delta.call import DeltaCall
from models.kernels.operators import new

CALL = (
    "Tensor q, Tensor k, Tensor v, Tensor beta, Tensor? decay, Tensor? initial_state, "
    "Tensor? cu_seqlens"
)
"""The schema of `DeltaCall`."""


@torch.library.custom_op(
    "linscale::delta_attention", mutates_args=(), schema=f"({CALL}) -> (Tensor, Tensor, Tensor)"
)
def delta_attention(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """o, the final state and what backward wants saved, of a call."""
    call = DeltaCall(*arguments)
    with torch.autocast(call.q.device.type, enabled=False):
        if call.q.device.type == "cuda":
            selfcheck.ensure(call.q.device, call.mode)
        return launch.kernels(call).forward(call)


@torch.library.custom_op(
    "linscale::delta_attention_backward",
    mutates_args=(),
    schema=(
        f"({CALL}, Tensor states, Tensor do, Tensor? dfinal_state, bool decay_gradient) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
)
def delta_attention_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """dq, dk, dv, dbeta, ddecay and dinitial_state, the last two empty where there is none: an
    operator returns tensors, never None."""
    *inputs, states, do, dfinal_state, decay_gradient = arguments
    call = DeltaCall(*inputs)
    with torch.autocast(call.q.device.type, enabled=False):
        found = launch.kernels(call).backward(call, states, do, dfinal_state, decay_gradient)
    return tuple(call.q.new_empty(0) if x is None else x for x in found)


@delta_attention.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    call = DeltaCall(*arguments)
    dtype = torch.promote_types(call.q.dtype, torch.float32)
    final_state = call.q.new_empty(call.without_beta.state_shape, dtype=dtype)
    device = call.q.device
    backend = "cpu" if device.type == "meta" else launch.backend(device)
    return new(call.v), final_state, launch.choose(call, backend).empty_states(call)


@delta_attention_backward.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    *inputs, _, _, _, decay_gradient = arguments
    call = DeltaCall(*inputs)
    decay = call.decay if decay_gradient else None
    wanted = (call.q, call.k, call.v, call.beta, decay, call.initial_state)
    return tuple(call.q.new_empty(0) if x is None else new(x) for x in wanted)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, output[2])
    ctx.set_materialize_grads(False)


def _gradients(
    ctx: Any, do: Tensor | None, dfinal_state: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    *inputs, states = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    do = torch.zeros_like(inputs[2]) if do is None else do
    *first, ddecay, dinitial = delta_attention_backward(
        *inputs, states, do, dfinal_state, wanted[4]
    )
    return *first, ddecay if wanted[4] else None, dinitial if wanted[5] else None, None


delta_attention.register_autograd(_gradients, setup_context=_save)


@torch.library.custom_op("linscale::delta_attention_step", mutates_args=(), device_types="cuda")
def delta_attention_step(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor, decay: Tensor | None
) -> tuple[Tensor, Tensor]:
    """o and the state after one token. For decoding: it has no gradient."""
    from models.kernels.triton import delta_decode

    q, k, v, beta = (x[:, None] for x in (q, k, v, beta))
    call = DeltaCall(q, k, v, beta, None if decay is None else decay[:, None], state)
    o, after, _ = delta_decode.forward(call)
    return o[:, 0], after.to(state.dtype)


@delta_attention_step.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor, decay: Tensor | None
) -> tuple[Tensor, Tensor]:
    return new(v), new(state)


@register_flop_formula(torch.ops.linscale.delta_attention)
def _flops(q_shape: list[int], k_shape: Any, v_shape: list[int], *_: Any, **__: Any) -> int:
    """The read for the correction, the update and the read of the output, 2 K V each."""
    batch, length, heads, key_dim = q_shape
    return 6 * batch * length * heads * key_dim * v_shape[-1]


@register_flop_formula(torch.ops.linscale.delta_attention_backward)
def _backward_flops(*shapes: Any, **_: Any) -> int:
    """Two products for each one forward."""
    return 2 * _flops(*shapes)

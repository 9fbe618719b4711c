"""Operators: the kernels behind `torch.library`, so that `torch.compile` and autograd see them.

`models.kernels.launch` chooses what runs by the shapes and the device. The three families of
calls (`linear_attention`, `hgrn2_attention`, `cosine_attention`) are an operator each, and one
for its backward pass, with the arguments of `Call` in its order, and shapes for fake tensors;
nothing that an operator returns shares memory with its arguments.

FLOPs are counted in the recurrent form, 4 K V a token and head forward and twice that backward,
whatever algorithm runs (the `exact` convention of `models.accounting`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch.utils.flop_counter import register_flop_formula

from models.kernels import launch, selfcheck
from models.kernels.call import Call

CALL = (
    "Tensor q, Tensor k, Tensor v, Tensor? decay, Tensor? initial_state, Tensor? cu_seqlens, "
    "Tensor? position_offset"
)
"""The schema of `Call`."""
FORWARD = f"({CALL}) -> (Tensor, Tensor, Tensor)"
BACKWARD = (
    f"({CALL}, Tensor states, Tensor do, Tensor? dfinal_state, bool decay_gradient) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """o, the final state and what backward wants saved, of a call."""
    call = Call(*arguments)
    with torch.autocast(call.q.device.type, enabled=False):
        if call.q.device.type == "cuda":
            selfcheck.ensure(call.q.device, call.mode)
        return launch.kernels(call).forward(call)


def forward_shapes(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`forward` on fake tensors."""
    call = Call(*arguments)
    dtype = torch.promote_types(call.q.dtype, torch.float32)
    final_state = call.q.new_empty(call.state_shape, dtype=dtype)
    device = call.q.device
    backend = "cpu" if device.type == "meta" else launch.backend(device)
    return new(call.v), final_state, launch.choose(call, backend).empty_states(call)


def backward(*arguments: Any) -> tuple[Tensor, ...]:
    """dq, dk, dv, ddecay and dinitial_state, the last two empty where there is none: an operator
    returns tensors, never None."""
    *inputs, states, do, dfinal_state, decay_gradient = arguments
    call = Call(*inputs)
    with torch.autocast(call.q.device.type, enabled=False):
        found = launch.kernels(call).backward(call, states, do, dfinal_state, decay_gradient)
    return tuple(call.q.new_empty(0) if x is None else x for x in found)


def backward_shapes(*arguments: Any) -> tuple[Tensor, ...]:
    """`backward` on fake tensors."""
    *inputs, _, _, _, decay_gradient = arguments
    call = Call(*inputs)
    decay = call.decay if decay_gradient else None
    wanted = (call.q, call.k, call.v, decay, call.initial_state)
    return tuple(call.q.new_empty(0) if x is None else new(x) for x in wanted)


def new(x: Tensor) -> Tensor:
    """Uninitialised, contiguous, of the shape and dtype of x."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, output[2])
    ctx.set_materialize_grads(False)


def _define(family: str) -> tuple[CustomOpDef, CustomOpDef]:
    """The operators `family` and `family`_backward, with autograd and fake shapes."""
    ahead = torch.library.custom_op(f"linscale::{family}", forward, mutates_args=(), schema=FORWARD)
    back = torch.library.custom_op(
        f"linscale::{family}_backward", backward, mutates_args=(), schema=BACKWARD
    )
    ahead.register_fake(forward_shapes)
    back.register_fake(backward_shapes)

    def gradients(
        ctx: Any, do: Tensor | None, dfinal_state: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        *inputs, states = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        do = torch.zeros_like(inputs[2]) if do is None else do
        *first, ddecay, dinitial = back(*inputs, states, do, dfinal_state, wanted[3])
        return *first, ddecay if wanted[3] else None, dinitial if wanted[4] else None, None, None

    ahead.register_autograd(gradients, setup_context=_save)
    return ahead, back


linear_attention, linear_attention_backward = _define("linear_attention")
hgrn2_attention, hgrn2_attention_backward = _define("hgrn2_attention")
cosine_attention, cosine_attention_backward = _define("cosine_attention")


@torch.library.custom_op("linscale::linear_attention_step", mutates_args=(), device_types="cuda")
def linear_attention_step(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, decay: Tensor | None
) -> tuple[Tensor, Tensor]:
    """o and the state after one token. For decoding: it has no gradient."""
    from models.kernels.triton import decode

    after = new(state)
    return decode.step(q, k, v, state, decay, after=after), after


@torch.library.custom_op("linscale::hgrn2_attention_step", mutates_args=(), device_types="cuda")
def hgrn2_attention_step(
    q: Tensor, gate_logits: Tensor, v: Tensor, lower_bound: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """`linear_attention_step` from HGRN2's gate logits."""
    from models.kernels.triton import decode

    after = new(state)
    return decode.hgrn2_step(q, gate_logits, v, state, lower_bound, after=after), after


@linear_attention_step.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, decay: Tensor | None
) -> tuple[Tensor, Tensor]:
    return new(v), new(state)


@hgrn2_attention_step.register_fake
def _(
    q: Tensor, gate_logits: Tensor, v: Tensor, lower_bound: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    return new(v), new(state)


_OURS = torch.ops.linscale


@register_flop_formula([_OURS.linear_attention, _OURS.hgrn2_attention])
def _flops(q_shape: list[int], k_shape: Any, v_shape: list[int], *_: Any, **__: Any) -> int:
    """State update and read of the recurrence, 2 K V each a token and head."""
    batch, length, heads, key_dim = q_shape
    return 4 * batch * length * heads * key_dim * v_shape[-1]


@register_flop_formula([_OURS.linear_attention_backward, _OURS.hgrn2_attention_backward])
def _backward_flops(*shapes: Any, **_: Any) -> int:
    """Two products for each one forward."""
    return 2 * _flops(*shapes)


@register_flop_formula(_OURS.cosine_attention)
def _cosine_flops(*shapes: Any, **_: Any) -> int:
    """The recurrence with 2 K key channels; the rotation is elementwise and not counted."""
    return 2 * _flops(*shapes)


@register_flop_formula(_OURS.cosine_attention_backward)
def _cosine_backward_flops(*shapes: Any, **_: Any) -> int:
    """Two products for each one forward."""
    return 2 * _cosine_flops(*shapes)

"""Operators: the kernels behind `torch.library`, so that `torch.compile` and autograd see them.

One rule chooses the kernel: tensors on the CPU go to `models.kernels.chunked`, tensors on a CUDA
device to `models.kernels.triton`, anything else is an error. Nothing falls back. Both modules
have the same functions. Forward and backward are an operator each, with shapes for fake tensors;
nothing that an operator returns shares memory with its arguments.

FLOPs are counted in the recurrent form, 4 K V a token and head forward and twice that backward,
whatever algorithm runs (the `exact` convention of `models.accounting`).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from models.kernels import chunked


def kernels(device: torch.device) -> ModuleType:
    """The module with the kernels for `device`.

    Raises:
        ValueError: there are none.
    """
    if device.type == "cpu":
        return chunked
    if device.type == "cuda":
        from models.kernels import triton

        return triton
    raise ValueError(
        f"q is on {device}: linear attention runs on the CPU and on CUDA devices; move it there."
    )


@torch.library.custom_op("linscale::linear_attention", mutates_args=())
def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """o, the final state and what backward wants saved."""
    with torch.autocast(q.device.type, enabled=False):
        return kernels(q.device).forward(q, k, v, decay, initial_state, cu_seqlens)


@torch.library.custom_op("linscale::linear_attention_backward", mutates_args=())
def linear_attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    states: Tensor,
    do: Tensor,
    dfinal_state: Tensor | None,
    decay_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv, ddecay and dinitial_state; empty where there is none."""
    with torch.autocast(q.device.type, enabled=False):
        return _tensors(
            q,
            kernels(q.device).backward(
                q, k, v, decay, initial_state, cu_seqlens, states, do, dfinal_state, decay_gradient
            ),
        )


@torch.library.custom_op("linscale::hgrn2_attention", mutates_args=())
def hgrn2_attention(
    q: Tensor,
    gate_logits: Tensor,
    v: Tensor,
    lower_bound: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """o, the final state and what backward wants saved."""
    with torch.autocast(q.device.type, enabled=False):
        return kernels(q.device).hgrn2_forward(
            q, gate_logits, v, lower_bound, initial_state, cu_seqlens
        )


@torch.library.custom_op("linscale::hgrn2_attention_backward", mutates_args=())
def hgrn2_attention_backward(
    q: Tensor,
    gate_logits: Tensor,
    v: Tensor,
    lower_bound: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    states: Tensor,
    do: Tensor,
    dfinal_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dq, dgate_logits, dv, dlower_bound and dinitial_state; empty where there is none."""
    with torch.autocast(q.device.type, enabled=False):
        return _tensors(
            q,
            kernels(q.device).hgrn2_backward(
                q, gate_logits, v, lower_bound, initial_state, cu_seqlens, states, do, dfinal_state
            ),
        )


@torch.library.custom_op("linscale::cosine_attention", mutates_args=())
def cosine_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    position_offset: Tensor,
) -> tuple[Tensor, Tensor]:
    """o and the final state, rotating inside the kernel. On CUDA alone: the CPU's form is the
    composition in `api`."""
    with torch.autocast(q.device.type, enabled=False):
        return kernels(q.device).cosine_forward(
            q, k, v, theta, initial_state, cu_seqlens, position_offset
        )


@torch.library.custom_op("linscale::cosine_attention_backward", mutates_args=())
def cosine_attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    position_offset: Tensor,
    do: Tensor,
    dfinal_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv, dtheta and dinitial_state; the last empty where there is none."""
    with torch.autocast(q.device.type, enabled=False):
        return _tensors(
            q,
            kernels(q.device).cosine_backward(
                q, k, v, theta, initial_state, cu_seqlens, position_offset, do, dfinal_state
            ),
        )


@torch.library.custom_op("linscale::linear_attention_step", mutates_args=(), device_types="cuda")
def linear_attention_step(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, decay: Tensor | None
) -> tuple[Tensor, Tensor]:
    """o and the state after one token. For decoding: it has no gradient."""
    after = _new(state)
    return kernels(q.device).step(q, k, v, state, decay, after=after), after


@torch.library.custom_op("linscale::hgrn2_attention_step", mutates_args=(), device_types="cuda")
def hgrn2_attention_step(
    q: Tensor, gate_logits: Tensor, v: Tensor, lower_bound: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """`linear_attention_step` from HGRN2's gate logits."""
    after = _new(state)
    o = kernels(q.device).hgrn2_step(q, gate_logits, v, state, lower_bound, after=after)
    return o, after


def _tensors(q: Tensor, gradients: tuple[Tensor | None, ...]) -> Any:
    """An operator returns tensors, never None: an empty one stands for it."""
    return tuple(q.new_empty(0) if x is None else x for x in gradients)


def _new(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@linear_attention.register_fake
@hgrn2_attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    sequences = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    dtype = torch.promote_types(q.dtype, torch.float32)
    final_state = q.new_empty((sequences, *q.shape[2:], v.shape[3]), dtype=dtype)
    if q.device.type == "cuda":
        from models.kernels import triton

        return _new(v), final_state, triton.empty_states(q, v, decay, cu_seqlens)
    states = q.new_empty(chunked.states_shape(q, v, cu_seqlens), dtype=dtype)
    return _new(v), final_state, states


@linear_attention_backward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    states: Tensor,
    do: Tensor,
    dfinal_state: Tensor | None,
    decay_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    ddecay = _new(decay) if decay is not None and decay_gradient else q.new_empty(0)
    dinitial_state = q.new_empty(0) if initial_state is None else _new(initial_state)
    return _new(q), _new(k), _new(v), ddecay, dinitial_state


@hgrn2_attention_backward.register_fake
def _(
    q: Tensor,
    gate_logits: Tensor,
    v: Tensor,
    lower_bound: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    states: Tensor,
    do: Tensor,
    dfinal_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dinitial_state = q.new_empty(0) if initial_state is None else _new(initial_state)
    return _new(q), _new(gate_logits), _new(v), _new(lower_bound), dinitial_state


@cosine_attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    position_offset: Tensor,
) -> tuple[Tensor, Tensor]:
    batch, _, heads, key_dim = q.shape
    sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shape = (sequences, heads, 2 * key_dim, v.shape[3])
    return _new(v), q.new_empty(shape, dtype=torch.float32)


@cosine_attention_backward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    position_offset: Tensor,
    do: Tensor,
    dfinal_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dinitial_state = q.new_empty(0) if initial_state is None else _new(initial_state)
    return _new(q), _new(k), _new(v), _new(theta), dinitial_state


@linear_attention_step.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, decay: Tensor | None
) -> tuple[Tensor, Tensor]:
    return _new(v), _new(state)


@hgrn2_attention_step.register_fake
def _(
    q: Tensor, gate_logits: Tensor, v: Tensor, lower_bound: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    return _new(v), _new(state)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, output[2])
    ctx.set_materialize_grads(False)


def _gradients(
    ctx: Any, do: Tensor | None, dfinal_state: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    """Gradients of the six arguments of `linear_attention`."""
    q, k, v, decay, initial_state, cu_seqlens, states = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    *gradients, ddecay, dinitial_state = linear_attention_backward(
        q,
        k,
        v,
        decay,
        initial_state,
        cu_seqlens,
        states,
        torch.zeros_like(v) if do is None else do,
        dfinal_state,
        wanted[3],
    )
    return *gradients, ddecay if wanted[3] else None, dinitial_state if wanted[4] else None, None


def _hgrn2_gradients(
    ctx: Any, do: Tensor | None, dfinal_state: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    """Gradients of the six arguments of `hgrn2_attention`."""
    *inputs, states = ctx.saved_tensors
    do = torch.zeros_like(inputs[2]) if do is None else do
    *gradients, dinitial_state = hgrn2_attention_backward(*inputs, states, do, dfinal_state)
    return *gradients, dinitial_state if ctx.needs_input_grad[4] else None, None


def _save_cosine(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs)
    ctx.set_materialize_grads(False)


def _cosine_gradients(
    ctx: Any, do: Tensor | None, dfinal_state: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients of the seven arguments of `cosine_attention`."""
    inputs = ctx.saved_tensors
    do = torch.zeros_like(inputs[2]) if do is None else do
    *gradients, dinitial_state = cosine_attention_backward(*inputs, do, dfinal_state)
    return *gradients, dinitial_state if ctx.needs_input_grad[4] else None, None, None


linear_attention.register_autograd(_gradients, setup_context=_save)
hgrn2_attention.register_autograd(_hgrn2_gradients, setup_context=_save)
cosine_attention.register_autograd(_cosine_gradients, setup_context=_save_cosine)


@register_flop_formula([torch.ops.linscale.linear_attention, torch.ops.linscale.hgrn2_attention])
def _flops(q_shape: list[int], k_shape: Any, v_shape: list[int], *_: Any, **__: Any) -> int:
    """State update and read of the recurrence, 2 K V each a token and head."""
    batch, length, heads, key_dim = q_shape
    return 4 * batch * length * heads * key_dim * v_shape[-1]


@register_flop_formula(
    [
        torch.ops.linscale.linear_attention_backward,
        torch.ops.linscale.hgrn2_attention_backward,
    ]
)
def _backward_flops(
    q_shape: list[int], k_shape: Any, v_shape: list[int], *_: Any, **__: Any
) -> int:
    """Two products for each one forward."""
    return 2 * _flops(q_shape, k_shape, v_shape)


@register_flop_formula(torch.ops.linscale.cosine_attention)
def _cosine_flops(q_shape: list[int], k_shape: Any, v_shape: list[int], *_: Any, **__: Any) -> int:
    """The recurrence with 2 K key channels; the rotation is elementwise and not counted."""
    return 2 * _flops(q_shape, k_shape, v_shape)


@register_flop_formula(torch.ops.linscale.cosine_attention_backward)
def _cosine_backward_flops(
    q_shape: list[int], k_shape: Any, v_shape: list[int], *_: Any, **__: Any
) -> int:
    """Two products for each one forward."""
    return 2 * _cosine_flops(q_shape, k_shape, v_shape)

"""Operators: the kernels behind `torch.library`, so that `torch.compile` and autograd see them.

One rule chooses the kernel: tensors on the CPU go to `models.kernels.chunked`, tensors on a CUDA
device to `models.kernels.triton`, anything else is an error. Nothing falls back. Both modules
have the same functions. Forward and backward are an operator each, with shapes for fake tensors.

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


def _kernels(q: Tensor) -> ModuleType:
    """The module that runs `q`'s device."""
    if q.device.type == "cpu":
        return chunked
    if q.device.type == "cuda":
        from models.kernels import triton

        return triton
    raise ValueError(
        f"q is on {q.device}: linear attention runs on the CPU and on CUDA devices; move it there."
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
    with torch.autocast(q.device.type, enabled=False):
        return _kernels(q).forward(q, k, v, decay, initial_state, cu_seqlens)


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
    with torch.autocast(q.device.type, enabled=False):
        dq, dk, dv, ddecay, dinitial_state = _kernels(q).backward(
            q, k, v, decay, initial_state, cu_seqlens, states, do, dfinal_state, decay_gradient
        )
    # An operator returns tensors, not None: an empty one stands for it.
    ddecay, dinitial_state = (q.new_empty(0) if x is None else x for x in (ddecay, dinitial_state))
    return dq, dk, dv, ddecay, dinitial_state


@linear_attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    sequences = None if cu_seqlens is None else cu_seqlens.shape[0] - 1
    dtype = torch.promote_types(q.dtype, torch.float32)
    final = (q.shape[0] if sequences is None else sequences, q.shape[2], q.shape[3], v.shape[3])
    return (
        torch.empty_like(v, memory_format=torch.contiguous_format),
        q.new_empty(final, dtype=dtype),
        q.new_empty(chunked.states_shape(q, v, sequences), dtype=dtype),
    )


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
    def new(x: Tensor | None) -> Tensor:
        if x is None:
            return q.new_empty(0)
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    return new(q), new(k), new(v), new(decay if decay_gradient else None), new(initial_state)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, output[2])
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, do: Tensor | None, dfinal_state: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    q, k, v, decay, initial_state, cu_seqlens, states = ctx.saved_tensors
    if do is None:
        do = torch.zeros_like(v)
    wanted = ctx.needs_input_grad
    decay_gradient = decay is not None and wanted[3]
    dq, dk, dv, ddecay, dinitial_state = linear_attention_backward(
        q, k, v, decay, initial_state, cu_seqlens, states, do, dfinal_state, decay_gradient
    )
    return (
        dq,
        dk,
        dv,
        ddecay if decay_gradient else None,
        dinitial_state if initial_state is not None and wanted[4] else None,
        None,
    )


linear_attention.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.linscale.linear_attention)
def _flops(q_shape: list[int], k_shape: Any, v_shape: list[int], *_: Any, **__: Any) -> int:
    """State update and read of the recurrence, 2 K V each a token and head."""
    batch, length, heads, key_dim = q_shape
    return 4 * batch * length * heads * key_dim * v_shape[-1]


@register_flop_formula(torch.ops.linscale.linear_attention_backward)
def _backward_flops(
    q_shape: list[int], k_shape: Any, v_shape: list[int], *_: Any, **__: Any
) -> int:
    """Two products for each one forward."""
    return 2 * _flops(q_shape, k_shape, v_shape)

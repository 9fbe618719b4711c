"""Causal softmax attention: the compiled form on the CPU, PyTorch's elsewhere.

    o_t = sum_{s <= t} softmax_s(q_t . k_s / sqrt(K)) v_s

PyTorch's `scaled_dot_product_attention` on the CPU is slow at the head dimensions of small models
(by 1.5 to 3.6 times at 8 to 32), which would make linear attention look fast. The compiled form
(`models.kernels.native`) computes scores and sums in float32 for float32 and bfloat16.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from models.kernels import native


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of each token over itself and those before it.

    Args:
        q: queries, (B, T, H, K).
        k, v: keys and values, (B, T, G, K), G a divisor of H: each serves H / G heads.

    Returns:
        o, (B, T, H, K).
    """
    device = q.device.type
    if torch.is_autocast_enabled(device):  # as PyTorch's own operator does
        dtype = torch.get_autocast_dtype(device)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    if device == "cpu" and q.dtype == k.dtype == v.dtype and native.available(q.dtype):
        return causal_softmax(q, k, v)[0]
    if k.shape[2] < q.shape[2]:
        # On the CPU repeated keys are faster than the kernel's own grouping.
        group = q.shape[2] // k.shape[2]
        k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


@torch.library.custom_op("linscale::causal_softmax", mutates_args=(), device_types="cpu")
def causal_softmax(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """o and, for backward, the logarithm of each query's sum, (B, H, T) in float32."""
    from models.kernels.native import attention

    return attention.forward(q, k, v, q.shape[-1] ** -0.5)


@torch.library.custom_op("linscale::causal_softmax_backward", mutates_args=(), device_types="cpu")
def causal_softmax_backward(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, log_sum: Tensor, do: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv."""
    from models.kernels.native import attention

    return attention.backward(q, k, v, o, log_sum, do, q.shape[-1] ** -0.5)


def _new(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@causal_softmax.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    shape = (q.shape[0], q.shape[2], q.shape[1])
    return _new(q), q.new_empty(shape, dtype=torch.float32)


@causal_softmax_backward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, log_sum: Tensor, do: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _new(q), _new(k), _new(v)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, do: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if do is None:
        return None, None, None
    q, k, v, o, log_sum = ctx.saved_tensors
    return causal_softmax_backward(q, k, v, o, log_sum, do.to(o.dtype))


causal_softmax.register_autograd(_gradients, setup_context=_save)


@register_flop_formula(torch.ops.linscale.causal_softmax)
def _flops(q: list[int], *_: Any, **__: Any) -> int:
    """Scores and read, 2 K each a query and key that it sees (the `exact` convention of
    `models.accounting`)."""
    batch, tokens, heads, channels = q
    return 2 * batch * heads * channels * tokens * (tokens + 1)


@register_flop_formula(torch.ops.linscale.causal_softmax_backward)
def _backward_flops(q: list[int], *_: Any, **__: Any) -> int:
    """Two products for each one forward."""
    return 2 * _flops(q)

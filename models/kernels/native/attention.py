"""Causal softmax attention on the CPU: calls of the compiled form."""

from __future__ import annotations

import torch
from torch import Tensor

from models.kernels.native.arguments import Arguments, structure


class _Attention(Arguments):
    layout = structure(
        ("q", "k", "v", "o", "grad_o", "dq", "dk", "dv"),
        ("log_sum",),
        ("scale",),
        ("batch", "tokens", "heads", "groups", "channels", "threads"),
    )


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """o (B, T, H, K) of q (B, T, H, K) and k, v (B, T, G, K), and l (B, H, T) for `backward`."""
    o = torch.empty_like(q, memory_format=torch.contiguous_format)
    log_sum = torch.empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32)
    problem = _problem(q, k, v, scale)
    problem.arrays(o=o)
    problem.pointers(log_sum=log_sum)
    problem.run("linscale_attention_forward")
    return o, log_sum


def backward(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, log_sum: Tensor, do: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv."""
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    problem = _problem(q, k, v, scale)
    problem.arrays(o=o, grad_o=do, dq=dq, dk=dk, dv=dv)
    problem.pointers(log_sum=log_sum)
    problem.run("linscale_attention_backward")
    return dq, dk, dv


def _problem(q: Tensor, k: Tensor, v: Tensor, scale: float) -> _Attention:
    batch, tokens, heads, channels = q.shape
    problem = _Attention(
        scale=scale, batch=batch, tokens=tokens, heads=heads, groups=k.shape[2], channels=channels
    )
    problem.arrays(q=q, k=k, v=v)
    return problem

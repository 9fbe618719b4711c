"""What a recurrence in float64 gives for random arguments, and how far a result is from that."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Inputs = dict[str, Tensor | None]
"""Arguments by name."""
Recurrence = Callable[..., tuple[Tensor, Tensor]]
"""Such as `recurrent_reference`: o and the final state."""


def cotangents(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Gradients of o and of the final state."""
    q, v, cu_seqlens = inputs["q"], inputs["v"], inputs["cu_seqlens"]
    assert q is not None
    assert v is not None
    sequences = len(q) if cu_seqlens is None else len(cu_seqlens) - 1
    g = torch.Generator().manual_seed(99)
    do = torch.randn(v.shape, generator=g, dtype=torch.float64)
    dstate = torch.randn(sequences, *q.shape[2:], v.shape[-1], generator=g, dtype=torch.float64)
    return do.to(v.dtype), dstate.to(torch.promote_types(v.dtype, torch.float32))


def exact(inputs: Inputs, recurrence: Recurrence) -> dict[str, Tensor]:
    """Outputs and gradients by autograd through a recurrence in float64."""
    leaves = {
        name: x.detach().double().clone().requires_grad_()
        if x is not None and x.is_floating_point()
        else x
        for name, x in inputs.items()
    }
    o, state = recurrence(**leaves)
    do, dstate = cotangents(inputs)
    wanted = {n: x for n, x in leaves.items() if x is not None and x.requires_grad}
    loss = (o * do).sum() + (state * dstate).sum()
    grads = torch.autograd.grad(loss, list(wanted.values()))
    named = {f"d{n}": x for n, x in zip(wanted, grads, strict=True)}
    return {"o": o.detach(), "final_state": state.detach(), **named}


def error(actual: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of the expected values."""
    difference = (actual.double() - expected).square().mean().sqrt()
    scale = expected.square().mean().sqrt()
    return float(difference / scale) if scale > 0 else float(difference)

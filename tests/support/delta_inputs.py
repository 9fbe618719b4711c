"""Random arguments of the delta rule, and its results by the float64 recurrence."""

from __future__ import annotations

from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from models.kernels.delta.reference import recurrent_delta

MODES = ("none", "head", "channel")
Inputs = dict[str, Tensor | None]


def make(
    mode: str,
    *,
    lengths: tuple[int, ...] = (),
    batch: int = 2,
    length: int = 20,
    heads: int = 2,
    key_dim: int = 4,
    value_dim: int = 6,
    strong: float = 0.0,
    share: float = 0.2,
    state: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Inputs:
    """Keys of length 1, beta in [0, 2] and sometimes 0; `lengths` packs sequences, `share` of the
    decays are `strong` nats."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    cu_seqlens = None
    if lengths:
        batch, length = 1, sum(lengths)
        cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    shapes = {"head": (batch, length, heads), "channel": (batch, length, heads, key_dim)}
    decay = None
    if mode in shapes:
        decay = -0.3 * torch.rand(shapes[mode], generator=g, dtype=torch.float64)
        if strong:
            decay = decay.masked_fill(torch.rand(shapes[mode], generator=g) < share, strong)
        decay = decay.to(dtype)
    beta = 2 * torch.rand((batch, length, heads), generator=g, dtype=torch.float64)
    beta = beta.masked_fill(torch.rand(beta.shape, generator=g) < 0.1, 0.0)
    wide = torch.promote_types(dtype, torch.float32)
    sequences = len(lengths) or batch
    return {
        "q": normal(batch, length, heads, key_dim).to(dtype),
        "k": F.normalize(normal(batch, length, heads, key_dim), dim=-1).to(dtype),
        "v": normal(batch, length, heads, value_dim).to(dtype),
        "beta": beta.to(dtype),
        "decay": decay,
        "initial_state": normal(sequences, heads, key_dim, value_dim).to(wide) if state else None,
        "cu_seqlens": cu_seqlens,
    }


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


def exact(inputs: Inputs) -> dict[str, Tensor]:
    """Outputs and gradients by autograd through the float64 recurrence."""
    leaves = {
        name: x.detach().double().clone().requires_grad_()
        if x is not None and x.is_floating_point()
        else x
        for name, x in inputs.items()
    }
    o, state = recurrent_delta(**leaves)  # pyright: ignore[reportArgumentType]
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

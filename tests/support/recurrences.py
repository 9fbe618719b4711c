"""What a recurrence in float64 gives for random arguments, and how far a result is from that."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from types import ModuleType

import torch
from torch import Tensor

from models.kernels.call import Call
from models.kernels.chunked import CHUNK
from models.kernels.delta.call import DeltaCall
from models.kernels.delta.reference import recurrent_delta
from models.kernels.reference import recurrent_reference

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
    initial = inputs["initial_state"]
    shape = (sequences, *q.shape[2:], v.shape[-1]) if initial is None else initial.shape
    g = torch.Generator().manual_seed(99)
    do = torch.randn(v.shape, generator=g, dtype=torch.float64)
    dstate = torch.randn(shape, generator=g, dtype=torch.float64)
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
    """Random arguments; `lengths` packs sequences, `share` of the decays are `strong` nats."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    cu_seqlens = None
    if lengths:
        batch, length = 1, sum(lengths)
        cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    shapes = {
        "head": (heads,),
        "head_t": (batch, length, heads),
        "channel": (batch, length, heads, key_dim),
    }
    decay = None
    if mode in shapes:
        decay = -0.3 * torch.rand(shapes[mode], generator=g, dtype=torch.float64)
        if strong:
            decay = decay.masked_fill(torch.rand(shapes[mode], generator=g) < share, strong)
        decay = decay.to(dtype)
    states_dtype = torch.promote_types(dtype, torch.float32)
    sequences = len(lengths) or batch
    return {
        "q": normal(batch, length, heads, key_dim),
        "k": normal(batch, length, heads, key_dim),
        "v": normal(batch, length, heads, value_dim),
        "decay": decay,
        "initial_state": normal(sequences, heads, key_dim, value_dim).to(states_dtype)
        if state
        else None,
        "cu_seqlens": cu_seqlens,
    }


def computed(kernel: ModuleType, inputs: Inputs, chunk: int = CHUNK) -> dict[str, Tensor]:
    """Outputs and gradients by the functions of a kernel: of the delta rule where beta is given."""
    call = (DeltaCall if "beta" in inputs else Call)(**inputs)  # pyright: ignore
    o, final_state, states = kernel.forward(call, chunk)
    grads = kernel.backward(call, states, *cotangents(inputs), chunk=chunk)
    share = ("dbeta",) if "beta" in inputs else ()
    names = ("dq", "dk", "dv", *share, "ddecay", "dinitial_state")
    named = {n: x for n, x in zip(names, grads, strict=True) if x is not None}
    return {"o": o, "final_state": final_state, **named}


def assert_matches(
    kernel: ModuleType, inputs: Inputs, tolerance: float, chunk: int = CHUNK
) -> None:
    """A kernel gives what its recurrence and that one's autograd give in float64."""
    reference = recurrent_delta if "beta" in inputs else recurrent_reference
    expected, actual = exact(inputs, reference), computed(kernel, inputs, chunk)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].shape == value.shape, name
        # One slope's gradient sums terms of both signs over all tokens: it keeps fewer digits.
        ill = name == "ddecay" and value.ndim == 1
        most = tolerance * (20 if ill else 1)
        assert error(actual[name], value) <= most, (name, error(actual[name], value))

"""Rotation inside the kernels against the float64 recurrence on rotated queries and keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models.kernels import api, launch, operators
from models.kernels.call import Call
from models.kernels.reference import recurrent_reference
from models.kernels.triton import phase_launch
from models.kernels.triton.common import interpreted

pytestmark = [
    pytest.mark.usefixtures("poison"),
    pytest.mark.skipif(not interpreted(), reason="needs TRITON_INTERPRET=1"),
]


@pytest.mark.parametrize(
    ("dtype", "tokens", "dims", "cu_seqlens", "segment", "initial", "offset"),
    [
        (torch.float32, 70, (16, 20), None, None, True, "each"),
        (torch.float32, 200, (20, 16), None, 128, True, 0),
        (torch.float32, 200, (16, 16), (0, 3, 3, 150, 200), 128, True, "each"),
        (torch.float32, 33, (16, 16), None, None, False, 0),
        (torch.bfloat16, 64, (32, 32), None, None, True, 0),
        (torch.float32, 40, (40, 16), None, None, True, "each"),
        (torch.float32, 40, (72, 16), None, None, True, 0),
    ],
    ids=["tail", "cut", "packed", "zero", "bf16", "two blocks", "four blocks"],
)
def test_matches_rotated_recurrence(
    dtype: torch.dtype,
    tokens: int,
    dims: tuple[int, int],
    cu_seqlens: tuple[int, ...] | None,
    segment: int | None,
    initial: bool,
    offset: int | str,
) -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(kind).double()

    heads, (key_dim, value_dim) = 2, dims
    cu = None if cu_seqlens is None else torch.tensor(cu_seqlens)
    sequences = 1 if cu_seqlens is None else len(cu_seqlens) - 1
    q, k = random(1, tokens, heads, key_dim), random(1, tokens, heads, key_dim)
    v = random(1, tokens, heads, value_dim)
    theta = random(heads, key_dim, kind=torch.float32)
    start = random(sequences, heads, 2 * key_dim, value_dim, kind=torch.float32)
    start = start if initial else None
    offsets = torch.arange(sequences) * 17 + 5 if offset == "each" else torch.zeros(sequences)
    position = torch.arange(tokens)
    if cu_seqlens is not None:
        lengths = torch.tensor(cu_seqlens).diff()
        position = torch.cat([torch.arange(int(n)) for n in lengths])
        position = position + torch.repeat_interleave(offsets, lengths)
    else:
        position = position + offsets
    leaves = [x.requires_grad_() for x in (q, k, v, theta, start) if x is not None]
    angle = position.double()[:, None, None] * theta
    rotated = [torch.cat([x * angle.cos(), x * angle.sin()], -1) for x in (q, k)]
    o, final = recurrent_reference(rotated[0], rotated[1], v, None, start, cu)
    do, dfinal = random(*o.shape), random(*final.shape, kind=torch.float32)
    expected = [o, final, *torch.autograd.grad([o, final], leaves, [do, dfinal])]

    inputs: list[Any] = [x.detach().to(dtype) for x in (q, k, v)] + [theta.detach().float()]
    inputs += [None if start is None else start.detach().float(), cu]
    inputs += [offsets.long() if offset == "each" else torch.zeros(1, dtype=torch.long)]
    call = Call(*inputs)
    results: tuple[Any, ...] = phase_launch.forward(call, segment=segment)[:2]
    results += phase_launch.backward(call, None, do.to(dtype), dfinal.float(), segment=segment)
    found = [x for x in results if x is not None]
    errors = [
        ((x.double() - y).norm() / y.norm()).item() for x, y in zip(found, expected, strict=True)
    ]
    assert max(errors) < (1e-5 if dtype == torch.float32 else 2e-2), errors


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
def test_operator_and_its_gradients(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `cosine_attention` calls on CUDA, on the interpreter, against its CPU composition."""
    generator = torch.Generator().manual_seed(1)
    batch, tokens, sequences = (1, 30, 3) if packed else (2, 30, 2)
    q, k, v = torch.randn(3, batch, tokens, 2, 8, generator=generator).unbind()
    theta = torch.rand(2, 8, generator=generator)
    state = torch.randn(sequences, 2, 16, 8, generator=generator)
    cu = torch.tensor([0, 11, 11, 30], dtype=torch.int32) if packed else None
    offset = torch.arange(sequences) * 9 + 4
    leaves = [x.requires_grad_() for x in (q, k, v, theta, state)]
    expected = api.cosine_attention(*leaves, cu_seqlens=cu, position_offset=offset)
    weights = [torch.randn(x.shape, generator=generator) for x in expected]
    expected += torch.autograd.grad(expected, leaves, weights)
    monkeypatch.setattr(launch, "backend", lambda device: "cuda")
    found = operators.cosine_attention(*leaves, cu, offset)[:2]
    # One output alone must do as well: the other's gradient is then absent.
    alone = torch.autograd.grad(found[0], leaves, weights[0], retain_graph=True)
    assert all(torch.isfinite(x).all() for x in alone)
    found += torch.autograd.grad(found, leaves, weights)
    for x, y in zip(found, expected, strict=True):
        assert ((x - y).norm() / y.norm()).item() < 1e-5
    torch.library.opcheck(
        operators.cosine_attention,
        (*leaves, cu, offset),
        test_utils=["test_schema", "test_faketensor"],
    )

"""HGRN2's fused gate in the interpreter against the float64 recurrence of composed gates.

The reference computes f, k and log f as separate float64 tensors; the kernels see only logits and
lower bounds. Tolerances as in test_triton_vector.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.kernels import launch
from models.kernels.call import Call
from models.kernels.reference import recurrent_reference
from models.kernels.triton.common import interpreted
from models.kernels.triton.vector_launch import backward, forward

pytestmark = [
    pytest.mark.usefixtures("poison"),
    pytest.mark.skipif(not interpreted(), reason="needs TRITON_INTERPRET=1"),
]

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}
NAMES = ("o", "final", "dq", "dx", "dv", "dbound", "dinitial")


def error(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def errors(
    dtype: torch.dtype,
    tokens: int,
    dims: tuple[int, int] = (16, 16),
    spread: float = 1.0,
    bound: Tensor | None = None,
    bounds: tuple[int, ...] | None = None,
) -> dict[str, float]:
    """RMS ratios of outputs and all gradients for logits of standard deviation `spread`."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    heads, (kd, vd) = 2, dims
    sequences = 2 if bounds is None else len(bounds) - 1
    batch = 2 if bounds is None else 1
    cu_seqlens = None if bounds is None else torch.tensor(bounds, dtype=torch.int32)
    q, x = random(batch, tokens, heads, kd), random(batch, tokens, heads, kd)
    x = (spread * x.float()).to(dtype)
    v, do = random(batch, tokens, heads, vd), random(batch, tokens, heads, vd)
    if bound is None:
        bound = 0.05 + 0.9 * torch.rand(heads, kd, generator=generator)
    initial = random(sequences, heads, kd, vd, dtype=torch.float32)
    dfinal = random(sequences, heads, kd, vd, dtype=torch.float32)

    leaves = [y.double().requires_grad_() for y in (q, x, v, bound, initial)]
    q64, x64, v64, bound64, initial64 = leaves
    k64 = (1 - bound64) * torch.sigmoid(-x64)
    decay64 = torch.log(bound64 + (1 - bound64) * torch.sigmoid(x64))
    o, final = recurrent_reference(q64, k64, v64, decay64, initial64, cu_seqlens)
    expected = torch.autograd.grad([o, final], leaves, [do.double(), dfinal.double()])

    call = Call(q, x, v, bound, initial, cu_seqlens)
    actual_o, actual_final, states = forward(call)
    gradients = backward(call, states, do, dfinal)
    actual = (actual_o, actual_final, *gradients)
    for name, tensor in zip(NAMES, actual, strict=True):
        assert tensor is not None
        assert torch.isfinite(tensor).all(), f"{name} has NaN or inf"
    references = (o.detach(), final.detach(), *expected)
    pairs = zip(NAMES, actual, references, strict=True)
    return {n: error(a, e) for n, a, e in pairs if a is not None}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("spread", [1.0, 8.0], ids=["mild", "saturated"])
def test_forward_and_all_gradients(spread: float, dtype: torch.dtype) -> None:
    found = errors(dtype, 70, spread=spread)
    assert max(found.values()) < TOLERANCE[dtype], found


@pytest.mark.parametrize(("tokens", "dims"), [(1, (16, 16)), (64, (40, 24)), (130, (16, 24))])
def test_lengths_and_head_dimensions(tokens: int, dims: tuple[int, int]) -> None:
    found = errors(torch.float32, tokens, dims)
    assert max(found.values()) < 1e-5, found


def test_packed_sequences() -> None:
    found = errors(torch.float32, 140, bounds=(0, 1, 1, 131, 140))
    assert max(found.values()) < 1e-5, found


def test_no_lower_bound() -> None:
    """The first layer's bound is zero: gates close down to e^-20 without noise in dx."""
    found = errors(torch.float32, 100, spread=5.0, bound=torch.zeros(2, 16))
    # The bound itself has no gradient there in the model; its float32 noise is divided by f.
    assert max(e for name, e in found.items() if name != "dbound") < 1e-5, found


def test_gates_closed_and_open_beyond_float32() -> None:
    """Logits of +-200: sigmoid is exactly 0 or 1, every gradient is finite."""
    found = errors(torch.float32, 70, spread=100.0)
    assert max(e for name, e in found.items() if name not in ("dx", "dbound")) < 1e-5, found


def test_dispatch_offers_the_fused_form() -> None:
    torch.manual_seed(0)
    q, x, v = (torch.randn(1, 40, 1, 16) for _ in range(3))
    bound = torch.rand(1, 16)
    call = Call(q, x, v, bound)
    kernels = launch.choose(call, "cuda")
    o, final, states = kernels.forward(call)
    o2, final2, _ = forward(call)
    assert torch.equal(o, o2)
    assert torch.equal(final, final2)
    results = kernels.backward(call, states, o, None, True)
    assert results[-1] is None
    shapes = [None if y is None else tuple(y.shape) for y in results[:4]]
    assert shapes == [q.shape, x.shape, v.shape, bound.shape]


def test_wrong_lower_bound_is_named() -> None:
    x = torch.zeros(1, 8, 2, 16)
    with pytest.raises(ValueError, match="lower_bound has shape"):
        forward(Call(x, x, x, torch.zeros(2, 8)))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("dims", [(64, 64), (128, 128), (80, 200)])
@pytest.mark.parametrize("spread", [1.0, 8.0])
def test_full_matrix(spread: float, dims: tuple[int, int], dtype: torch.dtype) -> None:
    found = errors(dtype, 385, dims, spread, bounds=(0, 100, 385))
    assert max(found.values()) < TOLERANCE[dtype], found

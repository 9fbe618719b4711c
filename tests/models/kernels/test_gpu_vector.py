"""Per-channel-decay kernels, HGRN2's gate and decoding on a GPU against the float64 recurrence.

RMS ratios: bfloat16 and float16 5e-3 forward and 1e-2 gradients, float32 1e-4 (three tf32 products
for one float32 product, approximate exponentials).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.kernels import launch
from models.kernels.call import Call
from models.kernels.reference import recurrent_reference
from tests.support.gpu_check import SHAPES
from tests.support.recurrences import error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def _random(*size: int, kind: torch.dtype) -> Tensor:
    return torch.randn(size, device="cuda").to(kind)


def _decay(strength: str, shape: tuple[int, ...]) -> Tensor:
    uniform = torch.rand(shape, device="cuda")
    match strength:
        case "mild":
            return -0.2 * uniform
        case "resets":
            return torch.where(uniform < 0.1, -torch.inf, -0.05 * uniform)
        case _:
            return torch.full(shape, float(strength), device="cuda")


def _packing(batch: int, tokens: int, packed: bool) -> tuple[int, int, Tensor | None, int]:
    if not packed:
        return batch, tokens, None, batch
    tokens *= batch
    cuts = [0, 1, 1, tokens // 3, tokens]
    return 1, tokens, torch.tensor(cuts, dtype=torch.int32, device="cuda"), len(cuts) - 1


def _check(
    actual: tuple[Tensor | None, ...], expected: tuple[Tensor, ...], dtype: torch.dtype
) -> None:
    """The first two are outputs, the others gradients."""
    forward, gradient = (1e-4, 1e-4) if dtype == torch.float32 else (5e-3, 1e-2)
    for i, (x, y) in enumerate(zip(actual, expected, strict=True)):
        assert x is not None
        assert torch.isfinite(x).all(), i
        assert error(x, y) < (forward if i < 2 else gradient), i


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("strength", ["mild", "resets", "-10", "-30", "-1e4"])
def test_per_channel_decay(
    strength: str, shape: tuple[int, ...], dtype: torch.dtype, packed: bool
) -> None:
    torch.manual_seed(0)
    batch, tokens, heads, kd, vd = shape
    batch, tokens, cu_seqlens, sequences = _packing(batch, tokens, packed)
    q = _random(batch, tokens, heads, kd, kind=dtype) * kd**-0.5
    k = _random(batch, tokens, heads, kd, kind=dtype)
    v, do = (_random(batch, tokens, heads, vd, kind=dtype) for _ in range(2))
    decay = _decay(strength, (batch, tokens, heads, kd))
    state, dstate = (_random(sequences, heads, kd, vd, kind=torch.float32) for _ in range(2))
    leaves = [x.double().requires_grad_() for x in (q, k, v, decay, state)]
    outputs = recurrent_reference(*leaves, cu_seqlens=cu_seqlens)
    wanted = torch.autograd.grad(outputs, leaves, [do.double(), dstate.double()])
    call = Call(q, k, v, decay, state, cu_seqlens)
    kernels = launch.kernels(call)
    o, final, states = kernels.forward(call)
    gradients = kernels.backward(call, states, do, dstate, True)
    _check((o, final, *gradients), (*outputs, *wanted), dtype)


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("spread", [1.0, 8.0])
def test_hgrn2_gate(
    spread: float, shape: tuple[int, ...], dtype: torch.dtype, packed: bool
) -> None:
    torch.manual_seed(0)
    batch, tokens, heads, kd, vd = shape
    batch, tokens, cu_seqlens, sequences = _packing(batch, tokens, packed)
    q = _random(batch, tokens, heads, kd, kind=dtype)
    x = _random(batch, tokens, heads, kd, kind=dtype) * spread
    v, do = (_random(batch, tokens, heads, vd, kind=dtype) for _ in range(2))
    bound = 0.05 + 0.9 * torch.rand(heads, kd, device="cuda")
    state, dstate = (_random(sequences, heads, kd, vd, kind=torch.float32) for _ in range(2))
    leaves = [y.double().requires_grad_() for y in (q, x, v, bound, state)]
    free = 1 - leaves[3]
    k = free * torch.sigmoid(-leaves[1])
    decay = torch.log(leaves[3] + free * torch.sigmoid(leaves[1]))
    outputs = recurrent_reference(leaves[0], k, leaves[2], decay, leaves[4], cu_seqlens)
    wanted = torch.autograd.grad(outputs, leaves, [do.double(), dstate.double()])
    call = Call(q, x, v, bound, state, cu_seqlens)
    kernels = launch.kernels(call)
    o, final, states = kernels.forward(call)
    gradients = kernels.backward(call, states, do, dstate, True)
    _check((o, final, *gradients), (*outputs, *wanted), dtype)


@pytest.mark.parametrize("mode", ["none", "head", "head_t", "vector"])
def test_decoding(mode: str) -> None:
    from models.kernels.triton.decode import step

    torch.manual_seed(0)
    batch, heads, kd, vd = 5, 4, 128, 96
    q, k = (_random(batch, 1, heads, kd, kind=torch.bfloat16) for _ in range(2))
    v = _random(batch, 1, heads, vd, kind=torch.bfloat16)
    shapes = {"head": (heads,), "head_t": (batch, 1, heads), "vector": (batch, 1, heads, kd)}
    decay = None if mode == "none" else -torch.rand(shapes[mode], device="cuda")
    cache = torch.randn(9, heads, kd, vd, device="cuda")
    slots = torch.tensor([7, 0, 3, 8, 2], device="cuda")
    inputs: list[Any] = [None if x is None else x.double() for x in (q, k, v, decay, cache[slots])]
    o, final = recurrent_reference(*inputs)
    now = decay if decay is None or decay.ndim == 1 else decay[:, 0]
    actual = step(q[:, 0], k[:, 0], v[:, 0], cache, now, slots)
    assert error(actual, o[:, 0]) < 5e-3
    assert error(cache[slots], final) < 1e-6


def test_runs_in_a_cuda_graph() -> None:
    """Nothing waits for the device, cu_seqlens' values included."""
    q, x, v, do = torch.randn(4, 1, 4096, 4, 64, device="cuda", dtype=torch.bfloat16).unbind(0)
    bound = torch.rand(4, 64, device="cuda")
    cu_seqlens = torch.tensor([0, 100, 4096], dtype=torch.int32, device="cuda")

    call = Call(q, x, v, bound, None, cu_seqlens)
    kernels = launch.kernels(call)

    def run() -> tuple[Tensor, ...]:
        o, final, states = kernels.forward(call)
        gradients = kernels.backward(call, states, do, None, True)
        return (o, final, *(y for y in gradients if y is not None))

    expected = run()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(captured, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)

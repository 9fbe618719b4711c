"""Scalar-decay kernels on a GPU against the float64 recurrence (`make gpu-check`).

RMS ratios: bfloat16 and float16 5e-3 forward and 1e-2 gradients, float32 1e-4 (three tf32 products
for one float32 product, sums in another order).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.kernels.call import Call
from models.kernels.reference import recurrent_reference
from tests.support.gpu_check import SHAPES, slope_error
from tests.support.recurrences import error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def _decay(mode: str, strength: str, shape: tuple[int, ...]) -> Tensor | None:
    if mode == "none":
        return None
    uniform = torch.rand(shape, device="cuda")
    if strength == "resets":
        return torch.where(uniform < 0.1, -20.0, -0.05 * uniform).double()
    return (-0.1 * uniform if strength == "mild" else uniform * 0 + float(strength)).double()


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("mode", "strength"),
    [
        ("none", ""), ("head", "mild"), ("head", "-10"), ("head_t", "mild"), ("head_t", "resets"),
        ("head_t", "-1e4"),
    ],
)  # fmt: skip
def test_matches_recurrence(
    mode: str, strength: str, shape: tuple[int, ...], dtype: torch.dtype, packed: bool
) -> None:
    from models.kernels.triton import scalar_launch

    batch, tokens, heads, key_dim, value_dim = shape
    torch.manual_seed(0)
    cu_seqlens = None
    if packed:
        tokens *= batch
        cuts = [0, 1, 1, tokens // 3, tokens]
        cu_seqlens, batch = torch.tensor(cuts, dtype=torch.int32, device="cuda"), 1
    sequences = batch if cu_seqlens is None else len(cu_seqlens) - 1

    def random(*size: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(size, device="cuda").to(kind).double()

    q = (random(batch, tokens, heads, key_dim) * key_dim**-0.5).to(dtype).double()
    k, v = random(batch, tokens, heads, key_dim), random(batch, tokens, heads, value_dim)
    size = (heads,) if mode == "head" else (batch, tokens, heads)
    decay = _decay(mode, strength, size)
    initial = random(sequences, heads, key_dim, value_dim, kind=torch.float32)
    leaves = [x.requires_grad_() for x in (q, k, v, decay, initial) if x is not None]
    o, final = recurrent_reference(q, k, v, decay, initial, cu_seqlens)
    do, dfinal = random(*o.shape), random(*final.shape, kind=torch.float32)
    expected = torch.autograd.grad([o, final], leaves, [do, dfinal])
    terms = o  # of the gradient of slopes, by token
    if mode == "head":
        assert decay is not None
        expanded = decay.detach().expand(batch, tokens, heads).clone().requires_grad_()
        outputs = recurrent_reference(q, k, v, expanded, initial, cu_seqlens)
        [terms] = torch.autograd.grad(outputs, [expanded], [do, dfinal])

    inputs: list[Any] = [x.detach().to(dtype) for x in (q, k, v)]
    inputs += [None if decay is None else decay.detach().float(), initial.detach().float()]
    inputs += [cu_seqlens]
    call = Call(*inputs)
    forward_limit, limit = (1e-4, 1e-4) if dtype == torch.float32 else (5e-3, 1e-2)
    for segment in (None, 128):
        actual_o, actual_final, states = scalar_launch.forward(call, segment=segment)
        gradients = scalar_launch.backward(
            call, states=states, do=do.to(dtype), dfinal_state=dfinal.float(), segment=segment
        )
        assert error(actual_o, o.detach()) < forward_limit
        assert error(actual_final, final.detach()) < forward_limit
        found = [x for x in gradients if x is not None]
        errors = [error(x, y) for x, y in zip(found, expected, strict=True)]
        if mode == "head":
            errors[3] = slope_error(found[3], terms)
        assert max(errors) < limit, errors


def test_runs_in_a_cuda_graph() -> None:
    """Nothing waits for the device, cu_seqlens' values included."""
    from models.kernels.triton import scalar_launch

    q, k, v, do = torch.randn(4, 1, 4096, 4, 64, device="cuda", dtype=torch.bfloat16).unbind(0)
    decay = -torch.rand(1, 4096, 4, device="cuda")
    cu_seqlens = torch.tensor([0, 100, 4096], dtype=torch.int32, device="cuda")

    call = Call(q, k, v, decay, None, cu_seqlens)

    def run() -> tuple[Any, ...]:
        o, final, states = scalar_launch.forward(call)
        return (o, final, *scalar_launch.backward(call, states, do, None)[:4])

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
        assert torch.equal(a, b)


def test_offsets_beyond_two_gigabytes() -> None:
    """More than 2^31 elements in q: 64-bit offsets."""
    from models.kernels.triton import scalar_launch

    batch, tokens, heads, dim = 3, 65_536, 128, 96
    if torch.cuda.mem_get_info()[0] < 30 * 2**30:
        pytest.skip("needs 30 GiB of free GPU memory")
    q = torch.randn(batch, tokens, heads, dim, device="cuda", dtype=torch.bfloat16)
    assert q.numel() > 2**31
    decay = torch.full((heads,), -0.1, device="cuda")
    o, _, _ = scalar_launch.forward(Call(q, q, q, decay))
    last = slice(batch - 1, batch)
    expected, _, _ = scalar_launch.forward(Call(q[last], q[last], q[last], decay))
    assert torch.equal(o[last], expected)

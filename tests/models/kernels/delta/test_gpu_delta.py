"""The delta rule's kernels on a GPU against the float64 recurrence (`make gpu-check`).

RMS ratios: 16 bits 1e-2 forward and 2e-2 gradients, float32 1e-4 (three tf32 products for one
float32 product, sums in another order).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models.kernels import delta_attention, delta_attention_step, launch
from models.kernels.delta.call import DeltaCall
from models.kernels.delta.reference import recurrent_delta
from tests.support.delta_inputs import MODES, make
from tests.support.gpu_check import SHAPES
from tests.support.recurrences import Inputs, cotangents, error, exact

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

SHORT = (2, 20, 2, 16, 16)
"""Walked through token by token."""


def on_gpu(inputs: Inputs) -> Inputs:
    return {name: None if x is None else x.cuda() for name, x in inputs.items()}


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [SHORT, *SHAPES[1:]], ids=str)
@pytest.mark.parametrize(
    ("mode", "strong"),
    [("none", 0.0), ("head", 0.0), ("head", -20.0), ("channel", 0.0), ("channel", -1e4)],
)
def test_matches_recurrence(
    mode: str, strong: float, shape: tuple[int, ...], dtype: torch.dtype, packed: bool
) -> None:
    batch, tokens, heads, key_dim, value_dim = shape
    lengths = (1, 0, tokens // 3, batch * tokens - tokens // 3 - 1) if packed else ()
    inputs = make(
        mode, lengths=lengths, batch=batch, length=tokens, heads=heads, key_dim=key_dim,
        value_dim=value_dim, strong=strong, dtype=dtype,
    )  # fmt: skip
    expected = exact(inputs, recurrent_delta)
    call = DeltaCall(**on_gpu(inputs))  # pyright: ignore[reportArgumentType]
    do, dstate = (x.cuda() for x in cotangents(inputs))
    kernels = launch.kernels(call)
    o, final, kept = kernels.forward(call)
    gradients = kernels.backward(call, kept, do, dstate, True)
    found = [x for x in (o, final, *gradients) if x is not None]
    errors = [error(x.cpu(), y) for x, y in zip(found, expected.values(), strict=True)]
    forward, backward = (1e-4, 1e-4) if dtype == torch.float32 else (1e-2, 2e-2)
    assert max(errors[:2]) < forward, errors
    assert max(errors[2:]) < backward, errors


@pytest.mark.parametrize("mode", MODES)
def test_decoding_goes_on_from_a_prompt(mode: str) -> None:
    inputs = on_gpu(make(mode, length=140, key_dim=64, value_dim=64, dtype=torch.float32))
    q, k, v, beta, decay, start = (inputs[n] for n in list(inputs)[:6])

    def part(at: Any) -> Any:
        return (x if x is None else x[:, at] for x in (q, k, v, beta, decay))

    expected, last = delta_attention(q, k, v, beta, decay, start)  # pyright: ignore
    query, key, value, share, now = part(slice(130))
    _, state = delta_attention(query, key, value, share, now, start)
    for t in range(130, 140):
        query, key, value, share, now = part(t)
        o, state = delta_attention_step(query, key, value, share, state, now)
        torch.testing.assert_close(o, expected[:, t], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(state, last, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_compiles_without_graph_breaks(mode: str) -> None:
    inputs = on_gpu(make(mode, length=200, key_dim=64, value_dim=64, dtype=torch.float32))
    given: Any = [inputs[n] for n in list(inputs)[:6]]
    torch._dynamo.reset()
    compiled = torch.compile(delta_attention, fullgraph=True)
    for a, b in zip(compiled(*given), delta_attention(*given), strict=True):
        torch.testing.assert_close(a, b)


def test_runs_in_a_cuda_graph() -> None:
    """Nothing waits for the device, cu_seqlens' values included."""
    inputs = on_gpu(make("head", lengths=(100, 412), key_dim=64, value_dim=64, dtype=torch.float32))
    call = DeltaCall(**inputs)  # pyright: ignore[reportArgumentType]
    kernels = launch.kernels(call)

    def run() -> tuple[Any, ...]:
        o, final, kept = kernels.forward(call)
        return (o, final, *kernels.backward(call, kept, torch.ones_like(o), None, True))

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

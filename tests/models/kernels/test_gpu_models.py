"""Whole models and the models' own forms on a GPU, against float64 on the CPU (`make gpu-check`).

Without a GPU the same tests walk through the same operators with Triton's interpreter in the place
of the device, at the smallest shapes; what needs a device (compilation, CUDA graphs) is left out.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from models.activations import Mode, checkpoint_blocks
from models.config import ARCHS, Arch, ModelConfig
from models.kernels import (
    cosine_attention,
    hgrn2_attention_step,
    launch,
    linear_attention_step,
    operators,
)
from models.kernels.triton.common import interpreted
from models.language_model import LanguageModel, build

on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICES = [
    pytest.param("cuda", marks=on_gpu),
    pytest.param("cpu", marks=pytest.mark.skipif(not interpreted(), reason="has a GPU")),
]
OURS = torch.ops.linscale
TOKENS = 40
"""More than the recurrent kernel takes, so that models run the chunked ones."""


def kernels_of(device: str) -> AbstractContextManager[object]:
    """Triton kernels inside, on the CPU in the interpreter."""
    if device == "cuda":
        return nullcontext()
    return patch.object(launch, "backend", lambda device: "cuda")


def error(actual: Tensor, expected: Tensor) -> float:
    difference = (actual.double().cpu() - expected).norm()
    return (difference / expected.norm().clamp_min(1e-30)).item()


def pair(arch: Arch, device: str, dtype: torch.dtype) -> tuple[LanguageModel, LanguageModel]:
    """A small model in float64 on the CPU, and the same in `dtype` on the device."""
    torch.manual_seed(0)
    config = ModelConfig(arch=arch, vocab_size=64, dim=32, layers=2, heads=2, glu_dim=48)
    exact = build(config, dtype=torch.float64)
    model = build(config, device=torch.device(device), dtype=dtype)
    model.load_state_dict(exact.state_dict())
    return exact, model


def gradients(model: LanguageModel, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Mean loss, and its gradients by parameter."""
    loss = model.loss(tokens[:, :-1], tokens[:, 1:]).mean()
    return loss.detach(), list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("arch", ARCHS)
def test_loss_and_gradients(arch: Arch, dtype: torch.dtype, device: str) -> None:
    exact, model = pair(arch, device, dtype)
    tokens = torch.randint(64, (1, TOKENS + 1), generator=torch.Generator().manual_seed(1))
    wanted_loss, wanted = gradients(exact, tokens)
    with kernels_of(device):
        loss, found = gradients(model, tokens.to(device))
    # bfloat16 rounds every weight and activation, not only what the kernels see.
    limit = 1e-3 if dtype == torch.float32 else 0.1
    assert error(loss, wanted_loss) < limit
    assert error(
        torch.cat([x.flatten().float() for x in found]), torch.cat([x.flatten() for x in wanted])
    ) < (limit if dtype == torch.float32 else 0.2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", ["selective", "block"])
@pytest.mark.parametrize("arch", [arch for arch in ARCHS if arch != "llama"])
def test_activation_checkpointing(arch: Arch, mode: Mode, device: str) -> None:
    """Recomputing gives the same gradients; with "selective" no kernel runs a second time."""
    _, model = pair(arch, device, torch.float32)
    tokens = torch.randint(64, (1, TOKENS + 1), device=device)
    kernels = {OURS.linear_attention.default, OURS.hgrn2_attention.default,
               OURS.cosine_attention.default}  # fmt: skip

    class Counter(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.calls += func in kernels
            return func(*args, **(kwargs or {}))

    with kernels_of(device):
        with Counter() as plain:
            expected = gradients(model, tokens)[1]
        checkpoint_blocks(model.blocks, mode)
        with Counter() as recomputing:
            found = gradients(model, tokens)[1]
    again = len(model.blocks) if mode == "block" else 0
    assert recomputing.calls == plain.calls + again > again
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("arch", ARCHS)
def test_steps_continue_a_prefill(arch: Arch, device: str) -> None:
    """Prefill of a few tokens (the recurrent kernel where there is one), then token by token."""
    exact, model = pair(arch, device, torch.float32)
    tokens = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = exact(tokens)
        with kernels_of(device):
            state = model.initial_state(2, device=torch.device(device))
            logits, state = model(tokens[:, :6].to(device), state=state, return_state=True)
            assert error(logits, wanted[:, :6]) < 1e-3
            for t in range(6, 9):
                logits, state = model.step(tokens[:, t].to(device), state)
                assert error(logits, wanted[:, t]) < 1e-3


@pytest.mark.parametrize(
    ("device", "tokens", "dims"),
    [
        pytest.param("cpu", 33, (16, 16), marks=DEVICES[1].marks),
        *(
            pytest.param("cuda", tokens, dims, marks=on_gpu)
            for tokens in (63, 600)
            for dims in ((16, 16), (60, 36), (64, 64), (128, 128), (256, 64))
        ),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_cosine_form(
    dtype: torch.dtype, packed: bool, device: str, tokens: int, dims: tuple[int, int]
) -> None:
    torch.manual_seed(3)
    sequences, (kd, vd) = 3 if packed else 1, dims
    shapes = ((1, tokens, 2, kd), (1, tokens, 2, kd), (1, tokens, 2, vd), (2, kd),
              (sequences, 2, 2 * kd, vd))  # fmt: skip
    leaves = [torch.randn(shape).to(dtype).double().requires_grad_() for shape in shapes]
    bounds = torch.tensor([0, 7, 7, tokens], dtype=torch.int32) if packed else None
    expected = cosine_attention(*leaves, cu_seqlens=bounds, position_offset=5)
    weights = [torch.randn(x.shape).to(dtype).double() for x in expected]
    wanted = (*expected, *torch.autograd.grad(expected, leaves, weights))
    given = [x.detach().to(device, dtype if i < 3 else torch.float32) for i, x in enumerate(leaves)]
    given = [x.requires_grad_() for x in given]
    at = torch.full((1,), 5, device=device)
    with kernels_of(device):
        found = operators.cosine_attention(
            given[0], given[1], given[2], given[3], given[4],
            None if bounds is None else bounds.to(device), at,
        )[:2]  # fmt: skip
        do = [w.to(device, x.dtype) for w, x in zip(weights, found, strict=True)]
        found += torch.autograd.grad(found, given, do)
    limits = {torch.float32: (1e-4, 1e-4)}.get(
        dtype, (5e-3, 1e-2) if device == "cuda" else (2e-2,) * 2
    )
    for i, (x, y) in enumerate(zip(found, wanted, strict=True)):
        assert error(x, y.detach()) < limits[i > 1], i


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.filterwarnings("default")  # the compiler's own, such as advice to use TF32
@pytest.mark.parametrize("arch", ARCHS)
def test_compiles_without_graph_breaks(arch: Arch) -> None:
    _, model = pair(arch, "cuda", torch.float32)
    tokens = torch.randint(64, (1, TOKENS + 1), device="cuda")
    torch._dynamo.reset()
    compiled = torch.compile(model.loss, fullgraph=True)
    expected = gradients(model, tokens)[1]
    loss = compiled(tokens[:, :-1], tokens[:, 1:]).mean()
    for x, y in zip(torch.autograd.grad(loss, list(model.parameters())), expected, strict=True):
        assert error(x, y.double().cpu()) < 1e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_decoding_runs_in_a_cuda_graph() -> None:
    q, k, v = torch.randn(3, 4, 2, 64, device="cuda", dtype=torch.bfloat16)
    state = torch.randn(4, 2, 64, 64, device="cuda")
    decay, bound = -torch.rand(2, device="cuda"), torch.rand(2, 64, device="cuda")

    def run() -> tuple[Tensor, ...]:
        o, after = linear_attention_step(q, k, v, state, decay)
        return o, *hgrn2_attention_step(q, k, v, bound, after)

    expected = run()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        captured = run()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))

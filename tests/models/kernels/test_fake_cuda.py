"""What `torch.compile` is told about the Triton operators is what they return.

Fake tensors on a CUDA device need no GPU: shapes, dtypes and strides of every operator's fake
results are compared with those of the kernels, run in the interpreter; whole models run on fake
tensors through the same dispatch as on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map

from models.config import ARCHS, Arch, ModelConfig
from models.kernels import operators, triton
from models.kernels.triton.common import interpreted
from models.language_model import build

pytestmark = pytest.mark.skipif(not interpreted(), reason="needs TRITON_INTERPRET=1")

HEADS, KEYS, VALUES = 1, 16, 12


def results(function: Callable[..., Any], arguments: Any, device: str | None = None) -> list[Any]:
    """Shape, dtype and stride of every result; with a device from fake arguments there."""
    if device is not None:
        with FakeTensorMode():
            fake = [
                torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)
                if isinstance(x, Tensor)
                else x
                for x in arguments
            ]
            found = function(*fake)
    else:
        found = function(*arguments)
    return [(x.shape, x.dtype, x.stride()) for x in found]


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize(
    ("mode", "learned"),
    [
        ("none", False), ("head", True), ("head", False), ("head_t", True), ("vector", True),
        ("vector", False), ("gate", True), ("cosine", True),
    ],
)  # fmt: skip
def test_fake_results(
    mode: str, learned: bool, short: bool, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences = 3 if packed else 1
    # Long: per channel more than one chunk, otherwise so many that sequences are cut.
    tokens = 20 if short else 130 if mode in ("vector", "gate") else 513
    # Not contiguous: heads before tokens.
    q, k = torch.zeros(2, 1, HEADS, tokens, KEYS, dtype=torch.bfloat16).transpose(2, 3)
    v, do = torch.zeros(2, 1, HEADS, tokens, VALUES, dtype=torch.bfloat16).transpose(2, 3)
    rows = 2 * KEYS if mode == "cosine" else KEYS
    state, dstate = torch.zeros(2, sequences, HEADS, rows, VALUES)
    cu_seqlens = torch.tensor([0, 7, 7, tokens], dtype=torch.int32) if packed else None
    vector = torch.full((HEADS, KEYS), 0.5)
    shapes = {"head": (HEADS,), "head_t": (1, tokens, HEADS), "vector": tuple(q.shape)}
    decay = torch.zeros(shapes[mode]) if mode in shapes else None
    middle = (decay, state, cu_seqlens)
    forward, backward, end = (
        operators.linear_attention, operators.linear_attention_backward, (do, dstate, learned),
    )  # fmt: skip
    if mode == "gate":
        forward, backward = operators.hgrn2_attention, operators.hgrn2_attention_backward
        middle, end = (vector, state, cu_seqlens), (do, dstate)
    elif mode == "cosine":
        forward, backward = operators.cosine_attention, operators.cosine_attention_backward
        middle = (vector, state, cu_seqlens, torch.zeros(1, dtype=torch.int64))
        end = (do, dstate)
    start = (q, k, v, *middle)
    monkeypatch.setattr(operators, "kernels", lambda device: triton)
    kept = forward(*start)[2:]
    assert results(forward, start, "cuda") == results(forward, start)
    arguments = (*start, *kept, *end)
    assert results(backward, arguments, "cuda") == results(backward, arguments)


@pytest.mark.skipif(
    torch.__version__ < "2.13", reason="PyTorch 2.11 cannot move modules of fake tensors"
)
@pytest.mark.parametrize("arch", ARCHS)
def test_models_run_on_fake_tensors(arch: Arch) -> None:
    """Loss, gradients, prefill and a step, dispatched as on a GPU."""
    config = ModelConfig(arch=arch, vocab_size=64, dim=32, layers=2, heads=2, glu_dim=48)
    with FakeTensorMode(), torch.device("cuda"):
        model = build(config, device=torch.device("cuda"), dtype=torch.bfloat16)
        tokens = torch.zeros(2, 65, dtype=torch.int64)
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.mean().backward()
        assert (loss.device.type, loss.shape) == ("cuda", (2, 64))
        for parameter in model.parameters():
            assert parameter.grad is not None
            assert parameter.grad.shape == parameter.shape
        with torch.no_grad():
            _, state = model(tokens, state=model.initial_state(2), return_state=True)
            after = model.step(tokens[:, 0], state)[1]
            same = tree_map(lambda x, y: x.dtype == y.dtype and x.device == y.device, state, after)
            assert all(tree_leaves(same))

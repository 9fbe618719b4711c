"""What `torch.compile` is told about the Triton operators is what they return.

Fake tensors on a CUDA device need no GPU: shapes, dtypes and strides of every operator's fake
results are compared with those of the kernels, run in the interpreter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from models.kernels import launch, operators
from models.kernels.triton.common import interpreted

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
        middle = (vector, state, cu_seqlens)
    elif mode == "cosine":
        forward, backward = operators.cosine_attention, operators.cosine_attention_backward
        middle = (vector, state, cu_seqlens)
    offset = torch.zeros(1, dtype=torch.int64) if mode == "cosine" else None
    start = (q, k, v, *middle, offset)
    monkeypatch.setattr(launch, "backend", lambda device: "cuda")
    kept = forward(*start)[2:]
    assert results(forward, start, "cuda") == results(forward, start)
    arguments = (*start, *kept, *end)
    assert results(backward, arguments, "cuda") == results(backward, arguments)

"""What `torch.compile` is told about the Triton operators is what they return.

Fake tensors on a CUDA device need no GPU: shapes, dtypes and strides of every operator's fake
results are compared with those of the kernels, run in the interpreter.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.runtime.interpreter import InterpretedFunction

from models.kernels import launch, operators
from models.kernels.delta import operators as delta
from models.kernels.tools import report
from models.kernels.triton import common
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


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("mode", ["delta", "delta_head", "delta_channel"])
def test_fake_results_of_the_delta_rule(
    mode: str, short: bool, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences, tokens, kind = 3 if packed else 1, 20 if short else 130, torch.bfloat16
    q, k = torch.zeros(2, 1, HEADS, tokens, KEYS, dtype=kind).transpose(2, 3)
    v, do = torch.zeros(2, 1, HEADS, tokens, VALUES, dtype=kind).transpose(2, 3)
    beta = torch.zeros(1, HEADS, tokens, dtype=kind).transpose(1, 2)
    state, dstate = torch.zeros(2, sequences, HEADS, KEYS, VALUES)
    cu_seqlens = torch.tensor([0, 7, 7, tokens], dtype=torch.int32) if packed else None
    shapes = {"delta_head": beta.shape, "delta_channel": q.shape}
    decay = torch.zeros(shapes[mode]) if mode in shapes else None
    start = (q, k, v, beta, decay, state, cu_seqlens)
    monkeypatch.setattr(launch, "backend", lambda device: "cuda")
    forward, backward = delta.delta_attention, delta.delta_attention_backward
    kept = forward(*start)[2:]
    assert results(forward, start, "cuda") == results(forward, start)
    for learned in (True, False):
        arguments = (*start, *kept, do, dstate, learned)
        assert results(backward, arguments, "cuda") == results(backward, arguments)


def test_tensors_without_memory_where_a_gpu_is_present(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compile report records launches on them: no query is made of the device "meta"."""

    def current(device: torch.device | None) -> None:
        assert device is None or device.type == "cuda", device

    def capability(device: torch.device | None) -> tuple[int, int]:
        current(device)
        return 10, 0

    def properties(device: torch.device | None) -> SimpleNamespace:
        current(device)
        return SimpleNamespace(multi_processor_count=148)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(InterpretedFunction, "run", lambda self, *_, **__: None)
    caches = (common._architecture, common.multiprocessors)
    for cached in caches:
        cached.cache_clear()
    try:
        assert common.architecture(torch.device("meta")) == "sm_100"
        assert common.multiprocessors(torch.device("meta")) == 148
        for operation in report.ours(64, torch.bfloat16):
            operation.backward(operation.forward())
    finally:
        for cached in caches:
            cached.cache_clear()

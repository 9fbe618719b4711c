"""What every operation does beside its kernels, seen on tensors without memory: launches counted,
no input copied, nothing read back from the device, states at most every 128 tokens.

A CUDA graph can therefore hold them: reading a value of a tensor without memory is an error, and
the tensor operations around the launches are listed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from models.kernels import launch
from models.kernels.call import Call
from models.kernels.delta.call import DeltaCall
from models.kernels.triton import decode
from models.kernels.triton.common import interpreted

pytestmark = pytest.mark.skipif(not interpreted(), reason="needs TRITON_INTERPRET=1")

HEADS, KEYS, VALUES = 2, 48, 32
HARMLESS = {
    "empty", "new_empty", "empty_like",  # room for results
    "full",  # a position, made on the device
    "sum",  # of the tiles' parts of the gradient of a slope, bound or angle
    "expand", "select", "slice", "transpose", "unsqueeze", "view", "detach", "alias", "permute",
}  # fmt: skip


class Operations(TorchDispatchMode):
    """Names of the tensor operations within, and the shapes of what they allocate."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.allocated: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.names.add(func.overloadpacket.__name__)
        if "empty" in func.overloadpacket.__name__:
            self.allocated.append(tuple(found.shape))
        return found


def strided(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Without memory; dimensions in reverse order, the last with a step of two."""
    last, *rest = shape[::-1]
    return torch.empty(2 * last, *rest, dtype=dtype, device="meta")[::2].permute(
        *range(len(shape))[::-1]
    )


def run(mode: str, learned: bool, tokens: int, packed: bool, launched: list[str]) -> list[int]:
    """Launches forward and backward, with both states."""
    sequences = 3 if packed else 1
    q, k = (strided(1, tokens, HEADS, KEYS) for _ in range(2))
    v, do = (strided(1, tokens, HEADS, VALUES) for _ in range(2))
    rows = 2 * KEYS if mode == "phase" else KEYS
    state, dstate = (strided(sequences, HEADS, rows, VALUES, dtype=torch.float32) for _ in range(2))
    cu = torch.empty(sequences + 1, dtype=torch.int32, device="meta") if packed else None
    vector = strided(HEADS, KEYS, dtype=torch.float32)
    shapes = {"head": (HEADS,), "head_t": (1, tokens, HEADS), "vector": tuple(q.shape)}
    decay = strided(*shapes[mode], dtype=torch.float32) if mode in shapes else None
    offset = torch.empty(1, dtype=torch.int64, device="meta") if mode == "phase" else None
    call = Call(q, k, v, vector if mode in ("gate", "phase") else decay, state, cu, offset)
    assert call.mode == mode
    kernels = launch.choose(call, "cuda")
    with Operations() as operations:
        kept = kernels.forward(call)[2]
        forward = len(launched)
        kernels.backward(call, kept, do, dstate, learned)
    assert operations.names <= HARMLESS, operations.names - HARMLESS
    states = [shape[0] for shape in operations.allocated if shape[1:] == (HEADS, rows, VALUES)]
    assert states
    assert max(states) <= -(-tokens // 128) + sequences
    return [forward, len(launched) - forward]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels launched, none of which runs."""
    from triton.runtime.interpreter import InterpretedFunction

    names: list[str] = []

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:
        names.append(self.fn.__name__)

    monkeypatch.setattr(InterpretedFunction, "run", launch)
    return names


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize(
    ("mode", "learned", "short", "whole", "cut"),
    [
        # launches forward and backward at 20, 200 and 4096 tokens
        ("none", False, [1, 1], [1, 1], [2, 2]),
        ("head", False, [1, 1], [1, 1], [2, 2]),
        ("head", True, [1, 2], [1, 2], [2, 3]),
        ("head_t", True, [1, 4], [1, 4], [2, 4]),
        ("vector", True, [1, 4], [2, 3], [2, 3]),
        ("gate", True, [1, 4], [2, 3], [2, 3]),
        ("phase", True, [1, 2], [1, 2], [2, 4]),
    ],
)
def test_launches(
    mode: str,
    learned: bool,
    short: list[int],
    whole: list[int],
    cut: list[int],
    packed: bool,
    launched: list[str],
) -> None:
    for tokens, expected in ((20, short), (200, whole), (4096, cut)):
        launched.clear()
        assert run(mode, learned, tokens, packed, launched) == expected, (tokens, launched)


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("mode", ["delta", "delta_head", "delta_channel"])
def test_launches_of_the_delta_rule(mode: str, packed: bool, launched: list[str]) -> None:
    """Forward and backward at 20 and 4096 tokens; a state is kept every 128 tokens."""
    for tokens, expected in ((20, [1, 5]), (4096, [2, 4])):
        launched.clear()
        sequences = 3 if packed else 1
        q, k = (strided(1, tokens, HEADS, KEYS) for _ in range(2))
        v, do = (strided(1, tokens, HEADS, VALUES) for _ in range(2))
        state, dstate = (
            strided(sequences, HEADS, KEYS, VALUES, dtype=torch.float32) for _ in range(2)
        )
        cu = torch.empty(sequences + 1, dtype=torch.int32, device="meta") if packed else None
        shapes = {"delta_head": q.shape[:3], "delta_channel": q.shape}
        decay = strided(*shapes[mode], dtype=torch.float32) if mode in shapes else None
        beta = strided(1, tokens, HEADS, dtype=torch.float32)
        call = DeltaCall(q, k, v, beta, decay, state, cu)
        assert call.mode == mode
        kernels = launch.choose(call, "cuda")
        with Operations() as operations:
            kept = kernels.forward(call)[2]
            forward = len(launched)
            kernels.backward(call, kept, do, dstate, True)
        assert [forward, len(launched) - forward] == expected, launched
        assert operations.names <= HARMLESS, operations.names - HARMLESS
        assert kept.numel() == 0 or kept.shape[0] <= -(-tokens // 128) + sequences


@pytest.mark.parametrize("gated", [False, True])
def test_a_step_of_decoding_is_one_launch(gated: bool, launched: list[str]) -> None:
    q, k = (strided(4, HEADS, KEYS) for _ in range(2))
    v = strided(4, HEADS, VALUES)
    state = strided(9, HEADS, KEYS, VALUES, dtype=torch.float32)
    slots = torch.empty(4, dtype=torch.int32, device="meta")
    with Operations() as operations:
        if gated:
            decode.hgrn2_step(q, k, v, state, strided(HEADS, KEYS), slots)
        else:
            decode.step(q, k, v, state, strided(4, HEADS, KEYS), slots)
    assert launched == ["recurrent"]
    assert operations.names <= HARMLESS, operations.names - HARMLESS

"""The recurrent Triton kernel in the interpreter: decoding steps and short prefill.

Everything is computed in float32 with one rounding at the output, so float32 results agree with
the float64 recurrence to 1e-5 (RMS ratio) and bfloat16 ones to a rounding,
8e-3 at most. Both sides see the same rounded inputs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from models.kernels import launch, operators
from models.kernels.api import hgrn2_attention_step, hgrn2_gate, linear_attention_step
from models.kernels.call import Call
from models.kernels.launch import PREFILL
from models.kernels.reference import recurrent_reference
from models.kernels.triton.common import interpreted
from models.kernels.triton.decode import forward, hgrn2_step, step

pytestmark = [
    pytest.mark.usefixtures("poison"),
    pytest.mark.skipif(not interpreted(), reason="needs TRITON_INTERPRET=1"),
]

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}
MODES = ("none", "head", "head_t", "vector")


def error(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def inputs(
    mode: str, batch: int, tokens: int, heads: int, key_dim: int, value_dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(7)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    q, k = random(batch, tokens, heads, key_dim), random(batch, tokens, heads, key_dim)
    shape = {
        "none": None,
        "head": (heads,),
        "head_t": (batch, tokens, heads),
        "vector": (batch, tokens, heads, key_dim),
    }[mode]
    decay = None
    if shape is not None:
        uniform = torch.rand(shape, generator=generator)
        decay = torch.where(uniform < 0.1, -torch.inf, -uniform)
    return q, k, random(batch, tokens, heads, value_dim), decay


def reference(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, *rest: Tensor | None
) -> tuple[Tensor, Tensor]:
    state, *cu_seqlens = rest
    given: list[Any] = [x if x is None else x.double() for x in (q, k, v, decay, state)]
    return recurrent_reference(*given, *cu_seqlens)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("mode", MODES)
def test_short_prefill_matches_the_recurrence(mode: str, dtype: torch.dtype) -> None:
    q, k, v, decay = inputs(mode, 2, 9, 2, 24, 40, dtype)
    start = torch.randn(2, 2, 24, 40)
    o, final = forward(Call(q, k, v, decay, start))[:2]
    expected, expected_final = reference(q, k, v, decay, start)
    assert o.dtype == dtype
    assert error(o, expected) < TOLERANCE[dtype]
    assert error(final, expected_final) < 1e-5


def test_prefill_of_packed_sequences_with_strides() -> None:
    q, k, v, decay = inputs("vector", 1, 12, 2, 16, 16, torch.float32)
    q = q.transpose(1, 2).contiguous().transpose(1, 2)  # heads outside tokens
    v = torch.stack([v, v], -1)[..., 0]  # value channels two elements apart
    cu_seqlens = torch.tensor([0, 3, 3, 12], dtype=torch.int32)
    start = torch.randn(3, 2, 16, 16).transpose(2, 3)
    o, final = forward(Call(q, k, v, decay, start, cu_seqlens))[:2]
    expected, expected_final = reference(q, k, v, decay, start, cu_seqlens)
    assert error(o, expected) < 1e-5
    assert error(final, expected_final) < 1e-5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("key_dim", [16, 100])
def test_steps_update_the_state_in_place(mode: str, key_dim: int) -> None:
    q, k, v, decay = inputs(mode, 2, 3, 2, key_dim, 20, torch.float32)
    state = torch.randn(2, 2, key_dim, 20)
    expected, expected_final = reference(q, k, v, decay, state)
    for t in range(3):
        now = decay if decay is None or decay.ndim == 1 else decay[:, t]
        o = step(q[:, t], k[:, t], v[:, t], state, now)
        assert error(o, expected[:, t]) < 1e-5
    assert error(state, expected_final) < 1e-5


@pytest.mark.parametrize("gated", [False, True], ids=["vector", "gate"])
@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
def test_short_sequences_take_one_launch_and_have_gradients(gated: bool, packed: bool) -> None:
    """What the operators call for a short prompt: o, states and all gradients."""
    tokens, kd, vd = PREFILL, 16, 24
    q, k, v, decay = inputs("vector", 1 if packed else 2, tokens, 2, kd, vd, torch.float32)
    cu_seqlens = torch.tensor([0, 5, 5, tokens], dtype=torch.int32) if packed else None
    start = torch.randn(3 if packed else 2, 2, kd, vd)
    bound = 0.9 * torch.rand(2, kd)
    do, dfinal = torch.randn_like(v), torch.randn_like(start)
    if gated:
        given = (q, k, v, bound, start)
        leaves = [x.double().requires_grad_() for x in given]
        key, log_factor = hgrn2_gate(leaves[1], leaves[3])
        outputs = recurrent_reference(leaves[0], key, leaves[2], log_factor, leaves[4], cu_seqlens)
    else:
        assert decay is not None
        given = (q, k, v, decay.clamp(min=-20.0), start)
        leaves = [x.double().requires_grad_() for x in given]
        outputs = recurrent_reference(*leaves, cu_seqlens=cu_seqlens)
    expected = torch.autograd.grad(outputs, leaves, [do.double(), dfinal.double()])
    call = Call(*given, cu_seqlens)
    kernels = launch.choose(call, "cuda")
    o, final, states = kernels.forward(call)
    assert states.shape == kernels.empty_states(call).shape == (0,)
    gradients = kernels.backward(call, states, do, dfinal, True)
    for actual, wanted in zip((o, final, *gradients), (*outputs, *expected), strict=True):
        assert actual is not None
        assert error(actual, wanted) < 1e-5


@pytest.mark.parametrize("gated", [False, True], ids=["vector", "gate"])
def test_operators_step_leaves_the_state_as_it_was(
    gated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What models call on CUDA, on the interpreter, against the CPU's form; fake shapes too."""
    q, k, v, decay = inputs("vector", 2, 1, 2, 16, 24, torch.float32)
    state = torch.randn(2, 2, 24, 16).transpose(2, 3)
    before = state.clone()
    bound = torch.rand(2, 16)
    assert decay is not None
    if gated:
        given = (q[:, 0], k[:, 0], v[:, 0], bound, state)
        operator, expected = operators.hgrn2_attention_step, hgrn2_attention_step(*given)
    else:
        given = (q[:, 0], k[:, 0], v[:, 0], state, decay[:, 0])
        operator, expected = operators.linear_attention_step, linear_attention_step(*given)
    for actual, wanted in zip(operator._init_fn(*given), expected, strict=True):
        assert error(actual, wanted.double()) < 1e-5
    assert torch.equal(state, before)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = operator(*(torch.empty(x.shape, device="cuda") for x in given))
    assert [x.shape for x in fake] == [x.shape for x in expected]


def test_cache_indices_touch_only_their_slots() -> None:
    q, k, v, decay = inputs("vector", 2, 1, 2, 16, 16, torch.bfloat16)
    cache = torch.randn(5, 2, 16, 16)
    before = cache.clone()
    slots = torch.tensor([3, 1])
    assert decay is not None
    o = step(q[:, 0], k[:, 0], v[:, 0], cache, decay[:, 0], slots)
    expected, final = reference(q, k, v, decay, before[slots])
    assert error(o, expected[:, 0]) < TOLERANCE[torch.bfloat16]
    assert error(cache[slots], final) < 1e-5
    untouched = [0, 2, 4]
    assert torch.equal(cache[untouched], before[untouched])


def test_gated_step() -> None:
    q, logits, v, _ = inputs("none", 2, 1, 3, 16, 16, torch.float32)
    logits = logits * torch.tensor([1.0, 30.0])[:, None, None, None]  # and closed and open gates
    bound = torch.rand(3, 16) * torch.tensor([0.0, 1.0, 0.9])[:, None]
    k, decay = hgrn2_gate(logits.double(), bound.double())
    state = torch.randn(2, 3, 16, 16)
    expected, final = reference(q, k, v, decay, state)
    o = hgrn2_step(q[:, 0], logits[:, 0], v[:, 0], state, bound)
    assert error(o, expected[:, 0]) < 1e-5
    assert error(state, final) < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": torch.zeros(2, 2, 16, 16, dtype=torch.bfloat16)}, "float32 of shape"),
        ({"state": torch.zeros(3, 2, 16, 16)}, "cache_indices"),
        ({"decay": torch.zeros(3)}, "decay has shape"),
        ({"cache_indices": torch.zeros(2)}, "integer slot"),
        ({"k": torch.zeros(2, 2, 8)}, "one step takes"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Tensor], message: str) -> None:
    right = {
        "q": torch.zeros(2, 2, 16),
        "k": torch.zeros(2, 2, 16),
        "v": torch.zeros(2, 2, 16),
        "state": torch.zeros(2, 2, 16, 16),
    }
    with pytest.raises(ValueError, match=message):
        step(**(right | change))

"""The recurrence against its closed form, written with no recurrence at all."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.kernels.reference import recurrent_reference


def closed_form(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, initial_state: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums over all pairs of tokens, decay (B, T, H, K), one explicit product per pair."""
    length = q.shape[1]
    o = torch.zeros_like(v)
    f = decay.exp()
    for t in range(length):
        for s in range(t + 1):
            weight = f[:, s + 1 : t + 1].prod(1)  # (B, H, K), empty product: 1
            score = (q[:, t] * weight * k[:, s]).sum(-1)
            o[:, t] += score[..., None] * v[:, s]
        carried = (q[:, t] * f[:, : t + 1].prod(1)).unsqueeze(-1) * initial_state
        o[:, t] += carried.sum(-2)
    state = f.prod(1)[..., None] * initial_state
    for s in range(length):
        state = state + (f[:, s + 1 :].prod(1) * k[:, s])[..., None] * v[:, s][..., None, :]
    return o, state


@pytest.mark.parametrize("mode", ["none", "head", "head_t", "channel"])
@pytest.mark.parametrize("strength", [0.3, 30.0, float("inf")])
def test_matches_the_closed_form(mode: str, strength: float) -> None:
    g = torch.Generator().manual_seed(0)
    batch, length, heads, key_dim, value_dim = 2, 7, 3, 4, 5
    q, k = torch.randn(2, batch, length, heads, key_dim, generator=g, dtype=torch.float64)
    v = torch.randn(batch, length, heads, value_dim, generator=g, dtype=torch.float64)
    initial = torch.randn(batch, heads, key_dim, value_dim, generator=g, dtype=torch.float64)
    shape = {
        "none": (heads,),
        "head": (heads,),
        "head_t": (batch, length, heads),
        "channel": (batch, length, heads, key_dim),
    }[mode]
    decay = -(torch.rand(shape, generator=g, dtype=torch.float64) + 0.01) * min(strength, 1.0)
    strong = torch.rand(shape, generator=g) < 0.3
    decay = decay.masked_fill(strong, -strength)
    if mode == "none":
        decay = torch.zeros(heads, dtype=torch.float64)
    full = decay[..., None] if decay.ndim < 4 else decay
    full = full.expand(batch, length, heads, key_dim)
    o, state = recurrent_reference(q, k, v, None if mode == "none" else decay, initial)
    expected_o, expected_state = closed_form(q, k, v, full, initial)
    # Both sum at most 8 products of O(1) numbers in float64.
    torch.testing.assert_close(o, expected_o, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, expected_state, rtol=1e-12, atol=1e-12)


def test_packed_sequences_are_independent() -> None:
    g = torch.Generator().manual_seed(1)
    q, k, v, decay = torch.randn(4, 1, 9, 2, 3, generator=g, dtype=torch.float64)
    decay = -decay.abs()
    initial = torch.randn(3, 2, 3, 3, generator=g, dtype=torch.float64)
    bounds = [0, 4, 4, 9]
    o, state = recurrent_reference(q, k, v, decay, initial, torch.tensor(bounds))
    for i, (start, end) in enumerate(pairwise(bounds)):
        qi, ki, vi, di = (x[:, start:end] for x in (q, k, v, decay))
        expected_o, expected_state = recurrent_reference(qi, ki, vi, di, initial[i : i + 1])
        assert torch.equal(o[:, start:end], expected_o)
        assert torch.equal(state[i : i + 1], expected_state)


def test_low_precision_input_keeps_its_dtype_and_a_float32_state() -> None:
    x = torch.randn(1, 5, 2, 4, generator=torch.Generator().manual_seed(2)).bfloat16()
    o, state = recurrent_reference(x, x, x, torch.tensor([-0.1, -0.2]))
    assert o.dtype == torch.bfloat16
    assert state.dtype == torch.float32
    exact, _ = recurrent_reference(x.double(), x.double(), x.double(), torch.tensor([-0.1, -0.2]))
    # One rounding to bfloat16 at the end: half a unit in its 8 significant bits.
    torch.testing.assert_close(o.double(), exact, rtol=2**-8, atol=1e-6)


def test_flop_counter_sees_the_recurrent_form() -> None:
    batch, length, heads, key_dim, value_dim = 2, 6, 3, 4, 8
    q, k = torch.randn(2, batch, length, heads, key_dim, requires_grad=True).unbind()
    v = torch.randn(batch, length, heads, value_dim, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        recurrent_reference(q, k, v, torch.full((heads,), -0.1))[0].sum().backward()
    assert counter.get_total_flops() == 3 * 4 * batch * length * heads * key_dim * value_dim

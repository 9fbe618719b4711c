"""What must hold of the delta rule's Triton kernels for any input: in the interpreter, float32.

A sequence split at any point with its state carried, permuted packed sequences, scale equivariance,
causality, and tokens without a share (beta of 0), which write nothing.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.kernels.delta.call import DeltaCall
from models.kernels.triton.common import interpreted
from models.kernels.triton.delta_launch import forward
from tests.support.delta_inputs import MODES, make
from tests.support.recurrences import Inputs

pytestmark = pytest.mark.skipif(not interpreted(), reason="needs TRITON_INTERPRET=1")
few = settings(max_examples=4, deadline=None)
modes = st.sampled_from(MODES)
strengths = st.sampled_from((0.0, -3.0, -30.0))


def draw(mode: str, tokens: int, strong: float, seed: int = 0) -> dict[str, Tensor]:
    """Arguments with a dimension of tokens, of one sequence."""
    inputs: Inputs = make(
        mode, batch=1, heads=1, length=tokens, strong=strong, seed=seed + tokens, state=False,
        key_dim=8, value_dim=12, dtype=torch.float32,
    )  # fmt: skip
    return {name: x for name, x in inputs.items() if x is not None}


def run(
    x: dict[str, Tensor], state: Tensor | None = None, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """o and the final state, by the kernels that work on tiles."""
    return forward(DeltaCall(**x, initial_state=state, cu_seqlens=cu_seqlens))[:2]


def part(x: dict[str, Tensor], start: int, end: int) -> dict[str, Tensor]:
    return {name: t[:, start:end] for name, t in x.items()}


def close(actual: Tensor, expected: Tensor) -> None:
    """Equal but for float32's rounding of sums in another order, as an RMS ratio."""
    assert (actual - expected).norm() <= 1e-5 * expected.norm().clamp_min(1e-6)


@few
@given(mode=modes, strong=strengths, tokens=st.integers(2, 90), data=st.data())
def test_a_sequence_may_be_split_anywhere(
    mode: str, strong: float, tokens: int, data: st.DataObject
) -> None:
    x = draw(mode, tokens, strong)
    at = data.draw(st.integers(1, tokens - 1))
    o, final = run(x)
    first, state = run(part(x, 0, at))
    second, last = run(part(x, at, tokens), state)
    close(torch.cat([first, second], 1), o)
    close(last, final)


@few
@given(mode=modes, strong=strengths, lengths=st.lists(st.integers(0, 40), min_size=2, max_size=4),
       seed=st.randoms(use_true_random=False))  # fmt: skip
def test_packed_sequences_may_be_permuted(
    mode: str, strong: float, lengths: list[int], seed: object
) -> None:
    lengths = [*lengths[:-1], max(lengths[-1], 1)]
    order = list(range(len(lengths)))
    seed.shuffle(order)  # pyright: ignore[reportAttributeAccessIssue]
    whole = draw(mode, sum(lengths), strong)
    ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
    pieces = [part(whole, a, b) for a, b in pairwise(ends)]
    o, final = run(whole, cu_seqlens=torch.tensor(ends, dtype=torch.int32))
    outputs = [o[:, a:b] for a, b in pairwise(ends)]
    mixed = {name: torch.cat([pieces[i][name] for i in order], 1) for name in whole}
    bounds = torch.tensor([0, *(lengths[i] for i in order)]).cumsum(0).to(torch.int32)
    mixed_o, mixed_final = run(mixed, cu_seqlens=bounds)
    assert torch.equal(mixed_o, torch.cat([outputs[i] for i in order], 1))
    assert torch.equal(mixed_final, final[order])


@few
@given(mode=modes, strong=strengths, power=st.integers(-8, 8))
def test_scaling_by_a_power_of_two_is_exact(mode: str, strong: float, power: int) -> None:
    x = draw(mode, 70, strong)
    o, final = run(x)
    read, _ = run(x | {"q": x["q"] * 2.0**power})
    written, state = run(x | {"v": x["v"] * 2.0**power})
    assert torch.equal(read, o * 2.0**power)
    assert torch.equal(written, o * 2.0**power)
    assert torch.equal(state, final * 2.0**power)


@few
@given(mode=modes, strong=strengths, tokens=st.integers(2, 90), data=st.data())
def test_causality(mode: str, strong: float, tokens: int, data: st.DataObject) -> None:
    x = draw(mode, tokens, strong)
    at = data.draw(st.integers(1, tokens - 1))
    o, _ = run(x)
    other = draw(mode, tokens, strong, seed=1)
    changed = {name: torch.cat([t[:, :at], other[name][:, at:]], 1) for name, t in x.items()}
    after, _ = run(changed)
    assert torch.equal(after[:, :at], o[:, :at])
    assert not torch.equal(after[:, at:], o[:, at:])


@few
@given(mode=modes, seed=st.integers(0, 9))
def test_tokens_without_a_share_write_nothing(mode: str, seed: int) -> None:
    """Whatever their keys and values are, and however early."""
    x = draw(mode, 70, 0.0, seed)
    silent = torch.rand(1, 70, generator=torch.Generator().manual_seed(seed)) < 0.5
    x["beta"] = x["beta"].masked_fill(silent[..., None], 0.0)
    o, final = run(x)
    other = {n: torch.where(silent[..., None, None], -x[n] + 1.0, x[n]) for n in ("k", "v")}
    changed_o, changed_final = run(x | other)
    close(changed_o, o)
    close(changed_final, final)

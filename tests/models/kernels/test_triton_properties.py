"""What must hold of every Triton kernel family, whatever the input: in the interpreter, float32.

Chunk-size invariance (of the scalar family: segments cut anywhere), a sequence split at any point
with its state carried, permuted packed sequences, scale equivariance and causality. The CPU kernels
are held to the same in test_chunked.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.kernels import launch
from models.kernels.call import Call
from models.kernels.triton import phase_launch, scalar_launch, vector_launch
from models.kernels.triton.common import interpreted

pytestmark = pytest.mark.skipif(not interpreted(), reason="needs TRITON_INTERPRET=1")
MODES = ("none", "head", "head_t", "vector", "gate", "phase")
KEYS, VALUES, HEADS = 8, 12, 1
few = settings(max_examples=6, deadline=None)
modes = st.sampled_from(MODES)
strengths = st.sampled_from((0.1, 3.0, 30.0))


def draw(mode: str, tokens: int, strength: float, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of one mode; `decay` per token where the mode has one, logits for the gate."""
    generator = torch.Generator().manual_seed(seed + tokens)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    found = {
        "q": random(1, tokens, HEADS, KEYS),
        "k": random(1, tokens, HEADS, KEYS),
        "v": random(1, tokens, HEADS, VALUES),
    }
    if mode == "head":
        found["slope"] = -strength * torch.rand(HEADS, generator=generator)
    if mode in ("head_t", "vector"):
        shape = (1, tokens, HEADS) if mode == "head_t" else (1, tokens, HEADS, KEYS)
        found["decay"] = -strength * torch.rand(shape, generator=generator)
    if mode == "gate":
        found["k"] = found["k"] * strength
    return found


def run(
    mode: str,
    x: dict[str, Tensor],
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    position: int = 0,
    segment: int | None = None,
) -> tuple[Tensor, Tensor]:
    """o and the final state, by the kernels that work on chunks."""
    q, k, v = x["q"], x["k"], x["v"]
    if mode == "phase":
        theta = torch.linspace(0.1, 1.0, HEADS * KEYS).view(HEADS, KEYS)
        offset = torch.tensor([position])
        call = Call(q, k, v, theta, state, cu_seqlens, offset)
        return phase_launch.forward(call, segment)[:2]
    if mode == "gate":
        bound = torch.linspace(0, 0.9, HEADS * KEYS).view(HEADS, KEYS)
        return vector_launch.forward(Call(q, k, v, bound, state, cu_seqlens))[:2]
    if mode == "vector":
        return vector_launch.forward(Call(q, k, v, x["decay"], state, cu_seqlens))[:2]
    decay = x.get("slope", x.get("decay"))
    return scalar_launch.forward(Call(q, k, v, decay, state, cu_seqlens), segment)[:2]


def close(actual: Tensor, expected: Tensor) -> None:
    """Equal but for float32's rounding of sums in another order, as an RMS ratio."""
    assert (actual - expected).norm() <= 1e-5 * expected.norm().clamp_min(1e-6)


def part(x: dict[str, Tensor], start: int, end: int) -> dict[str, Tensor]:
    """Tokens start to end."""
    return {name: t if name == "slope" else t[:, start:end] for name, t in x.items()}


@few
@given(mode=st.sampled_from(("none", "head", "head_t", "phase")), strength=strengths,
       tokens=st.integers(129, 300), segment=st.sampled_from((128, 256)))  # fmt: skip
def test_any_segment_length_gives_the_same(
    mode: str, strength: float, tokens: int, segment: int
) -> None:
    x = draw(mode, tokens, strength)
    o, final = run(mode, x)
    cut_o, cut_final = run(mode, x, segment=segment)
    close(cut_o, o)
    close(cut_final, final)


@few
@given(mode=modes, strength=strengths, tokens=st.integers(2, 90), data=st.data())
def test_a_sequence_may_be_split_anywhere(
    mode: str, strength: float, tokens: int, data: st.DataObject
) -> None:
    x = draw(mode, tokens, strength)
    at = data.draw(st.integers(1, tokens - 1))
    o, final = run(mode, x)
    first, state = run(mode, part(x, 0, at))
    second, last = run(mode, part(x, at, tokens), state, position=at)
    close(torch.cat([first, second], 1), o)
    close(last, final)


@few
@given(mode=modes, strength=strengths, lengths=st.lists(st.integers(0, 40), min_size=2, max_size=4),
       seed=st.randoms(use_true_random=False))  # fmt: skip
def test_packed_sequences_may_be_permuted(
    mode: str, strength: float, lengths: list[int], seed: object
) -> None:
    order = list(range(len(lengths)))
    seed.shuffle(order)  # pyright: ignore[reportAttributeAccessIssue]
    whole = draw(mode, max(sum(lengths), 1), strength)
    ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
    ends[-1] = max(ends[-1], 1)  # no sequence of tokens at all: the last has one
    parts = [part(whole, a, b) for a, b in pairwise(ends)]
    o, final = run(mode, whole, cu_seqlens=torch.tensor(ends, dtype=torch.int32))
    outputs = [o[:, a:b] for a, b in pairwise(ends)]
    mixed = {
        name: t if name == "slope" else torch.cat([parts[i][name] for i in order], 1)
        for name, t in whole.items()
    }
    sizes = [parts[i]["q"].shape[1] for i in order]
    bounds = torch.tensor([0, *sizes]).cumsum(0).to(torch.int32)
    mixed_o, mixed_final = run(mode, mixed, cu_seqlens=bounds)
    assert torch.equal(mixed_o, torch.cat([outputs[i] for i in order], 1))
    assert torch.equal(mixed_final, final[order])


@few
@given(mode=modes, strength=strengths, power=st.integers(-8, 8))
def test_scaling_by_a_power_of_two_is_exact(mode: str, strength: float, power: int) -> None:
    x = draw(mode, 70, strength)
    o, final = run(mode, x)
    read, _ = run(mode, x | {"q": x["q"] * 2.0**power})
    written, state = run(mode, x | {"v": x["v"] * 2.0**power})
    assert torch.equal(read, o * 2.0**power)
    assert torch.equal(written, o * 2.0**power)
    assert torch.equal(state, final * 2.0**power)


@few
@given(mode=modes, strength=strengths, tokens=st.integers(2, 90), data=st.data())
def test_causality(mode: str, strength: float, tokens: int, data: st.DataObject) -> None:
    x = draw(mode, tokens, strength)
    at = data.draw(st.integers(1, tokens - 1))
    o, _ = run(mode, x)
    other = draw(mode, tokens, strength, seed=1)
    changed = {
        name: t if name == "slope" else torch.cat([t[:, :at], other[name][:, at:]], 1)
        for name, t in x.items()
    }
    after, _ = run(mode, changed)
    assert torch.equal(after[:, :at], o[:, :at])
    assert not torch.equal(after[:, at:], o[:, at:])


def test_short_and_long_paths_agree() -> None:
    """The dispatch's token-by-token path up to `PREFILL` tokens equals the chunked one."""
    x = draw("vector", 20, 3.0)
    o, final = run("vector", x)
    call = Call(x["q"], x["k"], x["v"], x["decay"])
    short, short_final, _ = launch.choose(call, "cuda").forward(call)
    close(short, o)
    close(short_final, final)

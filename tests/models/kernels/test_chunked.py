"""The CPU kernel against the float64 recurrence and its autograd, and properties it must have."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.kernels import chunked
from models.kernels.call import Call
from tests.support.recurrences import Inputs, assert_matches, computed, cotangents, error, make

MODES = ("none", "head", "head_t", "channel")


# Sums of at most a few hundred products: 1e-5 is a hundred roundings of float32, 1e-11 ten
# thousand of float64 (differences of sums of log decays of up to 1000 nats each lose that many).
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}
STRENGTHS = (0.0, -10.0, -30.0, -1e4, -torch.inf)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("strong", STRENGTHS)
@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
@pytest.mark.parametrize("mode", MODES)
def test_matches_the_recurrence(mode: str, packed: bool, strong: float, dtype: torch.dtype) -> None:
    lengths = (23, 0, 1, 16, 9) if packed else ()
    inputs = make(mode, lengths=lengths, length=45, strong=strong, dtype=dtype)
    assert_matches(chunked, inputs, TOLERANCE[dtype], chunk=16)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("state", [False, True], ids=["zero", "state"])
@pytest.mark.parametrize("strong", STRENGTHS)
@pytest.mark.parametrize("dims", [(1, 1), (5, 3), (16, 32), (64, 64)])
@pytest.mark.parametrize("lengths", [(1,), (63,), (64,), (65,), (200,), (130, 64, 1, 0, 77)])
@pytest.mark.parametrize("mode", MODES)
def test_matches_the_recurrence_everywhere(
    mode: str,
    lengths: tuple[int, ...],
    dims: tuple[int, int],
    strong: float,
    state: bool,
    dtype: torch.dtype,
) -> None:
    packed = () if len(lengths) == 1 else lengths
    key_dim, value_dim = dims
    inputs = make(
        mode,
        lengths=packed,
        length=sum(lengths),
        key_dim=key_dim,
        value_dim=value_dim,
        strong=strong,
        state=state,
        dtype=dtype,
    )
    assert_matches(chunked, inputs, TOLERANCE[dtype])


@pytest.mark.parametrize("mode", ["head", "head_t", "channel"])
@pytest.mark.parametrize("nats", [-30.0, -80.0, -1e4])
def test_constant_strong_decay_keeps_relative_accuracy(mode: str, nats: float) -> None:
    """The decay's gradient is then of order exp(nats), far below one rounding of q * dq."""
    inputs = make(mode, length=40, strong=nats, share=1.0, dtype=torch.float32)
    assert_matches(chunked, inputs, 1e-5, chunk=16)


@pytest.mark.parametrize("mode", MODES)
def test_long_sequences_do_not_drift(mode: str) -> None:
    inputs = make(mode, batch=1, length=700, heads=1, dtype=torch.float32, strong=-20.0)
    assert_matches(chunked, inputs, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("mode", MODES)
def test_low_precision_tensors_are_rounded_once(mode: str, dtype: torch.dtype) -> None:
    inputs = make(mode, length=45, dtype=dtype)
    actual = computed(chunked, inputs)
    assert actual["o"].dtype == actual["dq"].dtype == dtype
    assert actual["final_state"].dtype == torch.float32
    # Work is in float32, so what remains is one rounding of each result: at most 2^-9 (bfloat16).
    assert_matches(chunked, inputs, 2**-9)


@pytest.mark.parametrize("mode", MODES)
def test_zero_tokens(mode: str) -> None:
    inputs = make(mode, length=0)
    actual = computed(chunked, inputs)
    assert actual["o"].shape == (2, 0, 2, 6)
    assert torch.equal(actual["final_state"], inputs["initial_state"])  # pyright: ignore
    assert torch.equal(actual["dinitial_state"], cotangents(inputs)[1])


def test_decay_gradient_is_left_out_on_request() -> None:
    inputs = make("head_t")
    call = Call(**inputs)  # pyright: ignore[reportArgumentType]
    _, _, states = chunked.forward(call)
    do, dstate = cotangents(inputs)
    full = computed(chunked, inputs)
    dq, dk, dv, ddecay, dinitial = chunked.backward(
        call,
        states=states,
        do=do,
        dfinal_state=dstate,
        decay_gradient=False,
    )
    assert ddecay is None
    assert dinitial is not None
    for name, value in {"dq": dq, "dk": dk, "dv": dv, "dinitial_state": dinitial}.items():
        torch.testing.assert_close(value, full[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_strided_inputs(mode: str) -> None:
    inputs = make(mode, length=33)
    strided = {
        name: x.transpose(1, 2).contiguous().transpose(1, 2) if x is not None and x.ndim == 4 else x
        for name, x in inputs.items()
    }
    for name, value in computed(chunked, inputs).items():
        assert torch.equal(value, computed(chunked, strided)[name]), name


def test_a_reset_forgets_everything_before_it() -> None:
    inputs = make("head_t", length=40, dtype=torch.float32)
    decay, k = inputs["decay"], inputs["k"]
    assert decay is not None
    assert k is not None
    decay[:, 17] = -torch.inf
    changed = {**inputs, "k": k.clone()}
    changed["k"][:, :17] += 100  # pyright: ignore[reportOptionalSubscript]
    a, b = computed(chunked, inputs), computed(chunked, changed)
    assert torch.equal(a["o"][:, 17:], b["o"][:, 17:])
    assert torch.equal(a["final_state"], b["final_state"])


modes = st.sampled_from(MODES)
strengths = st.sampled_from(STRENGTHS)


@settings(max_examples=40, deadline=None)
@given(mode=modes, strong=strengths, length=st.integers(1, 70), power=st.integers(0, 6))
def test_any_chunk_length_gives_the_same(mode: str, strong: float, length: int, power: int) -> None:
    inputs = make(mode, length=length, strong=strong)
    expected, actual = computed(chunked, inputs), computed(chunked, inputs, 2**power)
    for name, value in expected.items():
        assert error(actual[name], value) <= 1e-11, name


@settings(max_examples=40, deadline=None)
@given(mode=modes, strong=strengths, length=st.integers(2, 70), data=st.data())
def test_a_sequence_may_be_split_anywhere(
    mode: str, strong: float, length: int, data: st.DataObject
) -> None:
    split = data.draw(st.integers(0, length))
    inputs = make(mode, length=length, strong=strong)
    whole = computed(chunked, inputs, 16)

    def part(rows: slice, state: Tensor | None) -> tuple[Tensor, Tensor]:
        cut = {
            name: x[:, rows] if x is not None and x.ndim >= 3 and name != "initial_state" else x
            for name, x in inputs.items()
        }
        cut["initial_state"] = state
        return chunked.forward(Call(**cut), 16)[:2]  # pyright: ignore[reportArgumentType]

    first, state = part(slice(None, split), inputs["initial_state"])
    second, state = part(slice(split, None), state)
    assert error(torch.cat([first, second], 1), whole["o"]) <= 1e-11
    assert error(state, whole["final_state"]) <= 1e-11


@settings(max_examples=30, deadline=None)
@given(
    mode=modes,
    lengths=st.lists(st.integers(0, 40), min_size=2, max_size=5).filter(lambda x: sum(x) > 0),
    data=st.data(),
)
def test_packed_sequences_may_be_permuted(
    mode: str, lengths: list[int], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(lengths))))
    inputs = make(mode, lengths=tuple(lengths), strong=-20.0)
    places = list(torch.arange(sum(lengths)).split(lengths))
    index = torch.cat([places[i] for i in order])
    moved: Inputs = {
        name: x[:, index] if x is not None and x.ndim >= 3 and name != "initial_state" else x
        for name, x in inputs.items()
    }
    initial = inputs["initial_state"]
    assert initial is not None
    moved["initial_state"] = initial[list(order)]
    moved["cu_seqlens"] = torch.tensor([0, *accumulate(lengths[i] for i in order)])
    o, state, _ = chunked.forward(Call(**inputs), 16)  # pyright: ignore[reportArgumentType]
    moved_o, moved_state, _ = chunked.forward(Call(**moved), 16)  # pyright: ignore[reportArgumentType]
    assert error(moved_o, o[:, index]) <= 1e-12
    assert error(moved_state, state[list(order)]) <= 1e-12


@settings(max_examples=30, deadline=None)
@given(mode=modes, strong=strengths, power=st.integers(-8, 8))
def test_scaling_by_a_power_of_two_is_exact(mode: str, strong: float, power: int) -> None:
    """o is linear in q and in (v, state): scaling by 2^n changes no mantissa."""
    inputs = make(mode, length=30, strong=strong, dtype=torch.float32)
    o, state, _ = chunked.forward(Call(**inputs))  # pyright: ignore[reportArgumentType]
    scaled: Inputs = {
        name: x * 2.0**power if x is not None and name in ("v", "initial_state") else x
        for name, x in inputs.items()
    }
    scaled_o, scaled_state, _ = chunked.forward(Call(**scaled))  # pyright: ignore[reportArgumentType]
    assert torch.equal(scaled_o, o * 2.0**power)
    assert torch.equal(scaled_state, state * 2.0**power)


@settings(max_examples=40, deadline=None)
@given(mode=modes, strong=strengths, length=st.integers(2, 70), data=st.data())
def test_causality(mode: str, strong: float, length: int, data: st.DataObject) -> None:
    token = data.draw(st.integers(0, length - 1))
    inputs = make(mode, length=length, strong=strong)
    changed: Inputs = {}
    for name, x in inputs.items():
        changed[name] = x
        if x is not None and x.ndim >= 3 and name != "initial_state":
            changed[name] = x.clone()
            changed[name][:, token:] *= 3  # pyright: ignore[reportOptionalSubscript]
    o = chunked.forward(Call(**inputs), 16)[0]  # pyright: ignore[reportArgumentType]
    changed_o = chunked.forward(Call(**changed), 16)[0]  # pyright: ignore[reportArgumentType]
    assert error(changed_o[:, :token], o[:, :token]) <= 1e-14 if token else True
    assert not torch.equal(changed_o[:, token:], o[:, token:])

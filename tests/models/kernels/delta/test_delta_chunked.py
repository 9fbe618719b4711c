"""The delta rule in chunks against the float64 recurrence and its autograd, and its properties."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.kernels import chunked as linear
from models.kernels.call import Call
from models.kernels.delta import chunked
from models.kernels.delta.call import DeltaCall
from models.kernels.delta.reference import recurrent_delta
from tests.support.delta_inputs import MODES, make
from tests.support.recurrences import Inputs, assert_matches, computed, cotangents, error

STRENGTHS = (0.0, -30.0, -1e4, -torch.inf)
# A few hundred products each; the corrections of a chunk are solved for, which multiplies the
# rounding by the size of the inverse, about 10 for beta up to 2.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}


def run(inputs: Inputs, chunk: int = chunked.CHUNK) -> tuple[Tensor, Tensor, Tensor]:
    return chunked.forward(DeltaCall(**inputs), chunk)  # pyright: ignore[reportArgumentType]


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
    inputs = make(
        mode,
        lengths=() if len(lengths) == 1 else lengths,
        length=sum(lengths),
        key_dim=dims[0],
        value_dim=dims[1],
        strong=strong,
        state=state,
        dtype=dtype,
    )
    assert_matches(chunked, inputs, TOLERANCE[dtype] * 5)


@pytest.mark.parametrize("mode", MODES)
def test_long_sequences_do_not_drift(mode: str) -> None:
    inputs = make(mode, batch=1, length=700, heads=1, dtype=torch.float32)
    assert_matches(chunked, inputs, 1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("mode", MODES)
def test_low_precision_tensors_are_rounded_once(mode: str, dtype: torch.dtype) -> None:
    inputs = make(mode, length=45, dtype=dtype)
    actual = computed(chunked, inputs)
    assert actual["o"].dtype == actual["dq"].dtype == actual["dbeta"].dtype == dtype
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


def test_what_was_written_is_read_back() -> None:
    """With beta = 1 and a key of length 1 the state holds v under k right after the token."""
    inputs = make("channel", length=40, strong=-30.0)
    inputs["q"], inputs["beta"] = inputs["k"], torch.ones_like(inputs["beta"])  # pyright: ignore
    torch.testing.assert_close(run(inputs, 16)[0], inputs["v"], rtol=1e-12, atol=1e-12)


def test_orthogonal_keys_are_linear_attention() -> None:
    """Writing under keys that are orthogonal to all earlier ones has nothing to correct."""
    length = 24
    inputs = make("head", length=length, key_dim=length, state=False)
    assert inputs["v"] is not None
    assert inputs["beta"] is not None
    inputs["k"] = torch.eye(length, dtype=torch.float64)[None, :, None].expand(2, -1, 2, -1)
    values = inputs["beta"][..., None] * inputs["v"]
    call = Call(inputs["q"], inputs["k"], values, inputs["decay"])  # pyright: ignore
    expected, state, _ = linear.forward(call, 8)
    o, final, _ = run(inputs, 8)
    torch.testing.assert_close(o, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(final, state, rtol=1e-12, atol=1e-12)


def test_reflections_count_parity() -> None:
    """beta = 2 flips the state's sign along the key: the token 1 flips, the token 0 does not."""
    bits = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1] * 12)
    ones = torch.ones(1, len(bits), 1, 1)
    start = torch.ones(1, 1, 1, 1)
    beta = 2.0 * bits[None, :, None]
    o, _, _ = chunked.forward(DeltaCall(ones, ones, 0 * ones, beta, None, start))
    assert torch.equal(o.flatten(), 1.0 - 2.0 * (bits.cumsum(0) % 2))


def test_decay_gradient_is_left_out_on_request() -> None:
    inputs = make("head")
    _, _, states = run(inputs)
    call = DeltaCall(**inputs)  # pyright: ignore[reportArgumentType]
    found = chunked.backward(call, states, *cotangents(inputs), decay_gradient=False)
    full = computed(chunked, inputs)
    assert found[4] is None
    for name, value in zip(("dq", "dk", "dv", "dbeta"), found, strict=False):
        assert value is not None
        torch.testing.assert_close(value, full[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_strided_inputs(mode: str) -> None:
    inputs = make(mode, length=33)
    strided = {
        name: x.transpose(1, 2).contiguous().transpose(1, 2) if x is not None and x.ndim >= 3 else x
        for name, x in inputs.items()
    }
    strided["initial_state"] = inputs["initial_state"]
    for name, value in computed(chunked, inputs).items():
        assert torch.equal(value, computed(chunked, strided)[name]), name


def test_a_reset_forgets_everything_before_it() -> None:
    inputs = make("head", length=40, dtype=torch.float32)
    decay, v = inputs["decay"], inputs["v"]
    assert decay is not None
    assert v is not None
    decay[:, 17] = -torch.inf
    changed = {**inputs, "v": v.clone()}
    changed["v"][:, :17] += 100  # pyright: ignore[reportOptionalSubscript]
    a, b = computed(chunked, inputs), computed(chunked, changed)
    assert torch.equal(a["o"][:, 17:], b["o"][:, 17:])
    assert torch.equal(a["final_state"], b["final_state"])


modes = st.sampled_from(MODES)
strengths = st.sampled_from(STRENGTHS)


def tokens(inputs: Inputs, rows: slice | Tensor) -> Inputs:
    """Some of the tokens, as they are or in another order."""
    return {
        name: x[:, rows] if x is not None and x.ndim >= 3 and name != "initial_state" else x
        for name, x in inputs.items()
    }


@settings(max_examples=30, deadline=None)
@given(mode=modes, strong=strengths, length=st.integers(1, 70), power=st.integers(0, 6))
def test_any_chunk_length_gives_the_same(mode: str, strong: float, length: int, power: int) -> None:
    inputs = make(mode, length=length, strong=strong)
    expected, actual = computed(chunked, inputs), computed(chunked, inputs, 2**power)
    for name, value in expected.items():
        assert error(actual[name], value) <= 1e-11, name


@settings(max_examples=30, deadline=None)
@given(mode=modes, strong=strengths, length=st.integers(2, 70), data=st.data())
def test_a_sequence_may_be_split_anywhere(
    mode: str, strong: float, length: int, data: st.DataObject
) -> None:
    split = data.draw(st.integers(0, length))
    inputs = make(mode, length=length, strong=strong)
    o, final, _ = run(inputs, 16)
    first, middle, _ = run(tokens(inputs, slice(None, split)), 16)
    rest = tokens(inputs, slice(split, None)) | {"initial_state": middle}
    second, state, _ = run(rest, 16)
    assert error(torch.cat([first, second], 1), o) <= 1e-11
    assert error(state, final) <= 1e-11


@settings(max_examples=20, deadline=None)
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
    moved = tokens(inputs, index)
    initial = inputs["initial_state"]
    assert initial is not None
    moved["initial_state"] = initial[list(order)]
    moved["cu_seqlens"] = torch.tensor([0, *accumulate(lengths[i] for i in order)])
    o, state, _ = run(inputs, 16)
    moved_o, moved_state, _ = run(moved, 16)
    assert error(moved_o, o[:, index]) <= 1e-12
    assert error(moved_state, state[list(order)]) <= 1e-12


@settings(max_examples=20, deadline=None)
@given(mode=modes, strong=strengths, power=st.integers(-8, 8))
def test_scaling_by_a_power_of_two_is_exact(mode: str, strong: float, power: int) -> None:
    """o is linear in (v, state): scaling by 2^n changes no mantissa."""
    inputs = make(mode, length=30, strong=strong, dtype=torch.float32)
    o, state, _ = run(inputs)
    scaled: Inputs = {
        name: x * 2.0**power if x is not None and name in ("v", "initial_state") else x
        for name, x in inputs.items()
    }
    scaled_o, scaled_state, _ = run(scaled)
    assert torch.equal(scaled_o, o * 2.0**power)
    assert torch.equal(scaled_state, state * 2.0**power)


@settings(max_examples=30, deadline=None)
@given(mode=modes, strong=strengths, length=st.integers(2, 70), data=st.data())
def test_causality(mode: str, strong: float, length: int, data: st.DataObject) -> None:
    token = data.draw(st.integers(0, length - 1))
    inputs = make(mode, length=length, strong=strong)
    changed = {n: x if x is None or n == "initial_state" else x.clone() for n, x in inputs.items()}
    changed["v"][:, token:] *= 3  # pyright: ignore[reportOptionalSubscript]
    changed["q"][:, token:] *= 3  # pyright: ignore[reportOptionalSubscript]
    o, other = run(inputs, 16)[0], run(changed, 16)[0]
    assert error(other[:, :token], o[:, :token]) <= 1e-14 if token else True
    assert not torch.equal(other[:, token:], o[:, token:])


@settings(max_examples=20, deadline=None)
@given(mode=modes, length=st.integers(1, 60), seed=st.integers(0, 1000))
def test_without_values_the_state_never_grows(mode: str, length: int, seed: int) -> None:
    """For beta in [0, 2] and keys of length 1 every step is a contraction of the state."""
    inputs = make(mode, length=length, seed=seed)
    inputs["v"] = torch.zeros_like(inputs["v"])  # pyright: ignore[reportArgumentType]
    _, final, _ = run(inputs, 16)
    norm = torch.linalg.matrix_norm
    assert (norm(final) <= norm(inputs["initial_state"]) * (1 + 1e-12)).all()


def test_the_recurrence_is_a_product_of_matrices() -> None:
    """Against explicit (I - beta k k^T) diag(f), multiplied out with no running state."""
    inputs = make("channel", batch=1, heads=1, length=12)
    q, k, v, beta, decay = (inputs[n][0, :, 0] for n in ("q", "k", "v", "beta", "decay"))  # pyright: ignore
    initial = inputs["initial_state"]
    assert initial is not None
    expected = torch.zeros_like(v)
    eye = torch.eye(4, dtype=torch.float64)
    steps = [
        (eye - beta[t] * torch.outer(k[t], k[t])) @ torch.diag(decay[t].exp()) for t in range(12)
    ]
    for t in range(12):
        after = eye
        total = torch.zeros(4, 6, dtype=torch.float64)
        for s in range(t, -1, -1):
            total += after @ (beta[s] * torch.outer(k[s], v[s]))
            after = after @ steps[s]
        expected[t] = (total + after @ initial[0, 0]).T @ q[t]
    o, _ = recurrent_delta(**inputs)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(o[0, :, 0], expected, rtol=1e-12, atol=1e-12)

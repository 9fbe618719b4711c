"""The compiled delta rule against the float64 recurrence and its autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.kernels import launch
from models.kernels.delta.call import DeltaCall
from models.kernels.native import delta, library
from tests.support.delta_inputs import MODES, make
from tests.support.recurrences import Inputs, assert_matches, computed, cotangents

STRENGTHS = (0.0, -30.0, -1e4, -torch.inf)
TOLERANCE = 2e-5
"""As of the chunked form: corrections feed on one another."""

if library.loaded() is None:
    pytest.skip(f"no C++ compiler: {library.describe()}", allow_module_level=True)


@pytest.mark.parametrize("strong", STRENGTHS)
@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
@pytest.mark.parametrize("mode", MODES)
def test_matches_the_recurrence(mode: str, packed: bool, strong: float) -> None:
    lengths = (23, 0, 1, 16, 9) if packed else ()
    inputs = make(mode, lengths=lengths, length=45, strong=strong, dtype=torch.float32)
    assert_matches(delta, inputs, TOLERANCE, chunk=16)


@pytest.mark.parametrize("state", [False, True], ids=["zero", "state"])
@pytest.mark.parametrize("dims", [(1, 1), (5, 3), (16, 33), (96, 48), (40, 130)])
@pytest.mark.parametrize("lengths", [(1,), (65,), (130, 64, 1, 0, 77)])
@pytest.mark.parametrize("mode", MODES)
def test_matches_in_every_shape(
    mode: str, lengths: tuple[int, ...], dims: tuple[int, int], state: bool
) -> None:
    inputs = make(
        mode,
        lengths=() if len(lengths) == 1 else lengths,
        length=sum(lengths),
        key_dim=dims[0],
        value_dim=dims[1],
        strong=-20.0,
        state=state,
        dtype=torch.float32,
    )
    assert_matches(delta, inputs, TOLERANCE)


@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_is_rounded_once(mode: str) -> None:
    inputs = make(mode, length=45, dtype=torch.bfloat16)
    actual = computed(delta, inputs)
    assert actual["o"].dtype == actual["dq"].dtype == torch.bfloat16
    assert actual["final_state"].dtype == torch.float32
    assert_matches(delta, inputs, 2**-9)


def test_threads_and_strides_change_no_bit() -> None:
    inputs = make("channel", batch=3, length=150, heads=5, dtype=torch.float32)
    strided: Inputs = {
        name: x.transpose(1, 2).contiguous().transpose(1, 2) if x is not None and x.ndim == 4 else x
        for name, x in inputs.items()
    }
    threads = torch.get_num_threads()
    results: list[dict[str, Tensor]] = []
    try:
        for number, given in ((1, inputs), (4, strided)):
            torch.set_num_threads(number)
            results.append(computed(delta, given))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


@pytest.mark.parametrize("mode", MODES)
def test_zero_tokens(mode: str) -> None:
    inputs = make(mode, length=0, dtype=torch.float32)
    actual = computed(delta, inputs)
    assert actual["o"].shape == (2, 0, 2, 6)
    assert torch.equal(actual["final_state"], inputs["initial_state"])  # pyright: ignore
    assert torch.equal(actual["dinitial_state"], cotangents(inputs)[1])


@pytest.mark.parametrize("mode", ["head", "channel"])
def test_growing_states_are_refused(mode: str) -> None:
    inputs = make(mode, dtype=torch.float32)
    decay = inputs["decay"]
    assert decay is not None
    decay.view(-1)[1] = 0.25
    with pytest.raises(ValueError, match=r"decay=0\.25 at its largest"):
        delta.forward(DeltaCall(**inputs))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("mode", MODES)
def test_what_is_launched(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.VARIABLE, "auto")
    for dtype, module in (
        (torch.float32, "models.kernels.native.delta"),
        (torch.float64, "models.kernels.delta.chunked"),
    ):
        call = DeltaCall(**make(mode, dtype=dtype))  # pyright: ignore[reportArgumentType]
        assert launch.choose(call, "cpu").backward.__module__ == module

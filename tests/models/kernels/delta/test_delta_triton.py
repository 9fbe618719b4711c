"""The delta rule's Triton kernels in the interpreter against the float64 recurrence.

Errors are RMS ratios |x - reference| / |reference|. float32: 1e-5. 16 bits: 2e-2, because operands
are bfloat16, and keys with beta up to 2 reflect a state that nothing forgets. No decay, however
strong, loosens them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from models.kernels import delta_attention_step, launch
from models.kernels.delta import operators
from models.kernels.delta.call import DeltaCall
from models.kernels.delta.reference import recurrent_delta
from models.kernels.triton import delta_decode, delta_launch
from models.kernels.triton.common import interpreted
from tests.support.delta_inputs import MODES, make
from tests.support.recurrences import Inputs, cotangents, error, exact

pytestmark = [
    pytest.mark.usefixtures("poison"),
    pytest.mark.skipif(not interpreted(), reason="needs TRITON_INTERPRET=1"),
]

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}
NAMES = ("o", "final_state", "dq", "dk", "dv", "dbeta", "ddecay", "dinitial_state")


def run(inputs: Inputs) -> dict[str, Tensor]:
    """Outputs and all gradients, by the kernels that the launch table names."""
    call = DeltaCall(**inputs)  # pyright: ignore[reportArgumentType]
    do, dstate = cotangents(inputs)
    kernels = launch.choose(call, "cuda")
    o, final, kept = kernels.forward(call)
    found: Any = (o, final, *kernels.backward(call, kept, do, dstate, True))
    return {name: x for name, x in zip(NAMES, found, strict=True) if x is not None}


def check(inputs: Inputs) -> dict[str, Tensor]:
    """Right values, of their inputs' dtypes, none left unwritten."""
    expected = exact(inputs, recurrent_delta)
    found = run(inputs)
    assert found.keys() == expected.keys()
    q = inputs["q"]
    assert q is not None
    for name, x in found.items():
        given = inputs.get({"o": "v"}.get(name, name.removeprefix("d")))
        assert x.dtype == (torch.float32 if given is None else given.dtype), name
        assert torch.isfinite(x).all(), name
    errors = {name: error(x, expected[name]) for name, x in found.items()}
    bad = {name: e for name, e in errors.items() if not e <= TOLERANCE[q.dtype]}
    assert not bad, f"{bad}, all {errors}"
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("mode", MODES)
def test_matches_the_recurrence(mode: str, dtype: torch.dtype) -> None:
    """Two entries, the second with a rest of a tile."""
    check(make(mode, length=135, batch=1, heads=1, key_dim=16, value_dim=16, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("strong", [-20.0, -1e4, -torch.inf])
@pytest.mark.parametrize("mode", ["head", "channel"])
def test_strong_decays(mode: str, strong: float, dtype: torch.dtype) -> None:
    """One decay in five forgets nearly or exactly everything; what is forgotten has no gradient."""
    inputs = make(mode, length=70, batch=1, heads=1, strong=strong, dtype=dtype)
    found = check(inputs)
    decay = inputs["decay"]
    assert decay is not None
    assert (found["ddecay"][decay == -torch.inf] == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_packed_sequences(mode: str) -> None:
    """Empty, one-token, short, tile-sized and two-entry sequences in one row, strided inputs."""
    inputs = make(
        mode, lengths=(0, 1, 31, 0, 64, 130), heads=1, key_dim=9, value_dim=20, dtype=torch.float32
    )
    for name in ("q", "v"):
        x = inputs[name]
        assert x is not None
        inputs[name] = torch.stack([x, x], -1)[..., 0]  # channels two elements apart
    check(inputs)


@pytest.mark.parametrize("length", [1, 32, 33, 64])
@pytest.mark.parametrize("state", [False, True])
def test_short_prompts(length: int, state: bool) -> None:
    """Token by token up to `launch.PREFILL`, then a tile; with and without an initial state."""
    mode = MODES[length % 3]
    check(make(mode, length=length, heads=1, state=state, dtype=torch.float32))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("length", "key_dim", "value_dim"),
    [(65, 1, 1), (128, 40, 100), (129, 100, 24), (260, 64, 64), (100, 128, 128), (70, 200, 160)],
)
def test_shapes(mode: str, dtype: torch.dtype, length: int, key_dim: int, value_dim: int) -> None:
    """Tiles of 64, 32 and 16 tokens, blocks of channels that are masked."""
    check(make(mode, length=length, batch=1, key_dim=key_dim, value_dim=value_dim, dtype=dtype))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_equal_keys_are_the_hardest_system(mode: str) -> None:
    """One key for all tokens, beta of 1 and nearly 2: the triangle is dense, its inverse is not
    larger than 1."""
    inputs = make(mode, length=130, heads=1, key_dim=16, value_dim=16, dtype=torch.float32)
    k, beta = inputs["k"], inputs["beta"]
    assert k is not None
    assert beta is not None
    inputs["k"] = k[:, :1].expand_as(k)
    for share in (1.0, 1.9):
        inputs["beta"] = torch.full_like(beta, share)
        check(inputs)


@pytest.mark.parametrize("mode", MODES)
def test_operators_step(mode: str) -> None:
    """What models call on CUDA, against the CPU's form; fake shapes too."""
    inputs = make(mode, length=3, key_dim=20, value_dim=40, dtype=torch.float32)
    q, k, v, beta = (x[:, 1] for x in (inputs[n] for n in ("q", "k", "v", "beta")) if x is not None)
    decay, state = inputs["decay"], inputs["initial_state"]
    assert state is not None
    state = state.transpose(2, 3).contiguous().transpose(2, 3)
    given = (q, k, v, beta, state, None if decay is None else decay[:, 1])
    before = state.clone()
    found = operators.delta_attention_step._init_fn(*given)
    for actual, expected in zip(found, delta_attention_step(*given), strict=True):
        assert error(actual, expected.double()) < 1e-6
    assert torch.equal(state, before)
    with FakeTensorMode(allow_non_fake_inputs=True):
        given = [None if x is None else torch.empty(x.shape, device="cuda") for x in given]
        fake: Any = operators.delta_attention_step(*given)
    assert [x.shape for x in fake] == [x.shape for x in found]


def test_short_and_long_paths_agree() -> None:
    inputs = make("channel", length=20, dtype=torch.float32)
    call = DeltaCall(**inputs)  # pyright: ignore[reportArgumentType]
    for actual, expected in zip(
        delta_decode.forward(call)[:2], delta_launch.forward(call)[:2], strict=True
    ):
        assert error(actual, expected.double()) < 1e-6


def test_tiles_fit_their_registers() -> None:
    for arch, dtype, sizes in (
        ("sm_90", torch.bfloat16, (64, 64, 32)), ("sm_100", torch.float32, (64, 32, 16)),
        ("sm_80", torch.bfloat16, (32, 32, 16)), ("gfx942", torch.float32, (32, 16, 16)),
    ):  # fmt: skip
        for dim, size in zip((64, 128, 256), sizes, strict=True):
            x = torch.empty(1, 4, 1, dim, dtype=dtype)
            assert delta_launch.tile(DeltaCall(x, x, x, x[..., 0]), arch) == size


def test_wrong_arguments_are_named() -> None:
    x = torch.zeros(1, 4, 2, 300)
    with pytest.raises(ValueError, match="K=300, V=300: the kernels support 1 to 256"):
        delta_launch.forward(DeltaCall(x, x, x, x[..., 0]))

"""The compiled recurrence against the float64 recurrence, and how it is built and left out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from models.kernels import launch, rotated
from models.kernels.api import hgrn2_gate
from models.kernels.call import Call
from models.kernels.lrpe import lrpe
from models.kernels.native import library, recurrence
from models.kernels.reference import recurrent_reference
from tests.support.recurrences import (
    Inputs,
    assert_matches,
    computed,
    cotangents,
    error,
    exact,
    make,
)

MODES = ("none", "head", "head_t", "channel")
STRENGTHS = (0.0, -10.0, -80.0, -1e4, -torch.inf)
TOLERANCE = 4e-6
"""Sixty roundings of float32; sums of at most a few hundred products."""

if library.loaded() is None:
    pytest.skip(f"no C++ compiler: {library.describe()}", allow_module_level=True)


@pytest.mark.parametrize("strong", STRENGTHS)
@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
@pytest.mark.parametrize("mode", MODES)
def test_matches_the_recurrence(mode: str, packed: bool, strong: float) -> None:
    lengths = (23, 0, 1, 16, 9) if packed else ()
    inputs = make(mode, lengths=lengths, length=45, strong=strong, dtype=torch.float32)
    assert_matches(recurrence, inputs, TOLERANCE, chunk=16)


@pytest.mark.parametrize("state", [False, True], ids=["zero", "state"])
@pytest.mark.parametrize("dims", [(1, 1), (5, 3), (16, 33), (96, 48), (130, 65)])
@pytest.mark.parametrize("lengths", [(1,), (64,), (65,), (130, 64, 1, 0, 77)])
@pytest.mark.parametrize("mode", MODES)
def test_matches_in_every_shape(
    mode: str, lengths: tuple[int, ...], dims: tuple[int, int], state: bool
) -> None:
    packed = () if len(lengths) == 1 else lengths
    inputs = make(
        mode,
        lengths=packed,
        length=sum(lengths),
        key_dim=dims[0],
        value_dim=dims[1],
        strong=-20.0,
        state=state,
        dtype=torch.float32,
    )
    assert_matches(recurrence, inputs, TOLERANCE)


@pytest.mark.parametrize("mode", ["head", "head_t", "channel"])
@pytest.mark.parametrize("nats", [-30.0, -80.0, -1e4])
def test_constant_strong_decay_keeps_relative_accuracy(mode: str, nats: float) -> None:
    """The decay's gradient is then of order exp(nats), far below one rounding of q * dq."""
    inputs = make(mode, length=40, strong=nats, share=1.0, dtype=torch.float32)
    assert_matches(recurrence, inputs, TOLERANCE, chunk=16)


@pytest.mark.parametrize("mode", MODES)
def test_long_sequences_do_not_drift(mode: str) -> None:
    inputs = make(mode, batch=1, length=3000, heads=1, dtype=torch.float32, strong=-20.0)
    assert_matches(recurrence, inputs, 1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_is_rounded_once(mode: str) -> None:
    inputs = make(mode, length=45, dtype=torch.bfloat16)
    actual = computed(recurrence, inputs)
    assert actual["o"].dtype == actual["dq"].dtype == torch.bfloat16
    assert actual["final_state"].dtype == torch.float32
    assert_matches(recurrence, inputs, 2**-9)


def hgrn2(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, **others: Tensor | None
) -> tuple[Tensor, Tensor]:
    """HGRN2 by the definition: k holds the gate logits, decay the bounds."""
    key, log_factor = hgrn2_gate(k, decay)
    return recurrent_reference(q, key, v, log_factor, **others)


@pytest.mark.parametrize("scale", [1.0, 30.0], ids=["usual", "saturated"])
@pytest.mark.parametrize("bound", [0.0, 0.4])
@pytest.mark.parametrize("lengths", [(), (23, 0, 40)], ids=["batch", "packed"])
def test_gate(lengths: tuple[int, ...], bound: float, scale: float) -> None:
    inputs = make("none", lengths=lengths, length=70, key_dim=20, dtype=torch.float32)
    k = inputs["k"]
    assert k is not None
    g = torch.Generator().manual_seed(1)
    inputs["decay"] = bound + 0.3 * torch.rand(2, 20, generator=g) * (bound > 0)
    inputs["k"] = scale * k
    expected, actual = exact(inputs, hgrn2), computed(recurrence, inputs)
    for name, value in expected.items():
        assert error(actual[name], value) <= 20 * TOLERANCE, name


def cosine(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    *,
    initial_state: Tensor,
    **others: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The cosine form by the definition: decay holds the angles."""
    bounds, offset = others["cu_seqlens"], others["position_offset"]
    assert offset is not None
    edges = [i * q.shape[1] for i in range(len(q) + 1)] if bounds is None else bounds.tolist()
    flat = [x.flatten(0, 1) for x in (q, k, v)]
    o: list[Tensor] = []
    final: list[Tensor] = []
    for n in range(len(edges) - 1):
        places = torch.arange(edges[n + 1] - edges[n]) + offset[n if len(offset) > 1 else 0]
        a, b, c = (x[edges[n] : edges[n + 1]][None] for x in flat)
        a, b = lrpe(a, decay, places), lrpe(b, decay, places)
        one, state = recurrent_reference(a, b, c, None, initial_state[n : n + 1])
        o.append(one[0])
        final.append(state)
    return torch.cat(o).view(v.shape), torch.cat(final)


@pytest.mark.parametrize("kernel", [recurrence, rotated], ids=["native", "torch"])
@pytest.mark.parametrize("lengths", [(), (23, 0, 47)], ids=["batch", "packed"])
@pytest.mark.parametrize("offsets", [(0,), (3, 1000, 7)], ids=["start", "continued"])
def test_cosine(offsets: tuple[int, ...], lengths: tuple[int, ...], kernel: ModuleType) -> None:
    inputs = make("none", batch=3, lengths=lengths, length=70, key_dim=10, dtype=torch.float32)
    g = torch.Generator().manual_seed(1)
    inputs["decay"] = torch.rand(2, 10, generator=g)
    inputs["position_offset"] = torch.tensor(offsets)
    inputs["initial_state"] = torch.randn(3, 2, 20, 6, generator=g)
    expected, actual = exact(inputs, cosine), computed(kernel, inputs)
    # PyTorch's angles are in float32: 1000 radians are good to 3e-5 of a turn.
    tolerance = 20 * TOLERANCE if kernel is recurrence else 2e-4
    for name, value in expected.items():
        assert error(actual[name], value) <= tolerance, name


def test_threads_change_no_bit() -> None:
    inputs = make("channel", batch=3, length=150, heads=5, dtype=torch.float32)
    threads = torch.get_num_threads()
    results: list[dict[str, Tensor]] = []
    try:
        for number in (1, 4):
            torch.set_num_threads(number)
            results.append(computed(recurrence, inputs))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


@pytest.mark.parametrize("mode", MODES)
def test_strided_inputs(mode: str) -> None:
    inputs = make(mode, length=33, dtype=torch.float32)
    turned: Inputs = {
        name: x.transpose(1, -1).contiguous().transpose(1, -1)
        if x is not None and x.ndim == 4
        else x
        for name, x in inputs.items()
    }
    strided = computed(recurrence, turned)
    for name, value in computed(recurrence, inputs).items():
        assert torch.equal(value, strided[name]), name


@pytest.mark.parametrize("mode", MODES)
def test_zero_tokens(mode: str) -> None:
    inputs = make(mode, length=0, dtype=torch.float32)
    actual = computed(recurrence, inputs)
    assert actual["o"].shape == (2, 0, 2, 6)
    assert torch.equal(actual["final_state"], inputs["initial_state"])  # pyright: ignore
    assert torch.equal(actual["dinitial_state"], cotangents(inputs)[1])


@pytest.mark.parametrize("mode", ["head", "head_t", "channel"])
def test_growing_states_are_refused(mode: str) -> None:
    inputs = make(mode, dtype=torch.float32)
    decay = inputs["decay"]
    assert decay is not None
    decay.view(-1)[1] = 0.25
    with pytest.raises(ValueError, match=r"decay=0\.25 at its largest"):
        recurrence.forward(Call(**inputs))  # pyright: ignore[reportArgumentType]


def test_nan_is_not_hidden() -> None:
    inputs = make("channel", dtype=torch.float32)
    decay = inputs["decay"]
    assert decay is not None
    decay[0, 3, 0, 1] = torch.nan
    o = computed(recurrence, inputs)["o"]
    assert o[0, 3:, 0].isnan().all()
    assert not o[1].isnan().any()


def modules(inputs: Inputs) -> str:
    call = Call(**inputs)  # pyright: ignore[reportArgumentType]
    return launch.choose(call, "cpu").forward.__module__


def test_what_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.VARIABLE, "auto")
    assert modules(make("none", dtype=torch.float32)) == "models.kernels.native.recurrence"
    assert modules(make("none", dtype=torch.bfloat16)) == "models.kernels.native.recurrence"
    assert modules(make("none", dtype=torch.float64)) == "models.kernels.chunked"
    assert modules(make("none", dtype=torch.float16)) == "models.kernels.chunked"
    monkeypatch.setenv(library.VARIABLE, "torch")
    assert modules(make("none", dtype=torch.float32)) == "models.kernels.chunked"
    assert library.describe() == f"torch ({library.VARIABLE}=torch)"
    monkeypatch.setenv(library.VARIABLE, "fast")
    with pytest.raises(library.NativeError, match="must be one of auto, native, torch"):
        modules(make("none", dtype=torch.float32))


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [("/nowhere/c++", "cannot be built"), ("/bin/false", "/bin/false fails: no message")],
)
def test_a_machine_without_a_compiler(compiler: str, reason: str, tmp_path: Path) -> None:
    """PyTorch's form runs and says why; `native` is an error."""
    code = (
        "from models.kernels.native import library\n"
        "print(library.loaded(), library.describe())\n"
        "import os; os.environ[library.VARIABLE] = 'native'\n"
        "library.loaded()"
    )
    root = str(Path(__file__).resolve().parents[3])
    environment = {**os.environ, "CXX": compiler, "XDG_CACHE_HOME": str(tmp_path)}
    environment |= {"PYTHONPATH": root, library.VARIABLE: "auto"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout.startswith("None torch (")
    assert reason in done.stdout
    assert "NativeError: LINSCALE_CPU_KERNELS=native, but " in done.stderr

"""Per-channel-decay Triton kernels in the interpreter against the float64 recurrence.

Errors are RMS ratios |x - reference| / |reference|. float32: 1e-5. 16 bits: 2e-2, because operands
are bfloat16. No decay, however strong, loosens them: nothing in the kernels is floored or clamped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from models.kernels import launch
from models.kernels.call import Call
from models.kernels.reference import recurrent_reference
from models.kernels.triton import vector_tiles
from models.kernels.triton.common import interpreted
from models.kernels.triton.vector_launch import backward, forward

pytestmark = [
    pytest.mark.usefixtures("poison"),
    pytest.mark.skipif(not interpreted(), reason="needs TRITON_INTERPRET=1"),
]

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One input: shapes, decay and states."""

    dtype: torch.dtype = torch.float32
    batch: int = 1
    tokens: int = 70
    heads: int = 2
    key_dim: int = 16
    value_dim: int = 16
    initial: bool = True
    cu_seqlens: tuple[int, ...] | None = None
    strength: str = "mild"

    def __str__(self) -> str:
        packed = "" if self.cu_seqlens is None else "-packed"
        return (
            f"{str(self.dtype)[6:]}-T{self.tokens}-{self.key_dim}x{self.value_dim}"
            f"-{self.strength}{packed}{'' if self.initial else '-zero'}"
        )


def log_decay(strength: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Log decays in nats."""
    uniform = torch.rand(shape, generator=generator)
    match strength:
        case "mild":
            return -0.2 * uniform
        case "slow":  # remembers thousands of tokens
            return -1e-4 * uniform
        case "resets":  # one channel in ten forgets nearly everything at a token
            return torch.where(uniform < 0.1, -20.0, -0.05 * uniform)
        case "zeros":  # or exactly everything
            return torch.where(uniform < 0.1, -torch.inf, -0.05 * uniform)
        case "mixed":  # every magnitude side by side
            return -torch.exp(12 * uniform - 6)
        case _:
            return torch.full(shape, float(strength))


def error(actual: Tensor, expected: Tensor) -> float:
    """RMS ratio; references below float32's normal numbers must be met absolutely."""
    return ((actual.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def check(case: Case, seed: int = 0) -> None:
    """Forward and every gradient of one case, with a gradient of the final state too."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, dtype: torch.dtype = case.dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    b, t, h, kd, vd = case.batch, case.tokens, case.heads, case.key_dim, case.value_dim
    sequences = b if case.cu_seqlens is None else len(case.cu_seqlens) - 1
    cu_seqlens = None
    if case.cu_seqlens is not None:
        cu_seqlens = torch.tensor(case.cu_seqlens, dtype=torch.int32)
    q = random(b, t, h, kd) * kd**-0.5
    k, v = random(b, t, h, kd), random(b, t, h, vd)
    decay = log_decay(case.strength, (b, t, h, kd), generator)
    initial = random(sequences, h, kd, vd, dtype=torch.float32) if case.initial else None
    do, dfinal = random(b, t, h, vd), random(sequences, h, kd, vd, dtype=torch.float32)

    exact: list[Any] = [
        None if x is None else x.double().requires_grad_() for x in (q, k, v, decay, initial)
    ]
    o, final = recurrent_reference(*exact, cu_seqlens=cu_seqlens)
    leaves = [x for x in exact if x is not None]
    expected = torch.autograd.grad([o, final], leaves, [do.double(), dfinal.double()])

    call = Call(q, k, v, decay, initial, cu_seqlens)
    actual_o, actual_final, states = forward(call)
    results = backward(call, states, do, dfinal)
    assert results[3] is not None
    assert [x.dtype for x in results[:3]] == [case.dtype] * 3
    assert results[3].dtype == torch.float32
    assert (results[4] is None) == (initial is None)
    names = ["o", "final", "dq", "dk", "dv", "ddecay", "dinitial"]
    actual = [actual_o, actual_final, *(x for x in results if x is not None)]
    references = [o.detach(), final.detach(), *expected]
    errors: dict[str, float] = {}
    for name, x, y in zip(names, actual, references, strict=False):
        assert torch.isfinite(x).all(), f"{case}: {name} has NaN or inf"
        errors[name] = error(x, y)
    if case.strength == "zeros":
        assert (results[3][torch.isinf(decay)] == 0).all()
    bad = {name: e for name, e in errors.items() if not e <= TOLERANCE[case.dtype]}
    assert not bad, f"{case}: {bad}, all {errors}"


STRENGTHS = ("mild", "slow", "resets", "zeros", "mixed", "-5", "-10", "-30", "-1e4")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_decays(strength: str, dtype: torch.dtype) -> None:
    check(Case(strength=strength, dtype=dtype, heads=1, tokens=135))


def test_float16() -> None:
    check(Case(dtype=torch.float16, strength="mixed"))


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 128, 129, 257])
def test_lengths(tokens: int) -> None:
    check(Case(tokens=tokens, heads=1, strength="resets"))


@pytest.mark.parametrize(
    ("key_dim", "value_dim"), [(1, 1), (16, 40), (40, 16), (24, 100), (100, 24)]
)
def test_head_dimensions(key_dim: int, value_dim: int) -> None:
    check(Case(key_dim=key_dim, value_dim=value_dim, heads=1, tokens=70))


@pytest.mark.parametrize(
    ("dtype", "initial"), [(torch.float32, True), (torch.float32, False), (torch.bfloat16, True)]
)
def test_packed_sequences(dtype: torch.dtype, initial: bool) -> None:
    """Empty, one-token, tile-sized and two-chunk sequences in one row."""
    bounds = (0, 0, 1, 65, 65, 200)
    packed = Case(tokens=200, heads=1, cu_seqlens=bounds, strength="resets")
    check(replace(packed, dtype=dtype, initial=initial))


def test_batch_without_initial_state() -> None:
    check(Case(batch=2, heads=3, tokens=100, initial=False))


def test_no_tokens_pass_the_state_through() -> None:
    empty = torch.zeros(2, 0, 1, 16)
    initial = torch.randn(2, 1, 16, 16)
    call = Call(empty, empty, empty, empty, initial)
    o, final, states = forward(call)
    assert o.shape == empty.shape
    assert torch.equal(final, initial)
    *_, dinitial = backward(call, states, empty, initial)
    assert dinitial is not None
    assert torch.equal(dinitial, initial)


def test_any_strides() -> None:
    """Transposed, expanded and sliced inputs give what contiguous ones give, bit for bit."""
    torch.manual_seed(0)
    shape = (2, 70, 2, 16)
    q = torch.randn(2, 2, 70, 16).transpose(1, 2)
    k = torch.randn(*shape, 2)[..., 1]
    v = torch.randn(2, 1, 2, 16).expand(shape)
    decay = -torch.rand(2, 70, 16, 2).transpose(2, 3)
    do = torch.ones(()).expand(shape)
    initial, dfinal = torch.randn(2, 2, 2, 16, 16).transpose(3, 4)
    given: list[Any] = [q, k, v, decay, initial, None]
    assert not any(x.is_contiguous() for x in (*given[:5], do, dfinal))
    copied: list[Any] = [x if x is None else x.contiguous() for x in given]
    o, final, states = forward(Call(*given))
    o2, final2, states2 = forward(Call(*copied))
    differentiate: Any = backward
    results = differentiate(Call(*given), states, do, dfinal)
    results2 = differentiate(Call(*copied), states2, do.contiguous(), dfinal.contiguous())
    assert torch.equal(o, o2)
    assert torch.equal(final, final2)
    assert all(x is not None and x.equal(y) for x, y in zip(results, results2, strict=True))


def test_a_sequence_split_anywhere_carries_its_state() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 150, 1, 16) for _ in range(3))
    decay = log_decay("mixed", (1, 150, 1, 16), torch.Generator().manual_seed(1))
    whole, final, _ = forward(Call(q, k, v, decay))
    for cut in (1, 77):
        first, state, _ = forward(Call(*(x[:, :cut] for x in (q, k, v, decay))))
        rest = (q[:, cut:], k[:, cut:], v[:, cut:], decay[:, cut:])
        second, last, _ = forward(Call(*rest, state))
        assert error(torch.cat([first, second], 1), whole.double()) < 1e-6
        assert error(last, final.double()) < 1e-6


def test_no_token_changes_what_came_before() -> None:
    torch.manual_seed(0)
    parts = [torch.randn(1, 140, 1, 16) for _ in range(3)]
    parts.append(-torch.rand(1, 140, 1, 16))
    before, _, _ = forward(Call(*parts))
    for part in parts:
        part[:, 70] = -part[:, 70].abs() - 1
    after, _, _ = forward(Call(*parts))
    assert torch.equal(before[:, :70], after[:, :70])
    assert not torch.equal(before[:, 70], after[:, 70])


def test_states_are_stored_every_128_tokens() -> None:
    x = torch.zeros(1, 300, 2, 16, dtype=torch.bfloat16)
    _, _, states = forward(Call(x, x, x, x))
    assert states.shape == (3, 2, 16, 16)
    assert states.dtype == torch.bfloat16


def test_dispatch_takes_per_channel_decays_here() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 40, 1, 16) for _ in range(3))
    decay = -torch.rand(1, 40, 1, 16)
    call = Call(q, k, v, decay)
    kernels = launch.choose(call, "cuda")
    o, final, states = kernels.forward(call)
    o2, final2, _ = forward(call)
    assert torch.equal(o, o2)
    assert torch.equal(final, final2)
    results: tuple[Any, ...] = kernels.backward(call, states, o, None, True)
    expected: tuple[Any, ...] = backward(call, states, o, None)
    assert all(torch.equal(x, y) for x, y in zip(results[:4], expected[:4], strict=True))


@pytest.mark.parametrize("bad", ["decay", "dtype", "state"])
def test_wrong_arguments_are_named(bad: str) -> None:
    x = torch.zeros(1, 8, 2, 16)
    decay = torch.zeros(1, 8, 2, 8) if bad == "decay" else x
    q = x.double() if bad == "dtype" else x
    state = torch.zeros(1, 2, 16, 8) if bad == "state" else None
    with pytest.raises(ValueError, match=r"has shape|have dtypes"):
        forward(Call(q, x, x, decay, state))


@triton.jit
def _scan_kernel(x, before, upto, REVERSE: tl.constexpr, PRODUCT: tl.constexpr):
    at = tl.arange(0, 8)[:, None] * 4 + tl.arange(0, 4)[None, :]
    value = tl.load(x + at)
    if PRODUCT:
        first, second = tl.associative_scan(
            (tl.full(value.shape, 1.0, tl.float32), value),
            0,
            vector_tiles._append_product,
            reverse=REVERSE,  # pyright: ignore[reportArgumentType]
        )
    else:
        first, second = vector_tiles.running_sum(value, REVERSE)
    tl.store(before + at, first)
    tl.store(upto + at, second)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("product", [False, True])
def test_scans_as_the_interpreter_runs_them(
    reverse: bool, product: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The suite's NumPy stand-in for the pair scans equals the interpreter's own, in Python."""
    from triton.runtime.interpreter import ScanOps

    x = torch.rand(8, 4)
    quick, slow = ([torch.empty(8, 4), torch.empty(8, 4)] for _ in range(2))
    launch: Any = _scan_kernel[(1,)]
    launch(x, *quick, REVERSE=reverse, PRODUCT=product)

    def element_by_element(self: ScanOps, inputs: tuple[tl.tensor, ...]) -> list[tl.tensor]:
        def flip(parts: list[tl.tensor] | tuple[tl.tensor, ...]) -> list[tl.tensor]:
            if not self.reverse:
                return list(parts)
            return [self.to_tensor(p.handle.data[::-1].copy(), p.dtype) for p in parts]

        return flip(self.generic_scan(flip(inputs)))

    monkeypatch.setattr(ScanOps, "apply_impl", element_by_element)
    launch(x, *slow, REVERSE=reverse, PRODUCT=product)
    for a, b in zip(quick, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
    assert (quick[0][-1 if reverse else 0] == float(product)).all()


FULL = [
    Case(
        dtype=dtype,
        strength=strength,
        key_dim=key_dim,
        value_dim=value_dim,
        initial=initial,
        tokens=tokens,
        cu_seqlens=(0, tokens // 3, tokens // 3, tokens) if packed else None,
    )
    for dtype in TOLERANCE
    for strength in STRENGTHS
    for key_dim, value_dim in [(32, 32), (128, 64), (72, 200)]
    for initial, tokens, packed in [(True, 200, False), (False, 385, True)]
]


@pytest.mark.slow
@pytest.mark.parametrize("case", FULL, ids=str)
def test_full_matrix(case: Case) -> None:
    check(case, seed=1)

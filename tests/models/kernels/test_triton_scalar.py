"""Scalar-decay Triton kernels in the interpreter against the float64 recurrence.

Errors are RMS ratios |x - reference| / |reference|. float32: 1e-5. 16 bits: 2e-2, because
operands, states between pieces and outputs are rounded to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from models.kernels.call import Call
from models.kernels.reference import recurrent_reference
from models.kernels.triton import scalar_launch
from models.kernels.triton.common import interpreted

pytestmark = [
    pytest.mark.usefixtures("poison"),
    pytest.mark.skipif(not interpreted(), reason="needs TRITON_INTERPRET=1 (test_gpu_scalar runs)"),
]

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One input: shapes, decay and states."""

    mode: str
    dtype: torch.dtype = torch.float32
    batch: int = 1
    tokens: int = 70
    heads: int = 2
    key_dim: int = 16
    value_dim: int = 16
    initial: bool = True
    cu_seqlens: tuple[int, ...] | None = None
    segment: int | None = None
    strength: str = "mild"

    def __str__(self) -> str:
        packed = "" if self.cu_seqlens is None else "-packed"
        cut = "" if self.segment is None else f"-cut{self.segment}"
        return (
            f"{self.mode}-{str(self.dtype)[6:]}-T{self.tokens}-{self.key_dim}x{self.value_dim}"
            f"-{self.strength}{packed}{cut}{'' if self.initial else '-zero'}"
        )


def log_decay(case: Case, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Log decays in nats, exact in float32."""
    uniform = torch.rand(shape, generator=generator, dtype=torch.float32).double()
    match case.strength:
        case "mild":
            decay = -0.1 * uniform
        case "resets":  # one token in ten forgets nearly everything
            decay = torch.where(uniform < 0.1, -20.0, -0.05 * uniform)
        case "zeros":  # one token in ten forgets exactly everything
            decay = torch.where(uniform < 0.1, -torch.inf, -0.05 * uniform)
        case strength:
            decay = torch.full(shape, float(strength), dtype=torch.float64)
    return decay.float().double()


def error(actual: Tensor, expected: Tensor) -> float:
    """RMS ratio; exact zeros must be met within float32's smallest numbers."""
    difference = (actual.double() - expected).norm()
    return (difference / expected.norm().clamp_min(1e-30)).item()


def check(case: Case, seed: int = 0) -> None:
    """Forward and every gradient of one case, both states always in play."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, dtype: torch.dtype = case.dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).double()

    b, t, h, kd, vd = case.batch, case.tokens, case.heads, case.key_dim, case.value_dim
    sequences = b if case.cu_seqlens is None else len(case.cu_seqlens) - 1
    cu_seqlens = None if case.cu_seqlens is None else torch.tensor(case.cu_seqlens)
    q = (random(b, t, h, kd) * kd**-0.5).to(case.dtype).double()
    k, v = random(b, t, h, kd), random(b, t, h, vd)
    shape = {"none": None, "head": (h,), "head_t": (b, t, h)}[case.mode]
    decay = None if shape is None else log_decay(case, shape, generator)
    initial = random(sequences, h, kd, vd, dtype=torch.float32) if case.initial else None
    leaves = [x.requires_grad_() for x in (q, k, v, decay, initial) if x is not None]
    o, final = recurrent_reference(q, k, v, decay, initial, cu_seqlens)
    do, dfinal = random(*o.shape), random(*final.shape, dtype=torch.float32)
    expected = torch.autograd.grad([o, final], leaves, [do, dfinal])

    def cast(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        return None if x is None else x.detach().to(dtype)

    inputs: list[Any] = [cast(x, case.dtype) for x in (q, k, v)]
    inputs += [cast(decay, torch.float32), cast(initial, torch.float32), cu_seqlens]
    call = Call(*inputs)
    actual_o, actual_final, states = scalar_launch.forward(call, segment=case.segment)
    gradients = scalar_launch.backward(
        call,
        states=states,
        do=do.to(case.dtype),
        dfinal_state=dfinal.float(),
        segment=case.segment,
    )
    names = ["o", "final", "dq", "dk", "dv", "ddecay", "dinitial"]
    given = [True] * 5 + [decay is not None, initial is not None]
    results = [actual_o, actual_final, *gradients]
    references = [o.detach(), final.detach(), *expected]
    names = [name for name, there in zip(names, given, strict=True) if there]
    results = [x for x in results if x is not None]
    assert len(results) == len(references)
    errors = {name: error(x, y) for name, x, y in zip(names, results, references, strict=True)}
    limits = dict.fromkeys(names, TOLERANCE[case.dtype])
    # The reference gives NaN where a factor is exactly zero (0 * inf); the true gradient is zero.
    if case.strength == "zeros" and decay is not None:
        dead = torch.isinf(decay)
        ddecay = results[names.index("ddecay")]
        wanted = references[names.index("ddecay")]
        assert (ddecay[dead] == 0).all()
        errors["ddecay"] = error(ddecay[~dead], wanted[~dead])
    assert all(torch.isfinite(x).all() for x in results)
    bad = {name: e for name, e in errors.items() if not e <= limits[name]}
    assert not bad, f"{case}: {bad}, all {errors}"


MODES = ("none", "head", "head_t")
PACKED = (0, 3, 3, 70, 150)

DEFAULT = [
    *(Case(mode=mode, value_dim=24, key_dim=20) for mode in MODES),
    *(Case(mode=mode, dtype=torch.bfloat16, tokens=64, heads=1, key_dim=32) for mode in MODES),
    *(Case(mode=mode, tokens=300, heads=1, segment=128) for mode in MODES),
    *(Case(mode=mode, tokens=150, heads=1, cu_seqlens=PACKED, segment=128) for mode in MODES),
    *(Case(mode=mode, tokens=1, initial=False) for mode in MODES),
    Case(mode="head", dtype=torch.float16, batch=2, heads=1),
    Case(mode="head", key_dim=1),
    *(Case(mode="head", strength=s, heads=1) for s in ("-10", "-30", "-1e4")),
    *(Case(mode="head_t", strength=s, heads=1) for s in ("-10", "-1e4", "resets", "zeros")),
    Case(mode="head_t", strength="resets", dtype=torch.bfloat16, tokens=130, heads=1),
]

FULL = [
    Case(
        mode=mode, dtype=dtype, tokens=tokens, key_dim=kd, value_dim=vd, batch=batch,
        cu_seqlens=cu, segment=segment, strength=strength, initial=initial, heads=1,
    )
    for mode in MODES
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for tokens, kd, vd in ((63, 16, 16), (64, 64, 64), (200, 60, 36), (129, 128, 64), (65, 32, 160))
    for batch, cu, segment in ((1, None, None), (2, None, 128), (1, (0, 1, 1, 40, tokens), 128))
    for strength in (("mild",) if mode == "none" else ("mild", "-30", "resets"))
    for initial in (True,)
    if not (mode == "head" and strength == "resets")
]  # fmt: skip


@pytest.mark.parametrize("case", DEFAULT, ids=str)
def test_matches_recurrence(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", FULL, ids=str)
def test_matches_recurrence_full(case: Case) -> None:
    check(case, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_largest_heads(mode: str) -> None:
    check(Case(mode=mode, key_dim=256, value_dim=256, tokens=130, heads=1, segment=128))


def test_strides_are_followed_without_copies() -> None:
    """Inputs as views: channels first, heads before tokens, every second token, expanded do."""
    generator = torch.Generator().manual_seed(2)
    q = torch.randn(1, 2, 16, 70, generator=generator).permute(0, 3, 1, 2)
    k = torch.randn(1, 2, 70, 16, generator=generator).transpose(1, 2)
    v = torch.randn(1, 140, 2, 16, generator=generator)[:, ::2]
    decay = -torch.rand(2, 70, generator=generator).T[None]
    initial = torch.randn(2, 16, 16, 1, generator=generator).permute(3, 0, 2, 1)
    do = torch.randn(1, 70, 1, 16, generator=generator).expand(1, 70, 2, 16)
    dfinal = torch.randn(2, 1, 16, 16, generator=generator).transpose(0, 1)
    views: list[Any] = [q, k, v, decay, initial, None]
    dense: list[Any] = [None if x is None else x.contiguous() for x in views]
    outputs = scalar_launch.forward(Call(*views))
    expected = scalar_launch.forward(Call(*dense))
    gradients = scalar_launch.backward(Call(*views), states=outputs[2], do=do, dfinal_state=dfinal)
    expected_gradients = scalar_launch.backward(
        Call(*dense),
        states=expected[2],
        do=do.contiguous(),
        dfinal_state=dfinal.contiguous(),
    )
    for actual, wanted in zip(
        (*outputs[:2], *gradients), (*expected[:2], *expected_gradients), strict=True
    ):
        torch.testing.assert_close(actual, wanted, rtol=1e-6, atol=1e-6)


def test_absent_gradients() -> None:
    """No final-state gradient is a zero one; a constant slope skips its gradient."""
    generator = torch.Generator().manual_seed(3)
    q, k, v, do = torch.randn(4, 1, 20, 1, 16, generator=generator).unbind(0)
    decay = torch.tensor([-0.3])
    call = Call(q, k, v, decay)
    o, final, states = scalar_launch.forward(call)
    absent = scalar_launch.backward(call, states, do, None, False)
    zero = scalar_launch.backward(call, states, do, torch.zeros_like(final), True)
    for a, b in zip(absent[:3], zero[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert absent[3:] == (None, None)
    assert zero[3] is not None
    assert zero[3].shape == (1,)
    assert o.isfinite().all()


def test_empty_sequence_keeps_its_state() -> None:
    """A packed sequence of no tokens passes its state and its gradient through."""
    generator = torch.Generator().manual_seed(4)
    q, k, v, do = torch.randn(4, 1, 5, 1, 16, generator=generator).unbind(0)
    initial = torch.randn(2, 1, 16, 16, generator=generator)
    cu_seqlens = torch.tensor([0, 0, 5])
    call = Call(q, k, v, None, initial, cu_seqlens)
    _, final, states = scalar_launch.forward(call)
    torch.testing.assert_close(final[0], initial[0], rtol=0, atol=0)
    dfinal = torch.randn(2, 1, 16, 16, generator=generator)
    *_, dinitial = scalar_launch.backward(call, states, do, dfinal)
    assert dinitial is not None
    torch.testing.assert_close(dinitial[0], dfinal[0], rtol=0, atol=0)


def test_causal() -> None:
    """Changing a token changes no output before it, bit for bit."""
    generator = torch.Generator().manual_seed(5)
    q, k, v = torch.randn(3, 1, 100, 1, 16, generator=generator).unbind(0)
    decay = -torch.rand(1, 100, 1, generator=generator)
    before, _, _ = scalar_launch.forward(Call(q, k, v, decay))
    for x in (q, k, v):
        x[:, 80] += 1.0
    decay[:, 80] -= 1.0
    after, _, _ = scalar_launch.forward(Call(q, k, v, decay))
    assert torch.equal(before[:, :80], after[:, :80])
    assert not torch.equal(before[:, 80:], after[:, 80:])


@pytest.mark.parametrize(
    ("tokens", "programs", "pieces"),
    [
        (8192, 192, 1),
        # 264 at once: 4 pieces are one wave of 4096 + 128, 5 are two of 3328 + 128.
        (16384, 64, 4),
        # 2 pieces: one wave of 4224; 3: two of 2944; 5: two of 1792; 7: three of 1408.
        (8192, 100, 5),
        (8192, 4, 32), (500, 1, 1), (0, 8, 1), (8192, 0, 1),
    ],
)  # fmt: skip
def test_segments_fill_the_gpu(tokens: int, programs: int, pieces: int) -> None:
    """Sequences are cut only where heads are few, into pieces of at least 256 tokens."""
    segment = scalar_launch.segment_length(tokens, programs, sms=132)
    assert segment % 128 == 0
    assert max(-(-tokens // segment), 1) == pieces


def test_bad_inputs_are_named() -> None:
    x = torch.zeros(1, 4, 2, 16)
    with pytest.raises(ValueError, match="decay has shape"):
        scalar_launch.forward(Call(x, x, x, torch.zeros(3)))
    with pytest.raises(ValueError, match="float64"):
        scalar_launch.forward(Call(x.double(), x.double(), x.double()))
    wide = torch.zeros(1, 4, 1, 300)
    with pytest.raises(ValueError, match="head dimensions K=300"):
        scalar_launch.forward(Call(wide, wide, wide))
    with pytest.raises(ValueError, match="initial_state has shape"):
        scalar_launch.forward(Call(x, x, x, None, torch.zeros(1, 2, 16, 8)))
    rows = x.expand(2, 4, 2, 16)
    with pytest.raises(ValueError, match="B = 1"):
        scalar_launch.forward(Call(rows, rows, rows, cu_seqlens=torch.tensor([0, 4])))


def test_one_broadcast_key_channel() -> None:
    """TPE's call: queries and keys are one 1 in memory, expanded over everything."""
    generator = torch.Generator().manual_seed(0)
    v, do = torch.randn(2, 1, 40, 2, 24, generator=generator).unbind()
    ones = torch.ones(1).expand(1, 40, 2, 1)
    decay = torch.tensor([-0.1, -0.7])
    state = torch.randn(1, 2, 1, 24, generator=generator)
    leaves = [x.double().requires_grad_() for x in (v, decay, state)]
    o, final = recurrent_reference(ones.double(), ones.double(), leaves[0], *leaves[1:])
    expected = torch.autograd.grad(o, leaves, do.double())
    call = Call(ones, ones, v, decay, state)
    found, found_final, states = scalar_launch.forward(call)
    gradients = scalar_launch.backward(call, states, do, None)
    for x, y in zip((found, found_final, *gradients[2:]), (o, final, *expected), strict=True):
        assert x is not None
        assert error(x, y.detach()) < 1e-5

"""The operators: autograd, `torch.library` rules, compilation, FLOPs, errors, the models' forms."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from models.kernels import launch, operators
from models.kernels.api import (
    cosine_attention,
    hgrn2_attention,
    hgrn2_gate,
    linear_attention,
    linear_attention_step,
)
from models.kernels.reference import recurrent_reference

MODES = ("none", "head", "head_t", "channel")


def arguments(
    mode: str,
    batch: int = 2,
    length: int = 5,
    heads: int = 2,
    key_dim: int = 3,
    value_dim: int = 2,
    dtype: torch.dtype = torch.float64,
    sequences: int | None = None,
) -> list[Tensor | None]:
    """q, k, v, decay, initial_state, all leaves."""
    g = torch.Generator().manual_seed(0)
    shapes = {
        "head": (heads,),
        "head_t": (batch, length, heads),
        "channel": (batch, length, heads, key_dim),
    }

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()

    decay = None
    if mode in shapes:
        decay = -torch.rand(shapes[mode], generator=g, dtype=torch.float64)
        decay = decay.to(dtype).requires_grad_()
    return [
        normal(batch, length, heads, key_dim),
        normal(batch, length, heads, key_dim),
        normal(batch, length, heads, value_dim),
        decay,
        normal(sequences or batch, heads, key_dim, value_dim),
    ]


def gradients(
    run: Callable[..., tuple[Tensor, Tensor]], inputs: list[Tensor | None]
) -> list[Tensor]:
    o, state = run(*inputs)
    leaves = [x for x in inputs if x is not None]
    return [o, state, *torch.autograd.grad(o.sin().sum() + state.square().sum(), leaves)]


@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(mode: str) -> None:
    inputs = arguments(mode)

    def run(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        it = iter(leaves)
        return linear_attention(*(None if x is None else next(it) for x in inputs))  # pyright: ignore

    assert torch.autograd.gradcheck(run, [x for x in inputs if x is not None])


@pytest.mark.parametrize("mode", MODES)
def test_autograd_matches_the_reference(mode: str) -> None:
    inputs = arguments(mode, length=70)
    expected = gradients(recurrent_reference, inputs)
    for a, b in zip(gradients(linear_attention, inputs), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_gradient_through_one_output_alone() -> None:
    inputs = arguments("channel")
    leaves = [x for x in inputs if x is not None]
    for index in (0, 1):
        actual, expected = (
            torch.autograd.grad(
                run(*inputs)[index].sum(),  # pyright: ignore[reportArgumentType]
                leaves,
                materialize_grads=True,
            )
            for run in (linear_attention, recurrent_reference)
        )
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
@pytest.mark.parametrize("mode", MODES)
def test_opcheck(mode: str, packed: bool) -> None:
    cu_seqlens = torch.tensor([0, 3, 3, 20], dtype=torch.int32) if packed else None
    inputs = arguments(
        mode,
        batch=1 if packed else 2,
        length=20,
        dtype=torch.float32,
        sequences=3 if packed else None,
    )
    torch.library.opcheck(operators.linear_attention, (*inputs, cu_seqlens, None))


@pytest.mark.parametrize("state", [False, True])
def test_opcheck_hgrn2(state: bool) -> None:
    q, x, v, _, initial = arguments("none", length=20, dtype=torch.float32)
    bound = torch.rand(2, 3, generator=torch.Generator().manual_seed(1)).mul_(0.5).requires_grad_()
    arguments_ = (q, x, v, bound, initial if state else None, None, None)
    torch.library.opcheck(operators.hgrn2_attention, arguments_)


@pytest.mark.parametrize("mode", MODES)
def test_results_share_no_memory_with_arguments(mode: str) -> None:
    for length in (0, 1, 16):
        inputs = arguments(mode, batch=1, length=length, heads=1)
        given = {x.untyped_storage().data_ptr() for x in inputs if x is not None and x.numel()}
        for x in gradients(linear_attention, inputs):
            assert x.is_contiguous()
            assert x.numel() == 0 or x.untyped_storage().data_ptr() not in given


@pytest.mark.parametrize("mode", MODES)
def test_compiles_without_graph_breaks(mode: str) -> None:
    inputs = arguments(mode, length=20, dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(linear_attention, fullgraph=True, backend="aot_eager")
    expected = gradients(linear_attention, inputs)
    for a, b in zip(gradients(compiled, inputs), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_compiles_with_inductor_and_any_length() -> None:
    """One compilation serves all lengths, of all three forms."""
    torch._dynamo.reset()

    def run(q: Tensor, k: Tensor, v: Tensor, theta: Tensor) -> Tensor:
        bound = theta.sigmoid() * 0.5
        o, _ = linear_attention(q, k, v, torch.nn.functional.logsigmoid(k))
        o = o + hgrn2_attention(q, k, v, bound)[0]
        return o + cosine_attention(q, k, v, theta)[0]

    compiled = torch.compile(run, fullgraph=True, dynamic=True)
    for length in (70, 130):
        q, k, v, _, _ = arguments("none", length=length, dtype=torch.float32)
        leaves = [q, k, v, torch.rand(2, 3, requires_grad=True)]
        expected = torch.autograd.grad(run(*leaves).sum(), leaves)  # pyright: ignore
        actual = torch.autograd.grad(compiled(*leaves).sum(), leaves)  # pyright: ignore
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_flops_are_those_of_the_recurrence() -> None:
    inputs = arguments("head", length=20, dtype=torch.float32)
    counts: list[int] = []
    for run in (linear_attention, recurrent_reference):
        with FlopCounterMode(display=False) as counter:
            gradients(run, inputs)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 3 * 4 * 2 * 20 * 2 * 3 * 2
    with FlopCounterMode(display=False) as counter:
        q, k, v, *_ = (x.to("meta") for x in inputs if x is not None)
        hgrn2_attention(q, k, v, torch.rand(2, 3, device="meta"))
    assert counter.get_total_flops() == 4 * 2 * 20 * 2 * 3 * 2


def test_autocast_leaves_the_kernels_in_float32() -> None:
    inputs = arguments("channel", length=40, dtype=torch.float32)
    expected = gradients(linear_attention, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        actual = gradients(linear_attention, inputs)
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("mode", MODES)
def test_steps_are_the_recurrence(mode: str) -> None:
    q, k, v, decay, state = arguments(mode, length=9)
    assert q is not None
    assert k is not None
    assert v is not None
    assert state is not None
    expected_o, expected_state = recurrent_reference(q, k, v, decay, state)
    for t in range(9):
        now = decay if decay is None or decay.ndim == 1 else decay[:, t]
        o, state = linear_attention_step(q[:, t], k[:, t], v[:, t], state, now)
        torch.testing.assert_close(o, expected_o[:, t], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, expected_state, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spread", [1.0, 8.0, 300.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_hgrn2_form(spread: float, dtype: torch.dtype) -> None:
    """Against the recurrence on hgrn2_gate's keys and decays, differentiated by autograd."""
    q, x, v, _, initial = arguments("none", length=40)
    assert x is not None
    x = (x * spread).detach().requires_grad_()
    bound = torch.rand(2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    bound = bound.mul(0.5).add(0.1).requires_grad_()

    def composed(
        q: Tensor, x: Tensor, v: Tensor, bound: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        k, decay = hgrn2_gate(x, bound)
        return recurrent_reference(q, k, v, decay, state)

    exact = gradients(composed, [q, x, v, bound, initial])
    low = [
        t.detach().to(dtype).requires_grad_() for t in (q, x, v, bound, initial) if t is not None
    ]
    tolerance = 1e-11 if dtype == torch.float64 else 2e-5
    for a, b in zip(gradients(hgrn2_attention, [*low]), exact, strict=True):
        assert (a.double() - b).norm() <= tolerance * b.norm()


def test_hgrn2_at_a_lower_bound_of_zero() -> None:
    """Gates may then close altogether: all results stay finite, and x keeps its gradient."""
    q, x, v, _, initial = arguments("none", length=40, dtype=torch.float32)
    assert x is not None
    x = (x * 100).detach().requires_grad_()
    bound = torch.zeros(2, 3, requires_grad=True)
    actual = gradients(hgrn2_attention, [q, x, v, bound, initial])
    assert all(t.isfinite().all() for t in actual)

    def composed(q: Tensor, x: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        k = torch.sigmoid(-x)
        return recurrent_reference(q, k, v, torch.nn.functional.logsigmoid(x), state)

    exact = [t.detach().double().requires_grad_() for t in (q, x, v, initial) if t is not None]
    expected = gradients(composed, [*exact])
    for a, b in zip(actual[:5], expected[:5], strict=True):  # o, state, dq, dx, dv
        assert (a.double() - b).norm() <= 1e-5 * b.norm()


def test_hgrn2_gate_is_accurate_at_both_ends() -> None:
    x = torch.tensor([-80.0, -20.0, -5.0, 0.0, 5.0, 20.0, 40.0]).view(-1, 1, 1)
    for bound in (0.0, 0.3):
        k, decay = hgrn2_gate(x, torch.full((1, 1), bound))
        exact_k, exact_decay = hgrn2_gate(x.double(), torch.full((1, 1), bound).double())
        # The bound itself is rounded to float32, hence a few roundings more than one.
        torch.testing.assert_close(k.double(), exact_k, rtol=1e-6, atol=0)
        torch.testing.assert_close(decay.double(), exact_decay, rtol=1e-6, atol=0)


def test_cosine_form() -> None:
    """Against the sum over pairs with cos(theta (t - s)), in packed sequences from an offset."""
    g = torch.Generator().manual_seed(3)
    q, k = torch.randn(2, 1, 12, 2, 3, generator=g, dtype=torch.float64).unbind()
    v = torch.randn(1, 12, 2, 4, generator=g, dtype=torch.float64)
    theta = torch.randn(2, 3, generator=g, dtype=torch.float64)
    cu_seqlens = torch.tensor([0, 5, 5, 12], dtype=torch.int32)
    o, _ = cosine_attention(q, k, v, theta, cu_seqlens=cu_seqlens, position_offset=1000)
    expected = torch.zeros_like(o)
    for start, end in ((0, 5), (5, 12)):
        for t in range(start, end):
            for s in range(start, t + 1):
                weight = torch.cos(theta * (t - s))
                score = (q[0, t] * k[0, s] * weight).sum(-1, keepdim=True)
                expected[0, t] += score * v[0, s]
    torch.testing.assert_close(o, expected, rtol=1e-10, atol=1e-10)


def test_cosine_form_carries_its_state() -> None:
    g = torch.Generator().manual_seed(4)
    q, k, v = torch.randn(3, 2, 20, 2, 4, generator=g, dtype=torch.float64).unbind()
    theta = torch.randn(2, 4, generator=g, dtype=torch.float64)
    o, state = cosine_attention(q, k, v, theta)
    first, carried = cosine_attention(q[:, :7], k[:, :7], v[:, :7], theta)
    second, last = cosine_attention(
        q[:, 7:], k[:, 7:], v[:, 7:], theta, initial_state=carried, position_offset=7
    )
    torch.testing.assert_close(torch.cat([first, second], 1), o, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(last, state, rtol=1e-11, atol=1e-11)
    # The same position for both rows, one a row.
    each, _ = cosine_attention(
        q[:, 7:], k[:, 7:], v[:, 7:], theta, initial_state=carried,
        position_offset=torch.tensor([7, 7]),
    )  # fmt: skip
    assert torch.equal(each, second)


def test_cosine_form_on_cuda_is_one_operator() -> None:
    """Tensors without memory on a CUDA device: shapes and FLOPs of the fused form, both ways."""
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        q, k, v = (torch.zeros(2, 20, 3, 8, device="cuda") for _ in range(3))
        theta = torch.zeros(3, 8, device="cuda")
        offset = torch.zeros(1, dtype=torch.int64, device="cuda")
        o, state = cosine_attention(q, k, v, theta)
        kept = torch.zeros(0, device="cuda")
        assert o.shape == v.shape
        assert state.shape == (2, 3, 16, 8)
        assert counter.get_total_flops() == 4 * 2 * 20 * 3 * 16 * 8
        dq, dk, dv, dtheta, dstate = operators.cosine_attention_backward(
            q, k, v, theta, state, None, offset, kept, o, None, True
        )
        shapes = [tuple(x.shape) for x in (dq, dk, dv, dtheta, dstate)]
        assert shapes == [(2, 20, 3, 8)] * 3 + [(3, 8), (2, 3, 16, 8)]
    assert counter.get_total_flops() == 3 * 4 * 2 * 20 * 3 * 16 * 8


Q = torch.zeros(2, 6, 3, 4)
V = torch.zeros(2, 6, 3, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": Q[0]}, r"q has shape \(6, 3, 4\)"),
        ({"k": Q[:, :5]}, r"k has shape \(2, 5, 3, 4\): it must have the shape of q"),
        ({"v": V[:, :, :2]}, r"v has shape \(2, 6, 2, 5\)"),
        (
            {"v": V.double()},
            r"q, k and v have dtypes torch.float32, torch.float32 and torch.float64",
        ),
        ({"q": Q.long(), "k": Q.long(), "v": V.long()}, "convert them to one of torch.float32"),
        ({"decay": torch.zeros(4)}, r"decay has shape \(4,\).*must be \(3,\), \(2, 6, 3\) or"),
        ({"decay": torch.zeros(3).long()}, "decay has dtype torch.int64"),
        ({"decay": torch.full((3,), 0.1)}, "decay=0.1 at its largest"),
        ({"initial_state": torch.zeros(1, 3, 4, 5)}, r"must be .*\(2, 3, 4, 5\)"),
        ({"initial_state": torch.zeros(2, 3, 4, 5, device="meta")}, "initial_state is on meta"),
        ({"cu_seqlens": torch.tensor([0, 6])}, "cu_seqlens is given with a batch of 2"),
        ({"cu_seqlens": torch.tensor([0.0, 6.0])}, "must hold the integer offsets"),
        (
            {"q": Q[:1], "k": Q[:1], "v": V[:1], "cu_seqlens": torch.tensor([0, 4, 3, 6])},
            r"cu_seqlens=\[0, 4, 3, 6\]: must start at 0, never fall",
        ),
        (
            {"q": Q[:1], "k": Q[:1], "v": V[:1], "cu_seqlens": torch.tensor([0, 4, 5])},
            "end at the number of tokens, 6",
        ),
    ],
)
def test_errors_name_the_argument_and_the_remedy(changes: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        linear_attention(**({"q": Q, "k": Q, "v": V} | changes))
    assert "\n" not in str(caught.value)


def test_errors_of_the_models_forms() -> None:
    with pytest.raises(ValueError, match=re.escape("lower_bound has shape (4,)")):
        hgrn2_attention(Q, Q, V, torch.zeros(4))
    with pytest.raises(ValueError, match="gate_logits has shape"):
        hgrn2_attention(Q, Q[:, 1:], V, torch.zeros(3, 4))
    with pytest.raises(ValueError, match="theta has shape"):
        cosine_attention(Q, Q, V, torch.zeros(3))
    with pytest.raises(ValueError, match=r"position_offset has shape \(3,\).*each of the 2"):
        cosine_attention(
            Q, Q, V, torch.zeros(3, 4), position_offset=torch.zeros(3, dtype=torch.int64)
        )
    with pytest.raises(ValueError, match=r"initial_state has shape.*\(2, 3, 8, 5\)"):
        cosine_attention(Q, Q, V, torch.zeros(3, 4), torch.zeros(2, 3, 4, 5))
    with pytest.raises(ValueError, match="q, k, v and state have shapes"):
        linear_attention_step(Q[:, 0], Q[:, 0], V[:, 0], torch.zeros(2, 3, 4, 4))


def test_a_device_without_kernels_is_an_error() -> None:
    with pytest.raises(ValueError, match="the kernels run on the CPU and on CUDA devices"):
        launch.backend(torch.device("mps"))

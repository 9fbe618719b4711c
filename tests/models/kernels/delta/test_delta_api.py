"""The delta rule's operators: autograd, `torch.library` rules, compilation, FLOPs, errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from models.kernels import delta_attention, delta_attention_step, sequence
from models.kernels.delta import chunked, operators
from models.kernels.delta.call import DeltaCall
from models.kernels.delta.reference import recurrent_delta
from tests.support.delta_inputs import MODES, make
from tests.support.recurrences import Inputs


def leaves(inputs: Inputs) -> list[Tensor | None]:
    """q, k, v, beta, decay and initial_state, all leaves."""
    return [
        None if x is None else x.requires_grad_() for n, x in inputs.items() if n != "cu_seqlens"
    ]


def gradients(
    run: Callable[..., tuple[Tensor, Tensor]], inputs: list[Tensor | None]
) -> list[Tensor]:
    o, state = run(*inputs)
    wanted = [x for x in inputs if x is not None]
    return [o, state, *torch.autograd.grad(o.sin().sum() + state.square().sum(), wanted)]


@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(mode: str) -> None:
    inputs = leaves(make(mode, length=5, key_dim=3, value_dim=2))

    def run(*given: Tensor) -> tuple[Tensor, Tensor]:
        it = iter(given)
        return delta_attention(*(None if x is None else next(it) for x in inputs))  # pyright: ignore

    assert torch.autograd.gradcheck(run, [x for x in inputs if x is not None])


@pytest.mark.parametrize("mode", MODES)
def test_gradient_through_one_output_alone(mode: str) -> None:
    inputs = leaves(make(mode, length=70))
    wanted = [x for x in inputs if x is not None]
    for index in (0, 1):
        actual, expected = (
            torch.autograd.grad(run(*inputs)[index].sum(), wanted, materialize_grads=True)  # pyright: ignore
            for run in (delta_attention, recurrent_delta)
        )
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
@pytest.mark.parametrize("mode", MODES)
def test_opcheck(mode: str, packed: bool) -> None:
    inputs = make(mode, lengths=(3, 0, 17) if packed else (), dtype=torch.float32)
    torch.library.opcheck(operators.delta_attention, (*leaves(inputs), inputs["cu_seqlens"]))


@pytest.mark.parametrize("mode", MODES)
def test_results_share_no_memory_with_arguments(mode: str) -> None:
    for length in (0, 1, 16):
        inputs = leaves(make(mode, batch=1, length=length, heads=1))
        given = {x.untyped_storage().data_ptr() for x in inputs if x is not None and x.numel()}
        for x in gradients(delta_attention, inputs):
            assert x.is_contiguous()
            assert x.numel() == 0 or x.untyped_storage().data_ptr() not in given


@pytest.mark.parametrize("mode", MODES)
def test_compiles_without_graph_breaks(mode: str) -> None:
    inputs = leaves(make(mode, dtype=torch.float32))
    torch._dynamo.reset()
    compiled = torch.compile(delta_attention, fullgraph=True, backend="aot_eager")
    expected = gradients(delta_attention, inputs)
    for a, b in zip(gradients(compiled, inputs), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_flops_are_those_of_the_recurrence() -> None:
    inputs = leaves(make("head", dtype=torch.float32))
    counts: list[int] = []
    for run in (delta_attention, recurrent_delta):
        with FlopCounterMode(display=False) as counter:
            gradients(run, inputs)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 3 * 6 * 2 * 20 * 2 * 4 * 6
    with FlopCounterMode(display=False) as counter:
        delta_attention(*(None if x is None else x.to("meta") for x in inputs))  # pyright: ignore
    assert counter.get_total_flops() == 6 * 2 * 20 * 2 * 4 * 6


def test_no_square_of_the_length_is_allocated() -> None:
    """The largest tensor of a call on 4096 tokens, forward and backward, is a few states."""
    sizes: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in tree_leaves(out) if isinstance(x, Tensor))
            return out

    length = 4096
    inputs = make("channel", batch=1, heads=1, length=length, dtype=torch.float32)
    call = DeltaCall(**inputs)  # pyright: ignore[reportArgumentType]
    with Watch():
        o, final, states = chunked.forward(call)
        chunked.backward(call, states, torch.ones_like(o), final)
    assert max(sizes) <= 64 * length


def test_autocast_leaves_the_kernels_in_float32() -> None:
    inputs = leaves(make("channel", length=40, dtype=torch.float32))
    expected = gradients(delta_attention, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        actual = gradients(delta_attention, inputs)
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("mode", MODES)
def test_steps_are_the_recurrence(mode: str) -> None:
    q, k, v, beta, decay, state = (x for n, x in make(mode, length=9).items() if n != "cu_seqlens")
    expected_o, expected_state = recurrent_delta(q, k, v, beta, decay, state)  # pyright: ignore
    for t in range(9):
        row = [x[:, t] for x in (q, k, v, beta)]  # pyright: ignore[reportOptionalSubscript]
        now = None if decay is None else decay[:, t]
        assert state is not None
        before = state.clone()
        o, after = delta_attention_step(*row, state, now)  # pyright: ignore[reportCallIssue]
        assert torch.equal(state, before)
        torch.testing.assert_close(o, expected_o[:, t], rtol=1e-12, atol=1e-12)
        state = after
    torch.testing.assert_close(state, expected_state, rtol=1e-12, atol=1e-12)


Q = torch.zeros(2, 6, 3, 4)
V = torch.zeros(2, 6, 3, 5)
BETA = torch.zeros(2, 6, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": Q[:, :5]}, r"k has shape \(2, 5, 3, 4\): it must have the shape of q"),
        ({"beta": BETA[:, :5]}, r"beta has shape \(2, 5, 3\).*\(2, 6, 3\)"),
        ({"beta": BETA.long()}, "beta has dtype torch.int64: convert it"),
        ({"beta": BETA.to("meta")}, "beta is on meta and q on cpu"),
        ({"decay": torch.zeros(3)}, r"decay has shape \(3,\): the delta rule takes one number a"),
        ({"decay": torch.full((2, 6, 3), 0.1)}, "decay=0.1 at its largest"),
        ({"initial_state": torch.zeros(1, 3, 4, 5)}, r"must be .*\(2, 3, 4, 5\)"),
        ({"cu_seqlens": torch.tensor([0, 6])}, "cu_seqlens is given with a batch of 2"),
    ],
)
def test_errors_name_the_argument_and_the_remedy(changes: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        delta_attention(**({"q": Q, "k": Q, "v": V, "beta": BETA} | changes))
    assert "\n" not in str(caught.value)


def test_errors_of_a_step() -> None:
    with pytest.raises(ValueError, match="q, k, v and state have shapes"):
        delta_attention_step(Q[:, 0], Q[:, 0], V[:, 0], BETA[:, 0], torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"beta has shape \(2, 6, 3\)"):
        delta_attention_step(Q[:, 0], Q[:, 0], V[:, 0], BETA, torch.zeros(2, 3, 4, 5))


def test_split_sequences_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence, "active", lambda: object())
    with pytest.raises(ValueError, match="cannot split sequences over ranks: set"):
        delta_attention(Q, Q, V, BETA)

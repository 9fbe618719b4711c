"""Compiled causal attention against PyTorch's in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.kernels.attention import causal_attention, causal_softmax
from models.kernels.native import library
from tests.support.recurrences import error

if library.loaded() is None:
    pytest.skip(f"no C++ compiler: {library.describe()}", allow_module_level=True)

SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 31, 3, 3, 5),
    (1, 33, 4, 2, 8),
    (2, 97, 6, 1, 24),
    (1, 200, 2, 2, 64),
    (1, 65, 2, 1, 130),
]
"""Batch, tokens, heads, key-value heads and head dimension."""


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


def random(shape: tuple[int, ...], spread: float = 1.0) -> list[Tensor]:
    """q, k, v and the gradient of o."""
    batch, tokens, heads, groups, dim = shape
    g = torch.Generator().manual_seed(0)
    made = [torch.randn(batch, tokens, n, dim, generator=g) for n in (heads, groups, groups, heads)]
    return [spread * made[0], *made[1:]]


def results(tensors: list[Tensor], function: object) -> list[Tensor]:
    """o, dq, dk and dv."""
    *leaves, do = tensors
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    o = function(*leaves)  # pyright: ignore[reportCallIssue]
    return [o.detach(), *torch.autograd.grad(o, leaves, do)]


@pytest.mark.parametrize("spread", [1.0, 40.0], ids=["usual", "sharp"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_float64(shape: tuple[int, ...], spread: float) -> None:
    tensors = random(shape, spread)
    expected = results([x.double() for x in tensors], sdpa)
    own = results(tensors, causal_attention)
    theirs = results(tensors, sdpa)
    for ours, peer, value in zip(own, theirs, expected, strict=True):
        # A single key has no gradient of scores: what is left is rounding, theirs and ours.
        assert error(ours, value) <= max(3 * error(peer, value), 2e-6)


@pytest.mark.parametrize("shape", SHAPES[2:5], ids=str)
def test_bfloat16_is_rounded_once(shape: tuple[int, ...]) -> None:
    tensors = [x.bfloat16() for x in random(shape)]
    expected = results([x.double() for x in tensors], sdpa)
    for ours, value in zip(results(tensors, causal_attention), expected, strict=True):
        assert ours.dtype == torch.bfloat16
        # o is rounded before backward takes it, which the row sums of do * o feel.
        assert error(ours, value) <= 2**-8


def test_tokens_ahead_are_not_seen() -> None:
    q, k, v, _ = random((1, 70, 2, 2, 8))
    before = causal_attention(q, k, v)
    k[:, 40:], v[:, 40:] = 30.0, 1e4
    after = causal_attention(q, k, v)
    assert torch.equal(after[:, :40], before[:, :40])
    assert (after[:, 40:] != before[:, 40:]).all()


def test_threads_and_strides_change_no_bit() -> None:
    tensors = random((3, 80, 4, 2, 16))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = results(tensors, causal_attention)
        torch.set_num_threads(4)
        strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors]
        four = results(strided, causal_attention)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(one, four, strict=True))


def test_autocast_takes_bfloat16() -> None:
    q, k, v, _ = random((1, 40, 2, 2, 8))
    with torch.autocast("cpu", torch.bfloat16):
        assert causal_attention(q, k, v.bfloat16()).dtype == torch.bfloat16


def test_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's operator where the compiled one does not serve."""
    q, k, v, _ = random((1, 40, 4, 2, 8))
    outputs: dict[str, Tensor] = {}
    for choice in ("native", "torch"):
        monkeypatch.setenv(library.VARIABLE, choice)
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        with FlopCounterMode(display=False) as counter:
            outputs[choice] = causal_attention(*leaves)
            outputs[choice].sum().backward()
        # Two products of 2 K FLOPs for each of 40 x 41 / 2 pairs and 4 heads, four backward.
        counted = 6 * 2 * 8 * 820 * 4 if choice == "native" else 0
        assert counter.get_total_flops() == counted
    torch.testing.assert_close(outputs["native"], outputs["torch"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_operator_contract() -> None:
    q, k, v, _ = random((1, 12, 2, 1, 4))
    leaves = tuple(x.requires_grad_() for x in (q, k, v))
    torch.library.opcheck(causal_softmax, leaves)

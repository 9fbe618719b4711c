"""The chunked loss against PyTorch's, values, gradients and memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import InterpretedFunction

from models import cross_entropy
from models.chunk_sizes import PLAIN_LOGITS, chunk_logits
from models.cross_entropy import linear_cross_entropy
from models.kernels.triton.common import interpreted
from tests.support.storages import peak_bytes


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = hidden.flatten(0, -2) @ weight.T
    return F.cross_entropy(logits, targets.flatten(), reduction="none").view(targets.shape)


def small_chunks(patch: pytest.MonkeyPatch, logits: int) -> None:
    """Chunks, and the plain loss, of so many logits."""
    patch.setattr(cross_entropy, "PLAIN_LOGITS", logits)
    patch.setattr(cross_entropy, "chunk_logits", lambda *_: logits)


def loss_and_gradients(
    function: Callable[[Tensor, Tensor, Tensor], Tensor],
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = function(hidden, weight, targets)
    (loss * scale).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return loss.detach(), hidden.grad, weight.grad


@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 40),
    vocab=st.integers(1, 50),
    dim=st.integers(1, 8),
    chunk=st.integers(1, 400),
    ignored=st.floats(0, 1),
    magnitude=st.sampled_from([0.1, 3.0, 300.0]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=120, deadline=None)
def test_equals_plain_cross_entropy(
    batch: int,
    length: int,
    vocab: int,
    dim: int,
    chunk: int,
    ignored: float,
    magnitude: float,
    seed: int,
) -> None:
    """Any chunk size, with any share of ignored targets and logits of up to thousands."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch, length, dim, generator=generator, dtype=torch.float64) * magnitude
    weight = torch.randn(vocab, dim, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, vocab, (batch, length), generator=generator)
    targets[torch.rand(batch, length, generator=generator) < ignored] = -100
    scale = torch.randn(batch, length, generator=generator, dtype=torch.float64)
    expected = loss_and_gradients(plain, hidden, weight, targets, scale)
    with pytest.MonkeyPatch.context() as patch:
        small_chunks(patch, chunk)
        actual = loss_and_gradients(linear_cross_entropy, hidden, weight, targets, scale)
    for got, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9 * magnitude)


@pytest.mark.parametrize("chunk", [37, 10**9])
def test_bfloat16_gives_a_float32_loss(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    small_chunks(monkeypatch, chunk)
    torch.manual_seed(0)
    hidden, weight = torch.randn(2, 9, 16), torch.randn(11, 16)
    targets = torch.randint(0, 11, (2, 9))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = linear_cross_entropy(hidden, weight, targets)
    assert rounded.dtype == torch.float32
    # Logits of order 4 in bfloat16: 8 bits of mantissa.
    torch.testing.assert_close(rounded, plain(hidden, weight, targets), rtol=0, atol=0.1)
    half = linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), targets)
    torch.testing.assert_close(half, rounded, rtol=0, atol=1e-6)


def test_operators_are_well_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake kernels, autograd registration and dispatch agree with the real operator."""
    small_chunks(monkeypatch, 30)
    hidden = torch.randn(12, 4, requires_grad=True)
    weight = torch.randn(10, 4, requires_grad=True)
    targets = torch.randint(0, 10, (12,))
    for head in (weight, weight.detach()):
        torch.library.opcheck(cross_entropy._chunked, (hidden, head, targets))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_frozen_head_has_no_gradient(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    """Neither its product nor its memory: under low-rank training it would cost a quarter."""
    small_chunks(monkeypatch, 30)
    torch.manual_seed(0)
    hidden, weight = torch.randn(12, 4), torch.randn(10, 4)
    targets = torch.randint(0, 10, (12,))
    _, expected, _ = loss_and_gradients(
        linear_cross_entropy, hidden, weight, targets, torch.ones(12)
    )

    def refuse(*_: Tensor) -> None:
        raise AssertionError("the weight's gradient is computed")

    monkeypatch.setattr(cross_entropy, "_add_product", refuse)
    function = linear_cross_entropy
    if compiled:
        function = torch.compile(function, backend="aot_eager", fullgraph=True)
    hidden.requires_grad_()
    function(hidden, weight, targets).sum().backward()
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad, expected)


def test_logits_are_never_all_in_memory() -> None:
    """A head whose logits would take 1 GiB in float32 takes a chunk or two of 64 MiB instead."""
    tokens, vocab = 4096, 65_536
    hidden = torch.randn(tokens, 8, requires_grad=True)
    weight = torch.randn(vocab, 8, requires_grad=True)
    targets = torch.randint(0, vocab, (tokens,))
    peak = peak_bytes(lambda: linear_cross_entropy(hidden, weight, targets).sum().backward())
    chunk = 4 * PLAIN_LOGITS
    assert chunk <= peak < 2.2 * chunk
    assert peak < tokens * vocab * 4 / 7


def test_chunks_on_a_device_are_by_its_memory() -> None:
    """An H200 takes 2^29 logits at once, 13 chunks for 65,536 tokens of 100,280 words; smaller
    devices less, and none less than a CPU."""
    gib = 2**30
    assert chunk_logits() == PLAIN_LOGITS
    assert chunk_logits(139 * gib) == 2**29
    assert -(-65_536 // (chunk_logits(139 * gib) // 100_280)) == 13
    assert chunk_logits(80 * gib) == 2**28
    assert chunk_logits(24 * gib) == 2**26
    assert chunk_logits(gib) == PLAIN_LOGITS
    for memory in (8 * gib, 24 * gib, 80 * gib, 139 * gib):
        assert 2 * chunk_logits(memory) <= memory / 128


@pytest.mark.skipif(not interpreted(), reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fused_kernels_at_a_large_vocabulary(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100,280 words, as a GPU runs them, against the plain loss in float64."""
    words, generator = 100_280, torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 8, generator=generator).to(dtype)
    weight = torch.randn(words, 8, generator=generator).to(dtype)
    targets = torch.tensor([0, 17, 100_279, -100, 4096])
    scale = torch.tensor([1.0, -0.5, 2.0, 3.0, 0.25])
    expected = loss_and_gradients(plain, hidden.double(), weight.double(), targets, scale)
    small_chunks(monkeypatch, 2 * words)
    monkeypatch.setattr(cross_entropy, "_fused", lambda x: True)
    found = loss_and_gradients(linear_cross_entropy, hidden, weight, targets, scale)
    assert [x.dtype for x in found] == [torch.float32, dtype, dtype]
    for x, y in zip(found, expected, strict=True):
        ratio = (x.double() - y).norm() / y.norm()
        # float32: the gradient of a hidden state is a sum of 100,280 terms that nearly cancel.
        # 16 bits: logits and their gradients are rounded, and the interpreter truncates.
        assert ratio < (1e-4 if dtype == torch.float32 else 2e-2)
    assert found[0][3] == 0  # the ignored target, and its gradient
    assert not found[1][3].any()


@pytest.mark.skipif(not interpreted(), reason="needs TRITON_INTERPRET=1")
def test_a_chunk_on_a_device_is_two_launches_and_four_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On tensors without memory: nothing is copied, cast or filled by chunk, and no logits are in
    float32; the weight's gradient accumulates inside its product."""
    launched: list[str] = []
    monkeypatch.setattr(
        InterpretedFunction, "run", lambda self, *_, **__: launched.append(self.fn.__name__)
    )
    monkeypatch.setattr(cross_entropy, "_fused", lambda x: True)
    small_chunks(monkeypatch, 300)
    tokens, words, dim = 64, 50, 16
    hidden, weight = (
        torch.empty(n, dim, dtype=torch.bfloat16, device="meta") for n in (tokens, words)
    )
    targets = torch.empty(tokens, dtype=torch.int64, device="meta")
    grad = torch.empty(tokens, device="meta")
    operations: list[str] = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            found = func(*args, **(kwargs or {}))
            operations.append(str(func))
            if isinstance(found, Tensor) and found.shape[-1:] == (words,):
                assert found.dtype == torch.bfloat16
            return found

    chunks = -(-tokens // (300 // words))
    with Seen():
        _, log_sum = cross_entropy._chunked._init_fn(hidden, weight, targets)
        cross_entropy._chunked_backward._init_fn(grad, hidden, weight, targets, log_sum, True)
    assert launched == ["row_losses"] * chunks + ["row_gradients"] * chunks
    for name, times in (
        ("aten.mm.default", 2 * chunks), ("aten.mm.out", chunks),
        ("aten.addmm.dtype_out", chunks), ("aten.zeros_like.default", 1),
        ("aten._to_copy.default", 1),  # the weight's gradient, once
    ):  # fmt: skip
        assert operations.count(name) == times, name
    assert not any("copy_" in name or "add_" in name or "fill" in name for name in operations)

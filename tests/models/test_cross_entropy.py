"""The chunked loss against PyTorch's, values, gradients and memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models import cross_entropy
from models.cross_entropy import linear_cross_entropy


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = hidden.flatten(0, -2) @ weight.T
    return F.cross_entropy(logits, targets.flatten(), reduction="none").view(targets.shape)


def loss_and_gradients(function, hidden, weight, targets, scale):
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = function(hidden, weight, targets)
    (loss * scale).sum().backward()
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
        patch.setattr(cross_entropy, "CHUNK_LOGITS", chunk)
        actual = loss_and_gradients(linear_cross_entropy, hidden, weight, targets, scale)
    for got, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9 * magnitude)


@pytest.mark.parametrize("chunk", [37, 10**9])
def test_bfloat16_gives_a_float32_loss(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", chunk)
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
    monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", 30)
    hidden = torch.randn(12, 4, requires_grad=True)
    weight = torch.randn(10, 4, requires_grad=True)
    targets = torch.randint(0, 10, (12,))
    torch.library.opcheck(cross_entropy._chunked, (hidden, weight, targets))


def test_logits_are_never_all_in_memory() -> None:
    """A head whose logits would take 1 GiB in float32 stays below an eighth of that."""
    tokens, vocab = 4096, 65_536
    hidden = torch.randn(tokens, 8, requires_grad=True)
    weight = torch.randn(vocab, 8, requires_grad=True)
    targets = torch.randint(0, vocab, (tokens,))
    with torch.profiler.profile(profile_memory=True) as profile:
        linear_cross_entropy(hidden, weight, targets).sum().backward()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert 0 < largest < tokens * vocab * 4 / 8
    logits = 4 * cross_entropy.CHUNK_LOGITS
    assert largest >= logits  # the profiler does see a chunk

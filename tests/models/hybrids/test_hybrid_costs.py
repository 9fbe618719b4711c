"""What hybrids cost: parameters, FLOPs of every layer, state and cache, memory kept."""

from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from models import accounting
from models.language_model import build
from scaling.plan.kept import measured
from scaling.plan.memory import STATE_INTERVAL, kept_by_block
from tests.models.test_accounting_exact import SHAPES, count_groups, reference_implementations
from tests.support.hybrids import PATTERNS, hybrid

__all__ = ["reference_implementations"]


@pytest.mark.parametrize("dim", [32, 64])
@pytest.mark.parametrize(("arch", "pattern"), PATTERNS)
def test_parameters(arch: str, pattern: str, dim: int) -> None:
    config = hybrid(arch, pattern, dim)
    assert count_groups(build(config, device="meta")) == accounting.parameters(config)


@pytest.mark.usefixtures("reference_implementations")
@pytest.mark.parametrize(("batch", "length", "dim", "depth"), SHAPES)
@pytest.mark.parametrize(("arch", "pattern"), PATTERNS)
def test_flops_equal_the_counter(
    arch: str, pattern: str, batch: int, length: int, dim: int, depth: int
) -> None:
    """Of the model and of each layer, by the module that PyTorch's counter is in."""
    config = hybrid(arch, pattern, dim, layers=max(depth, 4))
    model = build(config)
    tokens = torch.randint(0, 61, (batch, length))
    with FlopCounterMode(display=False) as counter:
        model(tokens)
    keys = accounting.mean_keys(length)
    total = batch * length * sum(accounting.forward_flops_per_token(config, keys).values())
    rel = 1e-14 if "window" in pattern else 0  # means over a window are rounded fractions
    assert counter.get_total_flops() == pytest.approx(total, rel=rel)
    counts = counter.get_flop_counts()
    for layer, terms in enumerate(accounting.layer_flops(config, keys)):
        found = sum(counts[f"LanguageModel.blocks.{layer}"].values())
        assert found == pytest.approx(batch * length * sum(terms.values()), rel=rel)
        channel = sum(counts[f"LanguageModel.blocks.{layer}.channel"].values())
        assert channel == batch * length * terms["channel_mixer"]
    with FlopCounterMode(display=False) as counter:
        model.loss(tokens, tokens).mean().backward()
    training = accounting.train_flops_per_token(config, length)["total"]
    assert counter.get_total_flops() == pytest.approx(batch * length * training, rel=rel)


@pytest.mark.parametrize(("arch", "pattern"), PATTERNS)
def test_state_and_cache(arch: str, pattern: str) -> None:
    config = hybrid(arch, pattern, 64)
    model = build(config, dtype=torch.bfloat16)
    for batch, length in ((1, 5), (3, 9)):
        _, state = model(torch.zeros(batch, length, dtype=torch.int64), return_state=True)
        size = sum(t.nbytes for t in tree_leaves((state.stem, state.blocks)))
        held = accounting.kv_cache_bytes(config, length, batch)
        assert size == accounting.state_bytes(config, batch) + held


def test_costs_by_hand() -> None:
    """hgrn2*3+llama(window=16), d = 64, 4 heads of 16: one layer in four reads and holds keys."""
    config = hybrid("hgrn2", "hgrn2*3+llama(window=16)", 64, layers=8)
    assert accounting.state_bytes(config) == 4 * 6 * 64 * 16
    assert accounting.kv_cache_bytes(config, 10) == 2 * 2 * 2 * 10 * 64
    assert accounting.kv_cache_bytes(config, 1000) == 2 * 2 * 2 * 16 * 64
    dense = 8 * (8 * 64**2 + 6 * 64 * 176) + 2 * 64 * 61
    recurrent = 6 * 4 * 64 * 16
    for position, keys in ((1, 1), (10, 10), (1000, 16)):
        expected = dense + recurrent + 2 * 4 * 64 * keys
        assert accounting.decode_flops_per_token(config, position)["total"] == expected
    groups = accounting.parameters(config)
    assert groups["decay"] == 8 * 64  # the logits of the bounds of all layers
    assert groups["norm"] == 0  # HGRN2's norms have no weights


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("mode", ["none", "selective"])
@pytest.mark.parametrize(
    ("arch", "pattern"),
    [
        ("hgrn2", "hgrn2*3+llama"),
        ("llama", "hgrn2*3+llama"),
        ("llama", "tnl+llama"),
        ("tnl", "cosformer2+llama"),
        ("llama", "cosformer2"),
        ("cosformer2", "hgrn2+cosformer2"),
    ],
)
def test_kept_bytes_are_what_is_measured(arch: str, pattern: str, mode: str, bf16: bool) -> None:
    config = hybrid(arch, pattern, 64)
    own = kept_by_block(config, 512, 128, mode, bf16=bf16, interval=STATE_INTERVAL["cpu"])
    assert own == pytest.approx(measured(config, 512, 128, mode, bf16=bf16), rel=0.1)

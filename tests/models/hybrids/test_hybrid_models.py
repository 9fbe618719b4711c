"""Hybrids as models: the mixer contract, muP, checkpointing, generation from mixed states."""

from __future__ import annotations

import copy

import pytest
import torch

from models.checkpointing import checkpoint_blocks
from models.config import ModelConfig
from models.generation import Decoder, Sampling
from models.language_model import build
from models.width import Rule, rates
from scaling.evaluation.likelihood import score
from tests.support.hybrids import PATTERNS, hybrid
from tests.support.mixer_contract import MixerContract


class TestRecurrentWithSoftmax(MixerContract):
    config: ModelConfig = hybrid(*PATTERNS[0], dim=64)


@pytest.mark.slow
class TestWindowed(MixerContract):
    config: ModelConfig = hybrid(*PATTERNS[1], dim=64)


@pytest.mark.slow
class TestFourKinds(MixerContract):
    config: ModelConfig = hybrid(*PATTERNS[2], dim=64)


@pytest.mark.slow
class TestTwoLinearKinds(MixerContract):
    """Splits sequences, as both do."""

    config: ModelConfig = hybrid("hgrn2", "hgrn2+tnl", dim=64)


@pytest.mark.parametrize(("arch", "pattern"), PATTERNS)
def test_steps_and_packing_equal_the_parallel_form(arch: str, pattern: str) -> None:
    torch.manual_seed(0)
    model = build(hybrid(arch, pattern).replace(init_std=0.15), dtype=torch.float64).eval()
    tokens = torch.randint(0, 61, (1, 60))
    with torch.no_grad():
        expected, state = model(tokens), model.initial_state(1)
        for t in range(60):
            logits, state = model.step(tokens[:, t], state)
            torch.testing.assert_close(logits, expected[:, t], rtol=0, atol=1e-9)
        bounds = torch.tensor([0, 25, 60], dtype=torch.int32)
        alone = torch.cat((model(tokens[:, :25]), model(tokens[:, 25:])), 1)
        torch.testing.assert_close(model(tokens, cu_seqlens=bounds), alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("arch", "pattern"), PATTERNS)
def test_prompts_are_continued_alike_alone_and_in_company(arch: str, pattern: str) -> None:
    torch.manual_seed(0)
    model = build(hybrid(arch, pattern).replace(init_std=0.15), dtype=torch.float64).eval()
    prompts = [[5, 9, 60, 3], [7, 8], [30] * 20]

    def continued(some: list[list[int]]) -> list[list[int]]:
        decoder = Decoder(model, some, Sampling(max_new_tokens=10, temperature=0))
        found: list[list[int]] = [[] for _ in some]
        while decoder.running:
            for number, token in decoder.advance():
                found[number].append(token)
        return found

    together = continued(prompts)
    assert together == [continued([prompt])[0] for prompt in prompts]
    for prompt, ending in zip(prompts, together, strict=True):  # the definition: no cache at all
        text = list(prompt)
        for token in ending:
            with torch.no_grad():
                assert int(model(torch.tensor([text]))[0, -1].argmax()) == token
            text.append(token)


@pytest.mark.parametrize(("arch", "pattern"), PATTERNS[:3])
def test_likelihoods_reuse_what_texts_share(arch: str, pattern: str) -> None:
    torch.manual_seed(0)
    model = build(hybrid(arch, pattern).replace(init_std=0.3), dtype=torch.float64).eval()
    contexts = ([1, 2, 3, 4, 5, 6, 7, 8], [9, 8, 7], [1, 2, 3, 4, 5, 6, 7, 9])
    pairs = [(c, e) for c in contexts for e in ([11, 12, 13], [11], [14, 15])]
    found = score(model, pairs, max_length=32, batch_size=4)
    for (context, ending), (value, _) in zip(pairs, found, strict=True):
        tokens = torch.tensor([context + ending])
        with torch.no_grad():
            logits = model(tokens[:, :-1])[0, -len(ending) :].log_softmax(-1)
        expected = logits[torch.arange(len(ending)), torch.tensor(ending)].sum()
        assert value == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize("mode", ["selective", "block"])
@pytest.mark.parametrize(("arch", "pattern"), PATTERNS)
def test_checkpointing_changes_no_gradient(arch: str, pattern: str, mode: str) -> None:
    torch.manual_seed(0)
    model = build(hybrid(arch, pattern), dtype=torch.float64)
    twin = copy.deepcopy(model)
    checkpoint_blocks(twin.blocks, mode)  # pyright: ignore[reportArgumentType]
    tokens = torch.randint(0, 61, (2, 40))
    for one in (model, twin):
        one.loss(tokens, tokens).mean().backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)


def test_mup_rules_go_by_each_layers_own_matrices() -> None:
    """Twice as wide: grouped keys and values grow with the heads, a low-rank gate's rank does
    not."""
    narrow = hybrid("llama", "tnl+llama(kv_heads=2)", layers=2)
    wide = narrow.replace(
        dim=64, heads=8, glu_dim=176, mup_base_dim=32, mixers="tnl+llama(kv_heads=4)"
    )
    model = build(wide, device="meta")
    rules = {name: getattr(m, "width_rule", None) for name, m in model.named_modules()}
    between = Rule(spread=2**-0.5, rate=0.5)
    assert rules["blocks.0.mixer.qkv"] == rules["blocks.1.mixer.qkv"] == between
    assert rules["blocks.1.mixer.out"] == rules["blocks.1.channel.up"] == between
    assert rules["blocks.0.mixer.gate.down"] == Rule(spread=0.5, rate=0.5)
    assert rules["blocks.0.mixer.gate.up"] == Rule(spread=1.0, rate=1.0)
    assert len(rates(model)) == 2 * 5 + 1  # qkv, out and three of the channel mixer; the gate's
    same = build(narrow.replace(mup_base_dim=32), device="meta")
    assert not rates(same)

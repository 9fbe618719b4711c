"""Patterns of mixers: what they mean, their one text, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from linscale.layer_groups import SOFTMAX, softmax_share
from models.architecture import BUILT_IN, find
from models.config import ConfigError, ModelConfig, layer_configs, toy_config
from models.language_model import build
from scaling.config.run import BudgetConfig, DataConfig, RunConfig
from tests.support.hybrids import PATTERNS, hybrid
from tests.support.tutorial_architecture import my_gla


def kinds(config: ModelConfig) -> list[str]:
    return [own.arch for own in layer_configs(config)]


def test_a_pattern_is_repeated_and_cut_off() -> None:
    config = hybrid("hgrn2", "hgrn2*3+llama", layers=6)
    assert kinds(config) == ["hgrn2", "hgrn2", "hgrn2", "llama", "hgrn2", "hgrn2"]
    assert config.softmax_layers == (3,)
    assert config.archs == ("hgrn2", "llama")
    listed = config.replace(mixers=("tnl", "llama", "cosformer2"))
    assert kinds(listed) == ["tnl", "llama", "cosformer2"] * 2


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (" hgrn2 * 3 + llama ", "hgrn2*3+llama"),
        (("hgrn2", "hgrn2", "hgrn2", "llama"), "hgrn2*3+llama"),
        (["tnl", "llama"] * 2, "tnl+llama"),
        ("llama(window=none)*2+tnl*1", "llama*2+tnl"),
        ("llama( kv_heads = 2 , window=8.0)+hgrn2", "llama(kv_heads=2, window=8)+hgrn2"),
        ("tnl(decay_slopes=retnet)+llama", "tnl(decay_slopes=retnet)+llama"),
        ("supra(llama.kv_heads=2)+llama", "supra(llama.kv_heads=2)+llama"),
    ],
)
def test_one_text_for_one_pattern(given: str | tuple[str, ...], text: str) -> None:
    config = toy_config("hgrn2", 32, vocab_size=61, layers=4).replace(mixers=given)
    assert config.mixers == text
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_a_hybrid_of_one_kind_is_that_architecture() -> None:
    """Bit for bit, with the same name of a run and the same draws of weights."""
    for arch in ("llama", "tnl", "hgrn2", "cosformer2", "supra", "lolcats"):
        plain = toy_config(arch, 32, vocab_size=61, layers=3)
        same = plain.replace(mixers=f"{arch}*2+{arch}")
        assert same == plain
    windowed = toy_config("llama", 32, vocab_size=61, layers=3).replace(mixers="llama(window=5)")
    assert windowed == toy_config("llama", 32, vocab_size=61, layers=3).with_options(window=5)


@pytest.mark.parametrize("arch", ["llama", "tnl", "hgrn2", "cosformer2"])
def test_layers_of_the_base_are_those_of_the_pure_model(arch: str) -> None:
    """Where the layer that differs adds nothing, the logits are the pure model's, bit for bit."""
    torch.manual_seed(0)
    other = "tnl" if arch == "llama" else "llama"
    plain = toy_config(arch, 32, vocab_size=61, layers=3)
    pure, mixed = build(plain), build(plain.replace(mixers=f"{arch}*2+{other}"))
    weights = {
        name.replace("stem.", "stem.parts.0."): tensor
        for name, tensor in pure.state_dict().items()
        if not name.startswith("blocks.2.mixer.")
    }
    names = mixed.state_dict()
    mixed.load_state_dict({n: weights.get(n, weights.get(n.replace("stem.parts.0.", "stem."), t))
                           for n, t in names.items()})  # fmt: skip
    with torch.no_grad():
        for model in (pure, mixed):
            model.blocks[2].mixer.out.weight.zero_()  # pyright: ignore
    tokens = torch.randint(0, 61, (2, 50))
    assert torch.equal(pure(tokens), mixed(tokens))


@pytest.mark.parametrize(
    ("pattern", "match"),
    [
        ("hgrn2*3+lama", r"model.mixers='lama': did you mean llama\?"),
        ("tnl*9+llama", "names 10 layers with model.layers=4"),
        ("tnl*0+llama", "counts 0 layers"),
        ("tnl*20000", "no more than 10,000"),
        ("a-b", "is not an architecture with a count"),
        ("", "is not an architecture with a count"),
        ("llama(window)+tnl", "write option=value"),
        ("llama(window=0)+tnl", "model.mixers.llama.window=0: must be a positive"),
        ("llama(windw=1)+tnl", r"model.mixers.llama.windw: .*did you mean .*llama.window\?"),
        ("llama(kv_heads=3)+tnl", r"model.mixers.llama.kv_heads=3 does not divide"),
    ],
)
def test_what_is_refused(pattern: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        toy_config("hgrn2", 32, vocab_size=61, layers=4).replace(mixers=pattern)


def test_a_run_is_named_and_set_by_its_pattern() -> None:
    run = RunConfig(
        name="run",
        model=toy_config("hgrn2", 32, vocab_size=257, layers=4),
        data=DataConfig(sequence_length=64, batch_sequences=8),
        budget=BudgetConfig(tokens=100_000),
    )
    mixed = run.override(["model.mixers=hgrn2*3+llama(window=16)"])
    assert mixed.run_id != run.run_id
    assert mixed.model.group == "hgrn2*3+llama(window=16)"
    assert mixed.model.label == "HGRN2*3+LLaMA(window=16)"
    assert mixed.override(["model.mixers=none"]).run_id == run.run_id
    assert mixed.override(["model.mixers=hgrn2"]).run_id == run.run_id
    with pytest.raises(ConfigError, match=r"parallel.sequence=2 .*mixers=.*llama does not say"):
        mixed.override(["parallel.sequence=2", "parallel.devices=2"])
    both = run.override(["model.mixers=hgrn2+tnl", "parallel.sequence=2", "parallel.devices=2"])
    assert both.model.whole_sequences == ()


def test_groups_say_family_and_share() -> None:
    # Of the others, layers have options of their own, or are of a third architecture.
    expected = [("hgrn2", 0.25), None, None, None, None]
    assert [softmax_share(hybrid(*p).group) for p in PATTERNS] == expected
    assert softmax_share("tnl*3+llama") == ("tnl", 0.25)
    assert softmax_share("llama*0") is None
    assert softmax_share("llama") == ("llama", 1.0)
    assert softmax_share("llama on hgrn2") == ("hgrn2", 1.0)
    assert softmax_share("all runs") is None
    assert [arch for arch in BUILT_IN if find(arch).options.softmax] == [SOFTMAX]


def test_an_architecture_of_ones_own_in_a_pattern(tmp_path: Path) -> None:
    """Its costs are measured layer by layer, its file is in the record."""
    from models import accounting

    with my_gla(tmp_path) as module:
        config = hybrid("llama", "my_gla(rank=4)*3+llama")
        assert config.to_json()["files"] == {"my_gla": module.__file__}
        assert ModelConfig.from_json(config.to_json()) == config
        parameters = sum(p.numel() for p in build(config, device="meta").parameters())
        assert sum(accounting.parameters(config).values()) == parameters
        pure = hybrid("llama", "my_gla(rank=4)")
        gla, llama = (
            accounting.layer_flops(c, accounting.mean_keys(64))[3] for c in (pure, config)
        )
        assert accounting.layer_flops(config, accounting.mean_keys(64))[:3] == [gla] * 3
        assert llama["attention"] == 4 * 32 * 65 / 2

"""muP: activations and their changes keep their size over widths, in all architectures."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.architecture import Architecture
from models.config import ARCHS, Arch, ConfigError, ModelConfig, toy_config
from models.interop import export_model
from models.language_model import LanguageModel, build
from models.width import Rule, multiplier, rates, unscaled
from scaling.config.run import OptimConfig
from scaling.training.optim import adamw, set_rate
from tests.support.model_variants import install

BASE, VOCAB = 32, 64


def config(arch: Arch, dim: int, *, mup: bool, **changes: object) -> ModelConfig:
    """Two layers with heads of eight channels; the spread is that of the base, at all widths."""
    model = toy_config(arch, dim, vocab_size=VOCAB, layers=2, head_dim=8)
    return model.replace(init_std=0.1, mup_base_dim=BASE if mup else None, **changes)


# --- coordinate check ---------------------------------------------------------------------------

WIDTHS = (32, 64, 128)
STEPS, RATE = 5, 0.01


def changes(arch: Arch, dim: int, *, mup: bool, seed: int) -> dict[str, float]:
    """Mean absolute change, after a few Adam steps, of each mixer's output and of the logits.

    The logits are those of the right tokens: a step moves them together, whereas the others move by
    a random sum that shrinks with the width.
    """
    torch.manual_seed(seed)
    model = build(config(arch, dim, mup=mup))
    tokens = torch.randint(0, VOCAB, (8, 33), generator=torch.Generator().manual_seed(seed))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    outputs: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module) -> None:
        def hook(_: nn.Module, __: object, output: Tensor | tuple[Tensor, object]) -> None:
            outputs[name] = (output[0] if isinstance(output, tuple) else output).detach()

        module.register_forward_hook(hook)

    for number, block in enumerate(model.blocks):
        keep(f"token mixer {number}", block.mixer)  # pyright: ignore[reportArgumentType]
        keep(f"channel mixer {number}", block.channel)  # pyright: ignore[reportArgumentType]

    def look() -> dict[str, Tensor]:
        logits = model(inputs).detach().gather(-1, targets[..., None])
        return outputs | {"logits": logits}

    before = look()
    optimizer = adamw(model, OptimConfig(weight_decay=0.0))
    set_rate(optimizer, RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model.loss(inputs, targets).mean().backward()
        optimizer.step()
    after = look()
    return {name: (after[name] - before[name]).abs().mean().item() for name in before}


def growth(arch: Arch, *, mup: bool) -> dict[str, float]:
    """Exponent of the width in each change: slope of its log over that of the width."""
    x = torch.tensor(WIDTHS, dtype=torch.float64).log()
    found = [[changes(arch, dim, mup=mup, seed=seed) for seed in (0, 1)] for dim in WIDTHS]
    slopes: dict[str, float] = {}
    for name in found[0][0]:
        y = torch.tensor([sum(one[name] for one in seeds) for seeds in found]).double().log()
        slopes[name] = float(
            ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
        )
    return slopes


@pytest.mark.parametrize("arch", ARCHS)
def test_coordinate_check(arch: Arch) -> None:
    """Measured: within 0.14 of 0 with muP, and 0.5 to 1.8 without (0.55 where a norm over the heads
    hides part of the growth, above 1.2 elsewhere)."""
    assert all(abs(slope) < 0.25 for slope in growth(arch, mup=True).values())
    assert all(slope > 0.4 for slope in growth(arch, mup=False).values())


# --- rules --------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHS)
def test_rules_are_those_of_the_table(arch: Arch) -> None:
    model = build(config(arch, 4 * BASE, mup=True), device="meta")
    hidden, reduction, fixed = (
        Rule(spread=s, rate=r) for s, r in ((0.5, 0.25), (0.25, 0.25), (1, 1))
    )
    found = {n: m.width_rule for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    expected = {name: hidden for name in found}
    for name in found:
        if name.endswith("gate.down"):
            expected[name] = reduction
        if ".mixer.gate.up" in name:
            expected[name] = fixed
    assert found == expected
    assert len(found) == 2 * (5 if arch in ("llama", "hgrn2") else 7)
    assert not hasattr(model.embedding, "width_rule")


@pytest.mark.parametrize(
    ("arch", "reductions", "fixed"),
    [
        ("gla", ("rate_down",), ("rate_up",)),
        ("mamba2", (), ()),
        ("gated_deltanet", (), ()),
        ("kda", ("rate.down", "gate.down"), ("rate.up", "gate.up")),
    ],
)
def test_rules_of_mixers_outside_the_table(
    arch: str, reductions: tuple[str, ...], fixed: tuple[str, ...]
) -> None:
    """Low ranks have the width of a head, or one of their own; all else is between wide layers."""
    model = build(config(arch, 4 * BASE, mup=True), device="meta")
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            spread, rate = 0.5, 0.25
            if ".mixer." in name and name.endswith(reductions or "-"):
                spread = 0.25
            if ".mixer." in name and name.endswith(fixed or "-"):
                spread = rate = 1
            assert module.width_rule == Rule(spread=spread, rate=rate), name


@pytest.mark.parametrize("arch", ARCHS)
def test_nothing_changes_at_the_width_of_the_base(arch: Arch) -> None:
    torch.manual_seed(0)
    plain = build(config(arch, BASE, mup=False))
    torch.manual_seed(0)
    scaled = build(config(arch, BASE, mup=True))
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        assert torch.equal(a, b)
    tokens = torch.randint(0, VOCAB, (2, 9))
    assert torch.equal(plain(tokens), scaled(tokens))
    assert rates(scaled) == {}


def test_spread_rate_eps_and_decay_of_a_wide_model() -> None:
    torch.manual_seed(0)
    model = build(config("tnl", 8 * BASE, mup=True, tie_embeddings=False))
    mixer = model.get_submodule("blocks.0.mixer")
    spread = {name: p.std().item() for name, p in mixer.named_parameters()}
    assert spread["qkv.weight"] == pytest.approx(0.1 / math.sqrt(8), rel=0.02)
    assert spread["gate.down.weight"] == pytest.approx(0.1 / 8, rel=0.05)
    assert spread["gate.up.weight"] == pytest.approx(0.1, rel=0.05)
    assert model.head is not None
    for weight in (model.embedding.weight, model.head.weight):
        assert weight.std().item() == pytest.approx(0.1, rel=0.02)
    optimizer = adamw(model, OptimConfig(lr=1.0, weight_decay=0.1, eps=1e-8))
    set_rate(optimizer, 0.4)
    rate_of = {p: g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert rate_of[mixer.get_parameter("qkv.weight")] == pytest.approx(0.05)
    assert rate_of[mixer.get_parameter("gate.down.weight")] == pytest.approx(0.05)
    assert rate_of[mixer.get_parameter("gate.up.weight")] == pytest.approx(0.4)
    assert rate_of[model.embedding.weight] == rate_of[model.head.weight] == pytest.approx(0.4)
    assert len(rate_of) == len(list(model.parameters()))
    for group in optimizer.param_groups:
        assert group["eps"] == pytest.approx(1e-8 / 8)
        if group["weight_decay"]:
            assert group["lr"] * group["weight_decay"] == pytest.approx(0.04)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("arch", ARCHS)
def test_unscaled_is_the_same_function(arch: Arch, tied: bool) -> None:
    model = build(config(arch, 2 * BASE, mup=True, tie_embeddings=tied), dtype=torch.float64)
    plain = unscaled(model)
    assert plain.config.mup_base_dim is None
    assert multiplier(model.config) == 2
    tokens = torch.randint(0, VOCAB, (2, 9))
    logits = model(tokens)
    torch.testing.assert_close(plain(tokens), logits, rtol=1e-12, atol=1e-12)
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    torch.testing.assert_close(
        model.loss(tokens[:, :-1], tokens[:, 1:]).flatten(), losses, rtol=1e-9, atol=1e-9
    )
    state = model.initial_state(2)
    for t in range(9):
        one, state = model.step(tokens[:, t], state)
        torch.testing.assert_close(one, logits[:, t], rtol=1e-9, atol=1e-9)
    assert unscaled(plain) is plain


def test_an_export_has_the_factor_of_the_logits_in_its_head(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = build(config("llama", 2 * BASE, mup=True))
    export_model(model, tmp_path / "out", context=64, eos_id=0)
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = torch.randint(0, VOCAB, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(other(tokens).logits, model(tokens), rtol=1e-4, atol=1e-5)


def test_a_wide_matrix_without_a_rule_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Table(nn.Module):
        def __init__(self, model: ModelConfig, layer: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(model.dim, model.dim))

    install(monkeypatch, "odd_mixer", Architecture(label="odd", mixer=Table))
    with pytest.raises(ConfigError, match=r"blocks\.0\.mixer\.weight is a matrix"):
        build(config("odd_mixer", 2 * BASE, mup=True), device="meta")
    assert isinstance(build(config("odd_mixer", 2 * BASE, mup=False), device="meta"), LanguageModel)


def test_base_width_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"model\.mup_base_dim=0"):
        config("llama", 32, mup=False).replace(mup_base_dim=0)

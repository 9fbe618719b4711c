"""GLA, Gated DeltaNet and KDA of flash-linear-attention: on their naive recurrences, our logits.

Their kernels need a GPU. Their models run on the CPU once the kernels are replaced: recurrences by
the library's own naive references, convolutions, norms and gates by PyTorch's functions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.config import toy_config
from models.interop import InteropError, export_model, import_model
from models.language_model import build

gla_layer = pytest.importorskip("fla.layers.gla")
gdn_layer = pytest.importorskip("fla.layers.gated_deltanet")
kda_layer = pytest.importorskip("fla.layers.kda")
mlp = pytest.importorskip("fla.modules.mlp")
from fla import models as theirs  # noqa: E402
from fla.modules import FusedRMSNormGated, RMSNorm, ShortConvolution  # noqa: E402
from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule  # noqa: E402
from fla.ops.gla.naive import naive_recurrent_gla  # noqa: E402
from fla.ops.kda.gate import naive_kda_gate  # noqa: E402
from fla.ops.kda.naive import naive_recurrent_kda  # noqa: E402

CLASSES = {
    "gla": (theirs.GLAConfig, theirs.GLAForCausalLM),
    "gated_deltanet": (theirs.GatedDeltaNetConfig, theirs.GatedDeltaNetForCausalLM),
    "kda": (theirs.KDAConfig, theirs.KDAForCausalLM),
}
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 61,
    "initializer_range": 0.15,
    "fuse_swiglu": False,
    "fuse_cross_entropy": False,
}
HEADS = {"gla": {}, "gated_deltanet": {"head_dim": 12}, "kda": {"head_dim": 16}}


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put references in the place of their kernels."""

    def unit(x: Tensor) -> Tensor:
        return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()

    def shares(beta: Tensor, allow_neg_eigval: bool, **_: Any) -> Tensor:
        return beta.sigmoid() * (2 if allow_neg_eigval else 1)

    def gla(q: Tensor, k: Tensor, v: Tensor, **rest: Any) -> Any:
        return naive_recurrent_gla(q, k, v, rest["gk"] if "gk" in rest else rest["g"])

    def gated_delta(q: Tensor, k: Tensor, v: Tensor, g: Tensor, **rest: Any) -> Any:
        g = -rest["A_log"].exp() * F.softplus(g + rest["dt_bias"])
        return naive_recurrent_gated_delta_rule(unit(q), unit(k), v, shares(**rest), g)

    def kda(q: Tensor, k: Tensor, v: Tensor, g: Tensor, **rest: Any) -> Any:
        g = naive_kda_gate(g, rest["A_log"], rest["dt_bias"])
        return naive_recurrent_kda(unit(q), unit(k), v, g, shares(**rest))

    def convolve(x: Tensor, weight: Tensor) -> Tensor:
        padded = F.pad(x.mT, (weight.shape[-1] - 1, 0))
        return F.silu(F.conv1d(padded, weight[:, None], groups=len(weight)).mT)

    def gated_norm(self: Any, x: Tensor, gate: Tensor, **_: Any) -> Tensor:
        act = F.silu if self.activation in ("swish", "silu") else torch.sigmoid
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps) * act(gate)

    def norm(self: Any, x: Tensor, residual: Tensor | None = None, prenorm: bool = False) -> Any:
        x = x if residual is None else x + residual
        y = F.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        return (y, x) if prenorm else y

    for name in ("chunk_gla", "fused_recurrent_gla", "fused_chunk_gla"):
        monkeypatch.setattr(gla_layer, name, gla)
    for name in ("chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule"):
        monkeypatch.setattr(gdn_layer, name, gated_delta)
    for name in ("chunk_kda", "fused_recurrent_kda"):
        monkeypatch.setattr(kda_layer, name, kda)
    monkeypatch.setattr(
        gdn_layer, "causal_conv1d", lambda x, weight, **_: (convolve(x, weight), None)
    )
    monkeypatch.setattr(
        ShortConvolution, "forward", lambda self, x, **_: (convolve(x, self.weight[:, 0]), None)
    )
    monkeypatch.setattr(FusedRMSNormGated, "forward", gated_norm)
    monkeypatch.setattr(mlp, "swiglu", lambda x, y: F.silu(x) * y)
    monkeypatch.setattr(RMSNorm, "forward", norm)


def make(arch: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config, model = CLASSES[arch]
    made = model(config(**(SMALL | HEADS[arch] | changes)))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim < 2 or "conv" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return made.eval()


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("gla", {}),
    ("gla", {"tie_word_embeddings": True, "expand_k": 0.75}),
    ("gated_deltanet", {}),
    ("gated_deltanet", {"expand_v": 1.5, "conv_size": 3, "allow_neg_eigval": True}),
    ("gated_deltanet", {"intermediate_size": None, "hidden_ratio": 2, "norm_eps": 1e-3}),
    ("kda", {}),
    ("kda", {"expand_v": 0.5, "allow_neg_eigval": True, "tie_word_embeddings": True}),
]


@pytest.mark.parametrize(("arch", "changes"), VARIANTS, ids=str)
def test_import(arch: str, changes: dict[str, Any], tmp_path: Path) -> None:
    other = make(arch, **changes)
    other.save_pretrained(tmp_path)
    ours, source = import_model(tmp_path)
    assert source.config.arch == arch
    assert len(list(ours.parameters())) > 0
    tokens = torch.randint(0, 61, (2, 50))
    with torch.no_grad():
        expected = other(tokens, use_cache=False).logits
        torch.testing.assert_close(ours(tokens), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("arch", CLASSES)
def test_export(arch: str, tied: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = toy_config(arch, 32, vocab_size=61, layers=2).replace(tie_embeddings=tied)
    model = build(config.replace(init_std=0.15)).eval()
    export_model(model, tmp_path / "out", context=64, eos_id=0, layout="fla")
    other = (
        CLASSES[arch][1]
        .from_pretrained(tmp_path / "out", fuse_swiglu=False, fuse_cross_entropy=False)
        .eval()
    )
    tokens = torch.randint(0, 61, (2, 50))
    with torch.no_grad():
        expected = model(tokens)
        found = other(tokens, use_cache=False).logits
        torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)
        again, _ = import_model(tmp_path / "out")
        assert again.config == model.config.replace(options=again.config.options)
        assert torch.equal(again(tokens), expected)


@pytest.mark.parametrize(
    ("arch", "changes", "message"),
    [
        ("gla", {"use_short_conv": True}, "use_short_conv=True cannot be imported"),
        ("gla", {"expand_v": 2.0}, "only expand_v=1.0 can"),
        ("gated_deltanet", {"num_v_heads": 4}, "num_v_heads=4 cannot be imported"),
        ("kda", {"lower_bound": -5.0}, "lower_bound=-5.0 cannot be imported"),
        ("kda", {"num_heads": None}, "config.json"),
        ("gated_deltanet", {"conv_size": 0}, "convolution=0: must be from 1 to 64"),
    ],
)
def test_errors(arch: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    make(arch).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = {k: v for k, v in (json.loads(path.read_text()) | changes).items() if v is not None}
    path.write_text(json.dumps(values))
    with pytest.raises(InteropError, match=message):
        import_model(tmp_path)


def test_what_has_no_layout(tmp_path: Path) -> None:
    for arch, layout, message in [
        ("mamba2", "fla", "there are hgrn2, gla, gated_deltanet, kda in this layout"),
    ]:
        model = build(toy_config(arch, 32, vocab_size=61, layers=1))
        with pytest.raises(InteropError, match=message):
            export_model(model, tmp_path / "out", context=8, eos_id=0, layout=layout)
    kda = toy_config("kda", 32, vocab_size=61, layers=2)
    for changes, message in [
        ({"mixers": "kda+llama"}, r"layout='fla' is for models whose layers are all alike"),
        ({"norms": "both"}, r"model\.norms='both'.*only 'pre' can"),
        ({"glu_bias": True}, r"model\.glu_bias=True.*only False can"),
        ({"glu_activation": "none"}, r"only silu can"),
    ]:
        model = build(kda.replace(**changes))
        with pytest.raises(InteropError, match=message):
            export_model(model, tmp_path / "out", context=8, eos_id=0, layout="fla")

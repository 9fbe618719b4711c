"""HGRN2 of flash-linear-attention: their model on their naive recurrence gives our logits.

Their kernels need a GPU. Their model runs on the CPU once its kernels are replaced: the recurrence
by the library's own naive reference, activations and norms by PyTorch's.
"""

from __future__ import annotations

import inspect
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

hgrn2_layer = pytest.importorskip("fla.layers.hgrn2")
mlp = pytest.importorskip("fla.modules.mlp")
from fla.models import HGRN2Config, HGRN2ForCausalLM  # noqa: E402
from fla.ops.gla.naive import naive_recurrent_gla  # noqa: E402

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "expand_ratio": 8,
    "intermediate_size": 48,
    "vocab_size": 61,
    "initializer_range": 0.15,
    "fuse_norm": False,
    "fuse_swiglu": False,
    "fuse_cross_entropy": False,
}


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put references in the place of their kernels."""

    def recurrence(q: Tensor, k: Tensor, v: Tensor, gk: Tensor, **_: Any) -> Any:
        return naive_recurrent_gla(q, k, v, gk)

    # The layer gives no eps: the default of the function that is replaced is part of the model.
    eps = inspect.signature(hgrn2_layer.rms_norm_linear).parameters["eps"].default

    def norm_linear(
        x: Tensor, weight: Tensor | None, bias: None, linear: Tensor, linear_bias: None
    ) -> Tensor:
        return F.linear(F.rms_norm(x, x.shape[-1:], weight, eps), linear)

    monkeypatch.setattr(hgrn2_layer, "swish", F.silu)
    monkeypatch.setattr(hgrn2_layer, "fused_recurrent_gla", recurrence)
    monkeypatch.setattr(hgrn2_layer, "rms_norm_linear", norm_linear)
    monkeypatch.setattr(mlp, "swiglu", lambda x, y: F.silu(x) * y)


def make(**changes: Any) -> Any:
    torch.manual_seed(0)
    model = HGRN2ForCausalLM(HGRN2Config(**(SMALL | changes)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2 or "lower_bounds" in name:
                parameter.add_(0.5 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"use_lower_bound": False},
        {"norm_eps": 1e-3},
        {"elementwise_affine": False},
        {"expand_ratio": None, "num_heads": 2},
        {"intermediate_size": None, "hidden_ratio": 2},
    ],
    ids=str,
)
def test_import(changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = make(**changes)
    theirs.save_pretrained(tmp_path)
    ours, _ = import_model(tmp_path)
    tokens = torch.randint(0, 61, (2, 50))
    with torch.no_grad():
        expected = theirs(tokens, use_cache=False).logits
        torch.testing.assert_close(ours(tokens), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False, "norm_eps": 1e-4}], ids=str)
def test_export(changes: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = toy_config("hgrn2", 32, vocab_size=61, layers=3)
    config = config.replace(glu_activation="silu", init_std=0.15, **changes)
    model = build(config).eval()
    with torch.no_grad():
        model.stem.get_parameter("logits").normal_()
    export_model(model, tmp_path / "out", context=64, eos_id=0, layout="fla")
    theirs = HGRN2ForCausalLM.from_pretrained(
        tmp_path / "out", fuse_norm=False, fuse_swiglu=False, fuse_cross_entropy=False
    ).eval()
    tokens = torch.randint(0, 61, (2, 50))
    with torch.no_grad():
        expected = model(tokens)
        torch.testing.assert_close(
            theirs(tokens, use_cache=False).logits, expected, rtol=0, atol=2e-5
        )
        again, _ = import_model(tmp_path / "out")
        torch.testing.assert_close(again(tokens), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_short_conv": True}, "use_short_conv=True cannot be imported"),
        ({"hidden_act": "powlu"}, "only hidden_act='swish' can"),
        ({"attn": {"layers": [1]}}, "attn="),
        ({"num_heads": 2}, "keys of another size than values"),
        ({"hidden_size": None}, "config.json"),
        ({"num_hidden_layers": 4}, "the two do not belong together"),
    ],
)
def test_errors(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = {k: v for k, v in (json.loads(path.read_text()) | changes).items() if v is not None}
    path.write_text(json.dumps(values))
    with pytest.raises(InteropError, match=message):
        import_model(tmp_path)

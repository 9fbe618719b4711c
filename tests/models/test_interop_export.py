"""Export to transformers: the exported model gives our logits, generates, and comes back whole."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from models.architectures.llama import RopeScaling
from models.config import Arch, ModelConfig, toy_config
from models.generation import Decoder, Sampling
from models.interop import InteropError, export_model, import_model
from models.language_model import LanguageModel, build
from tests.support.model_variants import vary

VOCAB = 61
LINEAR: list[tuple[Arch, dict[str, Any]]] = [
    ("tnl", {}),
    ("tnl", {"tie_embeddings": False, "lrpe": "first", "learn_decay": True, "gate_rank": 5}),
    ("tnl", {"lrpe": "all", "lrpe_learned": False, "decay_slopes": "linear"}),
    ("tnl", {"decay_slopes": "none", "heads": 3, "dim": 48}),
    ("tnl", {"decay_slopes": "retnet", "glu_bias": True}),
    ("hgrn2", {}),
    ("hgrn2", {"glu_activation": "silu", "tie_embeddings": False}),
    ("cosformer2", {}),
    ("cosformer2", {"tpe": False, "lrpe_learned": False, "norm_eps": 1e-3}),
]


def random_model(
    arch: Arch, changes: dict[str, Any], dtype: torch.dtype = torch.float32
) -> LanguageModel:
    torch.manual_seed(0)
    config: ModelConfig = vary(toy_config(arch, 32, vocab_size=VOCAB, layers=3), **changes)
    model = build(config.replace(init_std=0.15), dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.1 * torch.rand_like(parameter))
    return model.eval()


def exported(model: LanguageModel, directory: Path, **options: Any) -> Any:
    export_model(model, directory, context=64, eos_id=0, **options)
    with warnings.catch_warnings():
        # transformers' loader of code from a directory leaves files for the collector to close.
        warnings.simplefilter("ignore", ResourceWarning)
        return AutoModelForCausalLM.from_pretrained(
            directory, trust_remote_code=True, dtype=model.embedding.weight.dtype
        ).eval()


def tokens(rows: int = 2, length: int = 75) -> Tensor:
    return torch.randint(1, VOCAB, (rows, length))


@pytest.mark.parametrize(("arch", "changes"), LINEAR)
def test_exported_linear_model(arch: Arch, changes: dict[str, Any], tmp_path: Path) -> None:
    """In float64, where the two may differ only by the order of summation: 1e-9."""
    model = random_model(arch, changes, torch.float64)
    theirs = exported(model, tmp_path / "out")
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in model.parameters())
    batch = tokens()
    with torch.no_grad():
        expected = model(batch)
        torch.testing.assert_close(theirs(batch).logits, expected, rtol=0, atol=1e-9)
        # In pieces, the state as the cache.
        cache, pieces = None, []
        for piece in batch.split([40, 1, 1, 20, 13], dim=1):
            out = theirs(piece, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            pieces.append(out.logits)
        torch.testing.assert_close(torch.cat(pieces, 1), expected, rtol=0, atol=1e-9)
        # Padding on the left, on the right, and both.
        for left, right in ((9, 0), (0, 9), (4, 5)):
            mask = torch.ones_like(batch)
            mask[0, :left] = 0
            mask[0, batch.shape[1] - right :] = 0
            real = batch[:1, left : batch.shape[1] - right]
            got = theirs(batch, attention_mask=mask).logits[:1, left : batch.shape[1] - right]
            torch.testing.assert_close(got, model(real), rtol=0, atol=1e-9)
    again, source = import_model(tmp_path / "out")
    assert source.config == model.config
    assert source.context == 64
    assert source.eos_ids == (0,)
    for name, parameter in again.state_dict().items():
        assert torch.equal(parameter, model.state_dict()[name])


@pytest.mark.parametrize("arch", ["tnl", "hgrn2", "cosformer2", "llama"])
def test_generate_of_transformers_gives_our_tokens(arch: Arch, tmp_path: Path) -> None:
    model = random_model(arch, {})
    theirs = exported(model, tmp_path / "out")
    prompts = [[5, 9, 60, 3], [7, 8], [30] * 20]
    width = max(map(len, prompts))
    padded = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    out = theirs.generate(
        padded, attention_mask=mask, max_new_tokens=15, do_sample=False, eos_token_id=None
    )
    decoder = Decoder(model, prompts, Sampling(max_new_tokens=15, temperature=0))
    ours: list[list[int]] = [[] for _ in prompts]
    while decoder.running:
        for number, token in decoder.advance():
            ours[number].append(token)
    assert out[:, width:].tolist() == ours


def test_beams_reorder_the_state(tmp_path: Path) -> None:
    """With as many beams as a full search needs, the best two-token continuation is found."""
    model = random_model("tnl", {})
    theirs = exported(model, tmp_path / "out")
    prompt = torch.tensor([[5, 9, 60, 3]])
    out = theirs.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        num_beams=VOCAB,
        max_new_tokens=2,
        do_sample=False,
        eos_token_id=None,
    )
    with torch.no_grad():
        first = model(prompt)[0, -1].log_softmax(-1)
        rows = torch.cat((prompt.expand(VOCAB, -1), torch.arange(VOCAB)[:, None]), 1)
        second = model(rows)[:, -1].log_softmax(-1)
    best = (first[:, None] + second).flatten().argmax().item()
    assert out[0, -2:].tolist() == [best // VOCAB, best % VOCAB]


LLAMAS: list[dict[str, Any]] = [
    {},
    {"tie_embeddings": False, "kv_heads": 2, "qkv_bias": True, "out_bias": True, "glu_bias": True},
    {"head_size": 12, "glu_activation": "none"},
    {"window": 13, "kv_heads": 1},
    {"qkv_bias": True},
    {"rope_scaling": RopeScaling(kind="linear", factor=3.0)},
    {"rope_scaling": RopeScaling(kind="dynamic", factor=3.0, original_length=32)},
    {"rope_scaling": RopeScaling(kind="yarn", factor=3.0, original_length=32)},
    {"rope_scaling": RopeScaling(kind="llama3", factor=3.0, original_length=32), "rope_base": 5e5},
]


@pytest.mark.parametrize("changes", LLAMAS, ids=str)
def test_exported_llama_is_transformers_own(changes: dict[str, Any], tmp_path: Path) -> None:
    model = random_model("llama", changes)
    theirs = exported(model, tmp_path / "out", shard_bytes=30_000)
    assert type(theirs).__module__.startswith("transformers.")
    assert not list((tmp_path / "out").glob("*.py"))
    batch = tokens()
    with torch.no_grad():
        torch.testing.assert_close(theirs(batch).logits, model(batch), rtol=0, atol=1e-5)
    again, source = import_model(tmp_path / "out")
    assert source.config == model.config
    with torch.no_grad():
        assert torch.equal(again(batch), model(batch))


def test_bfloat16_keeps_what_must_be_wide(tmp_path: Path) -> None:
    model = random_model("cosformer2", {}).to(torch.bfloat16)
    theirs = exported(model, tmp_path / "out")
    assert theirs.model.embedding.weight.dtype == torch.bfloat16
    again, _ = import_model(tmp_path / "out")
    wide = "blocks.0.mixer.angles.theta"
    assert again.get_parameter(wide).dtype == torch.float32
    assert theirs.get_parameter(f"model.{wide}").dtype == torch.float32
    assert torch.equal(again.get_parameter(wide), model.get_parameter(wide))
    batch = tokens(2, 30)
    with torch.no_grad():
        ours, other = model(batch).float(), theirs(batch).logits.float()
    # bfloat16 has 8 bits: two orders of work differ by a few of its steps on logits of order 1.
    assert (ours - other).abs().mean() < 0.02


def test_exported_model_trains(tmp_path: Path) -> None:
    """Gradients of the loss equal ours."""
    model = random_model("hgrn2", {})
    theirs = exported(model, tmp_path / "out").train()
    batch = tokens()
    theirs(batch, labels=batch).loss.backward()
    model.loss(batch[:, :-1], batch[:, 1:]).mean().backward()
    for name, parameter in model.named_parameters():
        other = theirs.get_parameter(f"model.{name}").grad
        torch.testing.assert_close(other, parameter.grad, rtol=1e-3, atol=1e-5)


def test_errors(tmp_path: Path) -> None:
    model = random_model("llama", {"qk_norm": "head", "glu_bias": True})
    with pytest.raises(InteropError, match="no family of transformers has this combination"):
        export_model(model, tmp_path / "out", context=64, eos_id=0)
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    model = random_model("tnl", {})
    with pytest.raises(InteropError, match="exists and is not empty"):
        export_model(model, tmp_path / "full", context=64, eos_id=0)
    with pytest.raises(InteropError, match="layout='gguf': choose one of transformers, fla"):
        export_model(model, tmp_path / "out", context=64, eos_id=0, layout="gguf")
    with pytest.raises(InteropError, match="models there are hgrn2, gla"):
        export_model(model, tmp_path / "out", context=64, eos_id=0, layout="fla")

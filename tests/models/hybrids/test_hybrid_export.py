"""Hybrids as transformers' models: logits, mixed cache, padding, generation, and back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from models.config import ModelConfig, toy_config
from models.generation import Decoder, Sampling
from models.interop import InteropError, export_model, import_model
from models.language_model import LanguageModel, build

VOCAB = 61
PATTERNS = [
    ("hgrn2", "hgrn2*3+llama", {}),
    ("llama", "tnl(lrpe=all)+llama(window=7, kv_heads=2)", {"tie_embeddings": False}),
    ("cosformer2", "cosformer2+hgrn2+tnl(learn_decay=true)+llama(rope_share=0)", {}),
    ("tnl", "llama+hgrn2", {"glu_activation": "silu"}),
    ("cosformer2", "cosformer2+tnl", {}),
    ("llama", "lolcats(window=4)+hgrn2+supra", {}),
    ("gated_deltanet", "gated_deltanet*3+llama", {}),
    ("llama", "kda(negative_eigenvalues=true)+llama(rope_share=0)+gla+mamba2(groups=2)", {}),
    ("tnl", "mamba2(convolution=1, state_size=5)+kda(convolution=3, key_size=6)", {}),
    ("gla", None, {}),
    ("mamba2", None, {}),
    ("gated_deltanet", None, {}),
    ("kda", None, {"tie_embeddings": False}),
]


def random_model(
    arch: str, pattern: str | None, changes: dict[str, Any], dtype: torch.dtype = torch.float64
) -> LanguageModel:
    torch.manual_seed(0)
    config = toy_config(arch, 32, vocab_size=VOCAB, layers=4).replace(mixers=pattern, **changes)
    model = build(config.replace(init_std=0.15), dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.1 * torch.rand_like(parameter))
    return model.eval()


def exported(model: LanguageModel, directory: Path) -> Any:
    export_model(model, directory, context=64, eos_id=0)
    with warnings.catch_warnings():
        # transformers' loader of code from a directory leaves files for the collector to close.
        warnings.simplefilter("ignore", ResourceWarning)
        return AutoModelForCausalLM.from_pretrained(
            directory, trust_remote_code=True, dtype=model.embedding.weight.dtype
        ).eval()


@pytest.mark.parametrize(("arch", "pattern", "changes"), PATTERNS)
def test_exported_hybrid(
    arch: str, pattern: str | None, changes: dict[str, Any], tmp_path: Path
) -> None:
    """In float64, where the two may differ only by the order of summation: 1e-9."""
    model = random_model(arch, pattern, changes)
    theirs = exported(model, tmp_path / "out")
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in model.parameters())
    batch = torch.randint(1, VOCAB, (2, 40))
    with torch.no_grad():
        expected = model(batch)
        torch.testing.assert_close(theirs(batch).logits, expected, rtol=0, atol=1e-9)
        cache, pieces = None, []
        for piece in batch.split([20, 1, 1, 18], dim=1):
            out = theirs(piece, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            pieces.append(out.logits)
        torch.testing.assert_close(torch.cat(pieces, 1), expected, rtol=0, atol=1e-9)
        for left, right in ((9, 0), (0, 9), (4, 5)):
            mask = torch.ones_like(batch)
            mask[0, :left] = 0
            mask[0, batch.shape[1] - right :] = 0
            real = batch[:1, left : batch.shape[1] - right]
            got = theirs(batch, attention_mask=mask).logits[:1, left : batch.shape[1] - right]
            torch.testing.assert_close(got, model(real), rtol=0, atol=1e-9)
    again, source = import_model(tmp_path / "out")
    assert source.config == model.config
    for name, parameter in again.state_dict().items():
        assert torch.equal(parameter, model.state_dict()[name])


@pytest.mark.parametrize("pattern", [PATTERNS[0], ("gated_deltanet", "kda*3+llama", {})])
def test_generates_our_tokens_in_a_process_without_this_project(
    pattern: tuple[str, str, dict[str, Any]], tmp_path: Path
) -> None:
    """Left-padded prompts, greedily, with the mixed cache."""
    model = random_model(*pattern, dtype=torch.float32)
    export_model(model, tmp_path / "out", context=64, eos_id=0)
    prompts = [[5, 9, 60, 3], [7, 8], [30] * 9]
    code = (
        "import json, sys, torch, warnings\n"
        "from importlib.util import find_spec\n"
        "assert find_spec('models') is None and find_spec('linscale') is None\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()\n"
        "prompts = json.loads(sys.argv[2])\n"
        "width = max(map(len, prompts))\n"
        "pad = lambda fill, p: fill * (width - len(p))\n"
        "rows = torch.tensor([pad([0], p) + p for p in prompts])\n"
        "mask = torch.tensor([pad([0], p) + [1] * len(p) for p in prompts])\n"
        "out = model.generate(rows, attention_mask=mask, max_new_tokens=12, do_sample=False,\n"
        "                     eos_token_id=None)\n"
        "print(json.dumps(out[:, width:].tolist()))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["HF_HOME"] = str(tmp_path / "home")
    packages = next(p for p in sys.path if p.endswith("site-packages"))
    # -S leaves out site's path files, so that an editable installation is not found.
    command = [sys.executable, "-S", "-c", f"import sys; sys.path.append({packages!r})\n{code}"]
    done = subprocess.run(
        [*command, str(tmp_path / "out"), json.dumps(prompts)],
        capture_output=True, text=True, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    decoder = Decoder(model, prompts, Sampling(max_new_tokens=12, temperature=0))
    ours: list[list[int]] = [[] for _ in prompts]
    while decoder.running:
        for number, token in decoder.advance():
            ours[number].append(token)
    assert json.loads(done.stdout.strip().splitlines()[-1]) == ours


def refused(config: ModelConfig, directory: Path, match: str) -> None:
    with pytest.raises(InteropError, match=match):
        export_model(build(config), directory, context=8, eos_id=0)


def test_what_is_refused(tmp_path: Path) -> None:
    base = toy_config("hgrn2", 32, vocab_size=VOCAB, layers=2)
    capped = base.replace(mixers="hgrn2+llama(score_cap=5)")
    refused(capped, tmp_path / "a", "model.mixers: llama with .*imported families")
    dynamic = "hgrn2+llama(rope_scaling.kind=dynamic, rope_scaling.factor=2.0, "
    dynamic = base.replace(mixers=dynamic + "rope_scaling.original_length=8)")
    refused(dynamic, tmp_path / "b", "dynamic.*length of the text")
    with pytest.raises(InteropError, match="layout='fla' is for models whose layers are all alike"):
        export_model(
            build(base.replace(mixers="hgrn2+llama", glu_activation="silu")),
            tmp_path / "c", context=8, eos_id=0, layout="fla",
        )  # fmt: skip


@pytest.mark.parametrize("arch", ["gla", "mamba2", "gated_deltanet", "kda"])
def test_fresh_parameters_of_exported_code_are_as_ours(arch: str, tmp_path: Path) -> None:
    """Made from a configuration alone, as for training on: finite, the ranges of the papers."""
    model = random_model(arch, None, {})
    theirs = exported(model, tmp_path / "out")
    fresh = type(theirs)(theirs.config)
    for name, parameter in fresh.named_parameters():
        assert torch.isfinite(parameter).all(), name
        if name.endswith("decay.log_rate"):
            assert parameter.exp().max() <= 16
        if name.endswith("decay.bias"):
            steps = torch.nn.functional.softplus(parameter)
            assert bool(((steps > 9e-4) & (steps < 0.11)).all())
        if name.endswith(("mixer.norm.weight", "skip.weight")):
            assert bool((parameter == 1).all())

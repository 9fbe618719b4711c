"""Linearized models in transformers: same logits, same generation, and back without a change."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from models.architectures.llama import RopeScaling, llama_options
from models.architectures.lolcats import LoLCATs
from models.architectures.supra import Supra
from models.config import ConfigError
from models.generation import Decoder, Sampling
from models.interop import InteropError, export_model, import_model
from models.language_model import LanguageModel
from models.linearize.lora import add_lora, merge_lora
from models.linearize.surgery import linearize
from tests.support.imported_blocks import BLOCKS
from tests.support.linearize_oracles import teacher, tokens

METHODS: list[tuple[Supra | LoLCATs, dict[str, Any]]] = [
    (Supra(), {}),
    (Supra(softmax_layers=(1,), decay_slopes="retnet"), {"kv_heads": None, "qkv_bias": True}),
    (Supra(feature_map="elu", norm=False, decay_slopes="none"), {"window": 9}),
    (Supra(learn_decay=True), {"glu_bias": True, "out_bias": True}),
    (LoLCATs(window=4), {}),
    (LoLCATs(window=64), {"head_size": 6, "tie_embeddings": False}),
    (
        LoLCATs(window=5, arrangement="sliding", affine=True, softmax_layers=(0, 2)),
        {"window": 9, "rope_scaling": RopeScaling(kind="yarn", factor=3.0, original_length=32)},
    ),
    (LoLCATs(window=7, feature_map="t2r", feature_size=3), {"glu_activation": "none"}),
    (LoLCATs(window=3, feature_map="taylor", arrangement="sliding"), {}),
    (LoLCATs(window=3, sink_tokens=5), {}),
    (LoLCATs(window=4, shared_state=True, sink_tokens=1), {}),
    (LoLCATs(window=6, feature_map="none", arrangement="sliding", sink_tokens=1), {}),
    (
        LoLCATs(window=3, feature_map="relu"),
        {"rope_scaling": RopeScaling(kind="llama3", factor=3.0, original_length=32)},
    ),
]


def student(
    options: Supra | LoLCATs, changes: dict[str, Any], dtype: torch.dtype = torch.float64
) -> LanguageModel:
    """A linearized model whose new vectors are not at their start."""
    model = linearize(teacher(dtype, **changes), options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2 and "slopes" not in name:
                parameter.add_(0.3 * torch.rand_like(parameter))
    return model.eval()


def loaded(directory: Path, dtype: torch.dtype = torch.float64) -> Any:
    with warnings.catch_warnings():
        # transformers' loader of code from a directory leaves files for the collector to close.
        warnings.simplefilter("ignore", ResourceWarning)
        return transformers.AutoModelForCausalLM.from_pretrained(
            directory, trust_remote_code=True, dtype=dtype
        ).eval()


@pytest.mark.parametrize(("options", "changes"), METHODS)
def test_exported_model_is_ours(
    options: Supra | LoLCATs, changes: dict[str, Any], tmp_path: Path
) -> None:
    """In float64, where the two differ by the order of summation alone: 1e-9."""
    model = student(options, changes)
    export_model(model, tmp_path / "out", context=64, eos_id=0, shard_bytes=30_000)
    theirs = loaded(tmp_path / "out")
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in model.parameters())
    batch = tokens(2, 75)
    with torch.no_grad():
        expected = model(batch)
        torch.testing.assert_close(theirs(batch).logits, expected, rtol=0, atol=1e-9)
        # In pieces, with the cache between them.
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
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize("options", [Supra(softmax_layers=(1,)), LoLCATs(window=4)])
def test_generate_of_transformers_gives_our_tokens(
    options: Supra | LoLCATs, tmp_path: Path
) -> None:
    """Prompts of different lengths, padded on the left; also through beams."""
    model = student(options, {})
    export_model(model, tmp_path / "out", context=64, eos_id=0)
    theirs = loaded(tmp_path / "out")
    prompts = [[5, 9, 60, 3], [7, 8], [30] * 20]
    padded = torch.tensor([[0] * (20 - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (20 - len(p)) + [1] * len(p) for p in prompts])
    more: dict[str, Any] = {"attention_mask": mask, "do_sample": False, "eos_token_id": None}
    out = theirs.generate(padded, max_new_tokens=15, **more)
    decoder = Decoder(model, prompts, Sampling(max_new_tokens=15, temperature=0))
    ours: list[list[int]] = [[] for _ in prompts]
    while decoder.running:
        for number, token in decoder.advance():
            ours[number].append(token)
    assert out[:, 20:].tolist() == ours
    beams = theirs.generate(padded, max_new_tokens=6, num_beams=3, **more)
    plain = theirs.generate(padded, max_new_tokens=6, num_beams=3, use_cache=False, **more)
    assert beams.tolist() == plain.tolist()


def test_cache_of_linear_layers_does_not_grow(tmp_path: Path) -> None:
    model = student(LoLCATs(window=4), {}, torch.float32)
    export_model(model, tmp_path / "out", context=64, eos_id=0)
    theirs = loaded(tmp_path / "out", torch.float32)
    sizes = []
    with torch.no_grad():
        for length in (30, 300):
            cache = theirs(tokens(1, length), use_cache=True).past_key_values
            sizes.append(sum(state.nbytes for state in cache.states.values()))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("options", [Supra(), LoLCATs(window=4)])
def test_a_random_mistral_goes_through_everything(options: Supra | LoLCATs, tmp_path: Path) -> None:
    """transformers' Mistral, linearized, tuned by LoRA, merged, exported, imported again."""
    torch.manual_seed(0)
    mistral = transformers.MistralForCausalLM(
        transformers.MistralConfig(
            vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=10, sliding_window=32,
            max_position_embeddings=128, initializer_range=0.2, eos_token_id=0, bos_token_id=None,
        )
    )  # fmt: skip
    mistral.save_pretrained(tmp_path / "mistral")
    model, source = import_model(tmp_path / "mistral")
    assert (llama_options(source.config).kv_heads, llama_options(source.config).window) == (2, 32)
    model = linearize(model, options)
    text = tokens(2, 40)
    optimizer = torch.optim.Adam(add_lora(model, rank=2), lr=0.02)
    for _ in range(3):
        optimizer.zero_grad()
        model.loss(text[:, :-1], text[:, 1:]).mean().backward()
        optimizer.step()
    with pytest.raises(InteropError, match=r"LoRA that is not merged.*merge_lora"):
        export_model(model, tmp_path / "out", context=128, eos_id=0)
    merge_lora(model)
    export_model(model, tmp_path / "out", context=128, eos_id=0)
    again, source = import_model(tmp_path / "out")
    assert source.config == model.config
    theirs = loaded(tmp_path / "out", torch.float32)
    with torch.no_grad():
        expected = model(text)
        assert torch.equal(again(text), expected)
        # float32 logits of order 5, sums of a few hundred terms.
        torch.testing.assert_close(theirs(text).logits, expected, rtol=0, atol=1e-4)


def test_exported_model_trains(tmp_path: Path) -> None:
    """Gradients of the loss equal ours, also those of feature maps and factors."""
    model = student(LoLCATs(window=4, softmax_layers=(1,)), {})
    export_model(model, tmp_path / "out", context=64, eos_id=0)
    theirs = loaded(tmp_path / "out").train()
    batch = tokens(2, 40)
    theirs(batch, labels=batch).loss.backward()
    model.loss(batch[:, :-1], batch[:, 1:]).mean().backward()
    for name, parameter in model.named_parameters():
        other = theirs.get_parameter(f"model.{name}").grad
        # transformers computes the loss in float32.
        torch.testing.assert_close(other, parameter.grad, rtol=1e-4, atol=1e-6)


def test_fresh_weights_of_the_exported_code(tmp_path: Path) -> None:
    """`from_config` starts where a new model of ours does."""
    model = student(LoLCATs(window=4, feature_map="t2r"), {})
    export_model(model, tmp_path / "out", context=64, eos_id=0)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out", trust_remote_code=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        fresh: Any = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    mixer, start = fresh.model.blocks[0].mixer, torch.tensor(0.1).logit()
    assert torch.equal(mixer.factor.logit.float(), start.expand(4))
    assert torch.equal(fresh.model.norm.weight.float(), torch.ones(32))
    assert mixer.query_map.bias.eq(0).all()
    for matrix in (mixer.qkv.weight, mixer.query_map.weight, fresh.model.embedding.weight):
        assert 0.01 < matrix.std() < 1
    assert isinstance(mixer.qkv, nn.Linear)


def test_bfloat16_keeps_the_window_factors_wide(tmp_path: Path) -> None:
    model = student(LoLCATs(window=4), {}, torch.float32).to(torch.bfloat16)
    export_model(model, tmp_path / "out", context=64, eos_id=0)
    theirs = loaded(tmp_path / "out", torch.bfloat16)
    name = "blocks.0.mixer.factor.logit"
    assert theirs.get_parameter(f"model.{name}").dtype == torch.float32
    again, _ = import_model(tmp_path / "out")
    assert torch.equal(again.get_parameter(name), model.get_parameter(name))


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    scaling = RopeScaling(kind="dynamic", factor=2.0, original_length=32)
    model = student(LoLCATs(window=4), {"rope_scaling": scaling})
    with pytest.raises(InteropError, match=r"'dynamic'.*linear, yarn or llama3"):
        export_model(model, tmp_path / "out", context=64, eos_id=0)
    model = student(Supra(), {})
    with pytest.raises(ConfigError, match="fla"):
        export_model(model, tmp_path / "out", context=64, eos_id=0, layout="fla")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("like", BLOCKS)
@pytest.mark.parametrize("options", [Supra(softmax_layers=(1,)), LoLCATs(window=4, sink_tokens=1)])
def test_blocks_of_imported_families_are_exported(
    options: Supra | LoLCATs, like: str, tmp_path: Path
) -> None:
    model = student(options, BLOCKS[like])
    export_model(model, tmp_path / "out", context=64, eos_id=0)
    theirs, batch = loaded(tmp_path / "out"), tokens(2, 60)
    with torch.no_grad():
        torch.testing.assert_close(theirs(batch).logits, model(batch), rtol=0, atol=1e-9)
        cache, pieces = None, []
        for piece in batch.split([40, 1, 19], dim=1):
            out = theirs(piece, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            pieces.append(out.logits)
        torch.testing.assert_close(torch.cat(pieces, 1), model(batch), rtol=0, atol=1e-9)
    again, source = import_model(tmp_path / "out")
    assert source.config == model.config
    assert torch.equal(again(batch), model(batch))


def test_what_callers_of_transformers_ask_for(tmp_path: Path) -> None:
    """Hidden states, tuples, and gradients with checkpointing equal to those without."""
    model = student(LoLCATs(window=4, softmax_layers=(2,)), {})
    export_model(model, tmp_path / "out", context=64, eos_id=0)
    theirs, batch = loaded(tmp_path / "out"), tokens(2, 30)
    seen: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(batch)
        out = theirs(batch, output_hidden_states=True)
        for mine, other in zip(seen, out.hidden_states[:-1], strict=True):
            torch.testing.assert_close(other, mine, rtol=0, atol=1e-9)
        last = torch.nn.functional.linear(out.hidden_states[-1], model.head_weight)
        torch.testing.assert_close(last, out.logits, rtol=0, atol=1e-9)
        assert theirs(batch).hidden_states is None
        first, *_ = theirs(batch, return_dict=False)
        torch.testing.assert_close(first, out.logits)
    gradients: list[dict[str, Tensor]] = []
    for again in (False, True):
        theirs.train()
        if again:
            with warnings.catch_warnings():  # has another name in later versions
                warnings.simplefilter("ignore", FutureWarning)
                theirs.gradient_checkpointing_enable({"use_reentrant": False})
        theirs.zero_grad()
        theirs(batch, labels=batch).loss.backward()
        gradients.append({n: p.grad for n, p in theirs.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-9)

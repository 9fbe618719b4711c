"""Import of the families of Hugging Face's decoders: logits equal those of transformers.

As in `test_interop_llama`: every model is built at random by transformers, saved by it, and read by
us; in float32 the two differ by the order of summation.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models import accounting
from models.architectures.llama import llama_options
from models.config import ModelConfig
from models.interop import InteropError, export_model, import_model, read_source
from models.interop.families import FAMILIES
from models.interop.llama import model_config
from models.interop.tensors import INDEX

SMALL: dict[str, Any] = {
    "vocab_size": 83,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS = {"head_dim": 12}
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONG: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
    "long_factor": [1.0, 1.5, 2.5, 4.0, 6.0, 8.0],
}


def ropes(full: dict[str, Any]) -> dict[str, Any]:
    return {"rope_parameters": {
        "full_attention": full,
        "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
    }}  # fmt: skip


VARIANTS: list[tuple[str, str, dict[str, Any]]] = [
    ("qwen3", "qwen3", HEADS),
    ("qwen3, biases, tied, wide heads", "qwen3",
     {"head_dim": 20, "attention_bias": True, "tie_word_embeddings": True}),
    ("qwen3, windows", "qwen3",
     HEADS | {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 2}),
    ("qwen2, windows", "qwen2",
     {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1}),
    ("smollm3", "smollm3", {}),
    ("smollm3, layers", "smollm3", {"no_rope_layers": [0, 1, 1, 0], "attention_bias": True}),
    ("smollm3, windows", "smollm3",
     {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 9,
      "tie_word_embeddings": False, "mlp_bias": True}),
    ("ministral", "ministral", {"sliding_window": 17, "head_dim": 12}),
    ("ministral, layers", "ministral",
     {"sliding_window": 9, "head_dim": 20, "layer_types":
      ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]}),
    ("ministral3", "ministral3",
     HEADS | {"rope_parameters": YARN | {"llama_4_scaling_beta": 0.3}}),
    ("ministral3, window", "ministral3",
     HEADS | {"sliding_window": 13, "rope_parameters":
              YARN | {"llama_4_scaling_beta": 0.1, "mscale": 1.0, "mscale_all_dim": 1.0}}),
    ("olmo2", "olmo2", {}),
    ("olmo2, biases, tied", "olmo2", {"attention_bias": True, "tie_word_embeddings": True}),
    ("olmo3", "olmo3", {"sliding_window": 13}),
    ("olmo3, yarn, layers", "olmo3",
     {"sliding_window": 13, "layer_types":
      ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
      **ropes(YARN)}),
    ("gemma", "gemma", HEADS),
    ("gemma, old activation", "gemma", {"head_dim": 16, "hidden_act": "gelu"}),
    ("gemma, exact activation", "gemma", {"head_dim": 16, "hidden_act": "relu"}),
    ("gemma2", "gemma2", HEADS | {"sliding_window": 13}),
    ("gemma2, tight caps", "gemma2",
     {"head_dim": 20, "sliding_window": 9, "query_pre_attn_scalar": 30,
      "attn_logit_softcapping": 0.5, "final_logit_softcapping": 1.5, "attention_bias": True}),
    ("gemma2, no caps", "gemma2",
     HEADS | {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    ("gemma3", "gemma3_text", HEADS | {"sliding_window": 13, "sliding_window_pattern": 3}),
    ("gemma3, ropes", "gemma3_text",
     {"head_dim": 20, "sliding_window": 9, "query_pre_attn_scalar": 17,
      "layer_types": ["sliding_attention", "full_attention"] * 2,
      "tie_word_embeddings": False,
      **ropes({"rope_type": "linear", "factor": 8.0, "rope_theta": 2e4})}),
    ("gemma3, cap", "gemma3_text",
     HEADS | {"sliding_window": 13, "final_logit_softcapping": 2.0}),
    ("phi3", "phi3", {}),
    ("phi3, window, tied", "phi3", {"sliding_window": 9, "tie_word_embeddings": True}),
    ("phi3, longrope, short", "phi3",
     {"rope_parameters": LONG, "original_max_position_embeddings": 100}),
    ("phi3, longrope, long", "phi3",
     {"rope_parameters": LONG, "original_max_position_embeddings": 32}),
    ("phi3, share", "phi3",
     {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                          "partial_rotary_factor": 0.5}}),
    ("phi3, share, longrope", "phi3",
     {"original_max_position_embeddings": 32, "rope_parameters":
      LONG | {"partial_rotary_factor": 0.5, "short_factor": LONG["short_factor"][:3],
              "long_factor": LONG["long_factor"][:3]}}),
    ("granite", "granite",
     {"embedding_multiplier": 7.0, "residual_multiplier": 0.3, "attention_multiplier": 0.2,
      "logits_scaling": 5.0, "attention_bias": True, "mlp_bias": True}),
    ("granite, tied", "granite", {"attention_multiplier": 12**-0.5, "tie_word_embeddings": True}),
    ("helium", "helium", HEADS),
    ("helium, biases", "helium", HEADS | {"attention_bias": True, "mlp_bias": True}),
    ("glm", "glm", HEADS | {"partial_rotary_factor": 0.5}),
    ("glm4", "glm4", {"head_dim": 16, "attention_bias": False}),
    ("exaone4", "exaone4", {"sliding_window": 13}),
    ("exaone4, all layers", "exaone4",
     {"sliding_window": None, "layer_types": ["full_attention"] * 4}),
    ("seed_oss", "seed_oss", {"head_dim": 20, "mlp_bias": True}),
]  # fmt: skip
LOGITS = 1e-5
"""On logits of order 1; those of larger ones are as many times larger."""


def make(family: str, changes: dict[str, Any]) -> Any:
    """A random model of transformers in float32."""
    torch.manual_seed(0)
    values = json.loads(json.dumps(SMALL | changes))
    config = transformers.AutoConfig.for_model(family, **values)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():  # ones and zeros would hide mistakes
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def tokens(rows: int = 2, length: int = 90) -> Tensor:
    return torch.randint(3, SMALL["vocab_size"], (rows, length))


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    most = max(1.0, float(theirs.abs().max()))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=LOGITS * most)


def by_name(name: str) -> tuple[str, dict[str, Any]]:
    return next(v[1:] for v in VARIANTS if v[0] == name)


every = pytest.mark.parametrize("name", [v[0] for v in VARIANTS])


@every
def test_logits_and_steps_equal_transformers(name: str, tmp_path: Path) -> None:
    theirs = make(*by_name(name))
    theirs.save_pretrained(tmp_path / "theirs")
    ours, _ = import_model(tmp_path / "theirs")
    batch = tokens()
    with torch.no_grad():
        expected = theirs(batch).logits
        assert_near(ours(batch), expected)
        count = sum(p.numel() for p in theirs.parameters())
        assert sum(p.numel() for p in ours.parameters()) == count
        groups = accounting.parameters(ours.config)
        assert sum(groups.values()) == count
        if "longrope" in name:  # keys in a cache keep the angles of their call
            return
        logits, state = ours(batch[:, :70], return_state=True)
        pieces = [logits]
        for t in range(70, 90):
            logits, state = ours.step(batch[:, t], state)
            pieces.append(logits[:, None])
        assert_near(torch.cat(pieces, 1), expected)
        # The loss comes from the same logits, capped or not.
        loss = ours.loss(batch[:, :-1], batch[:, 1:])
        wide = torch.nn.functional.cross_entropy(
            expected[:, :-1].flatten(0, 1), batch[:, 1:].flatten(), reduction="none"
        )
        assert_near(loss.flatten(), wide)


@every
def test_exported_again_they_are_the_same(name: str, tmp_path: Path) -> None:
    """Written for the first family that can hold the model, and read by transformers."""
    theirs = make(*by_name(name))
    theirs.save_pretrained(tmp_path / "theirs")
    ours, source = import_model(tmp_path / "theirs")
    export_model(ours, tmp_path / "ours", context=128, eos_id=2)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    batch = tokens()
    with torch.no_grad():
        assert_near(again(batch).logits, theirs(batch).logits)
    back = read_source(tmp_path / "ours").config
    assert accounting.parameters(back) == accounting.parameters(source.config)


@pytest.mark.parametrize("family", FAMILIES)
def test_silent_fields_are_what_transformers_takes(family: str, tmp_path: Path) -> None:
    """A config.json with the sizes alone means what the whole one of transformers means."""
    few = {k: SMALL[k] for k in ("vocab_size", "hidden_size", "intermediate_size")}
    few |= {"num_hidden_layers": 8, "num_attention_heads": 160, "model_type": family}
    few["hidden_size"] = 160 * 128 if family == "helium" else 640
    whole = transformers.AutoConfig.for_model(
        **{k: v for k, v in few.items() if k != "model_type"}, model_type=family
    ).to_dict()
    for name, values in (("few", few), ("whole", whole)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(values))
    found = model_config(tmp_path / "few")
    expected = model_config(tmp_path / "whole")
    assert found.replace(init_std=None) == expected.replace(init_std=None)


@pytest.mark.parametrize("name", ["gemma3", "phi3, share", "olmo3", "granite"])
def test_sharded_bf16_files(name: str, tmp_path: Path) -> None:
    theirs = make(*by_name(name)).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    assert (tmp_path / INDEX).is_file()
    ours, _ = import_model(tmp_path)
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    wide, _ = import_model(tmp_path, dtype=torch.float32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    batch = tokens()
    with torch.no_grad():
        assert_near(wide(batch), theirs(batch).logits)


def causal_flops(config: ModelConfig, length: int) -> float:
    """Forward FLOPs of all tokens of a sequence."""
    terms = accounting.forward_flops_per_token(config, accounting.mean_keys(length))
    return length * sum(terms.values())


@pytest.mark.parametrize(
    "name", ["gemma3", "gemma2, tight caps", "qwen3, windows", "phi3, share", "granite", "glm4"]
)
def test_flops_are_those_of_the_counter(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Softmax attention by one query at a time over the keys it sees, as the convention says."""
    from models.llama import SoftmaxAttention

    make(*by_name(name)).save_pretrained(tmp_path)
    model, source = import_model(tmp_path)
    length = 24

    def one_by_one(self: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        outputs = []
        for t in range(q.shape[2]):
            seen = slice(t + 1) if mask is None else mask.squeeze()[t].nonzero()[:, 0]
            scores = q[:, :, t : t + 1] @ k[:, :, seen].mT
            outputs.append(scores.softmax(-1) @ v[:, :, seen])
        return torch.cat(outputs, 2)

    monkeypatch.setattr(SoftmaxAttention, "_attention", one_by_one)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens(1, length))
    assert counter.get_total_flops() == causal_flops(source.config, length)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("qwen3", {"model_type": "qwen3_next"}, "no softmax attention"),
        ("qwen3", {"model_type": "qwen3_5_text"}, "no softmax attention"),
        ("qwen3", {"layer_types": ["linear_attention"] * 4}, "linear_attention"),
        ("gemma3_text", {"model_type": "gemma3"}, "Gemma3ForCausalLM.from_pretrained"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "both directions"),
        ("qwen3", {"partial_rotary_factor": 0.5}, "all channels of a head must rotate"),
        ("gemma3_text", {"hidden_activation": "mish"}, "hidden_activation='mish'"),
        ("olmo3", ropes({"rope_type": "default"}) | {"rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e4},
            "sliding_attention": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}},
         "sliding_attention.rope_type='linear'"),
        ("qwen3", {"quantization_config": {"quant_method": "awq"}}, "quantised weights"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_named(
    family: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    make(family, {"head_dim": 12}).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InteropError, match=message):
        import_model(tmp_path)


def test_a_plain_llama_stays_plain(tmp_path: Path) -> None:
    """What a family does not have stays at its default, so that runs keep their names."""
    make("llama", {}).save_pretrained(tmp_path)
    config = read_source(tmp_path).config
    assert llama_options(config).plain
    assert config.plain_blocks

"""Import of Llama, Mistral and Qwen2 checkpoints: logits equal those of transformers.

Every model is built at random by transformers, saved by it, and read by us. In float32 the two
differ by the order of summation: 1e-5 on logits of order 1, as the import promises.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from models.interop import InteropError, import_model, read_source
from models.interop.tensors import INDEX, stored_tensors

LENGTH = 90
SMALL = {
    "vocab_size": 83,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
YARN["original_max_position_embeddings"] = 32
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}

VARIANTS: list[tuple[str, str, dict[str, Any]]] = [
    ("plain", "llama", {"num_key_value_heads": 4}),
    ("grouped", "llama", {}),
    ("one key-value head", "llama", {"num_key_value_heads": 1}),
    ("tied", "llama", {"tie_word_embeddings": True}),
    ("biases", "llama", {"attention_bias": True, "mlp_bias": True}),
    ("attention bias", "llama", {"attention_bias": True, "tie_word_embeddings": True}),
    ("head size", "llama", {"head_dim": 20}),
    ("linear activation", "llama", {"hidden_act": "linear"}),
    ("eps", "llama", {"rms_norm_eps": 1e-2}),
    ("base", "llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    ("linear", "llama", {"rope_parameters": LINEAR}),
    ("dynamic, short", "llama", {"rope_parameters": DYNAMIC}),
    ("dynamic, long", "llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 32}),
    ("yarn", "llama", {"rope_parameters": YARN}),
    ("yarn, tuned", "llama", {"rope_parameters": YARN | {"beta_fast": 8.0, "beta_slow": 0.5}}),
    ("yarn, factor", "llama", {"rope_parameters": YARN | {"attention_factor": 1.3}}),
    ("yarn, mscale", "llama", {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 0.4}}),
    ("yarn, exact range", "llama", {"rope_parameters": YARN | {"truncate": False}}),
    ("llama3", "llama", {"rope_parameters": LLAMA3}),
    ("llama3, head size", "llama", {"rope_parameters": LLAMA3, "head_dim": 32}),
    ("mistral", "mistral", {"sliding_window": None}),
    ("window", "mistral", {"sliding_window": 17}),
    ("window beyond", "mistral", {"sliding_window": 500}),
    ("odd heads", "mistral", {"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 8}),
    ("window, yarn, tied", "mistral",
     {"sliding_window": 9, "rope_parameters": YARN, "tie_word_embeddings": True}),
    ("qwen2", "qwen2", {}),
    ("qwen2, tied", "qwen2", {"tie_word_embeddings": True}),
    ("qwen2, window", "qwen2",
     {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 0}),
]  # fmt: skip
CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
}


def make(family: str, changes: dict[str, Any]) -> Any:
    """A random model of transformers in float32."""
    torch.manual_seed(0)
    config_class, model_class = CLASSES[family]
    model = model_class(config_class(**json.loads(json.dumps(SMALL | changes))))
    with torch.no_grad():  # ones and zeros would hide mistakes
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def tokens(rows: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randint(0, SMALL["vocab_size"], (rows, length))


@pytest.mark.parametrize(
    ("family", "changes"), [v[1:] for v in VARIANTS], ids=[v[0] for v in VARIANTS]
)
def test_logits_equal_transformers(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = make(family, changes)
    theirs.save_pretrained(tmp_path)
    ours, _ = import_model(tmp_path)
    batch = tokens()
    with torch.no_grad():
        torch.testing.assert_close(ours(batch), theirs(batch).logits, rtol=0, atol=1e-5)
    count = sum(p.numel() for p in theirs.parameters())
    assert sum(p.numel() for p in ours.parameters()) == count


@pytest.mark.parametrize("name", ["grouped", "llama3", "window", "qwen2, window"])
def test_steps_equal_transformers(name: str, tmp_path: Path) -> None:
    family, changes = next(v[1:] for v in VARIANTS if v[0] == name)
    theirs = make(family, changes)
    theirs.save_pretrained(tmp_path)
    ours, _ = import_model(tmp_path)
    batch = tokens(3, 40)
    with torch.no_grad():
        logits, state = ours(batch[:, :25], return_state=True)
        outputs = [logits]
        for t in range(25, 40):
            logits, state = ours.step(batch[:, t], state)
            outputs.append(logits[:, None])
        expected = theirs(batch).logits
    torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=0, atol=1e-5)


def test_old_names_of_rope_fields(tmp_path: Path) -> None:
    """Checkpoints older than transformers 5 have rope_theta and rope_scaling with `type`."""
    theirs = make("llama", {"rope_parameters": YARN | {"rope_theta": 2e4}})
    theirs.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    rope = values.pop("rope_parameters")
    rope["type"] = rope.pop("rope_type")
    values["rope_theta"] = rope.pop("rope_theta")
    values["rope_scaling"] = rope
    (tmp_path / "config.json").write_text(json.dumps(values))
    batch = tokens()
    with torch.no_grad():
        ours, _ = import_model(tmp_path)
        torch.testing.assert_close(ours(batch), theirs(batch).logits, rtol=0, atol=1e-5)


def test_shards_and_dtypes(tmp_path: Path) -> None:
    theirs = make("llama", {}).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / INDEX).is_file()
    ours, source = import_model(tmp_path)
    assert ours.embedding.weight.dtype == torch.bfloat16
    assert source.context == 128
    wide, _ = import_model(tmp_path, dtype=torch.float32)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        batch = tokens()
        torch.testing.assert_close(wide(batch), theirs(batch).logits, rtol=0, atol=1e-5)


def rewrite(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type='gpt2' cannot be imported"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "mixture of experts"),
        ({"kv_lora_rank": 512}, "latent attention"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"hidden_act": "quick_gelu"}, "hidden_act='quick_gelu'"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"partial_rotary_factor": 0.5}, "all channels of a head must rotate"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "lacks 'short_factor"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "lacks 'low_freq_factor'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "must be alike"),
        ({"num_key_value_heads": 3}, "kv_heads=3 does not divide"),
        ({"intermediate_size": 64}, "do not belong together"),
        ({"num_hidden_layers": 3}, "the checkpoint lacks model.layers.2"),
        ({"num_hidden_layers": 1}, "has unknown tensors model.layers.1"),
        ({"attention_bias": True}, "the checkpoint lacks model.layers.0.self_attn.k_proj.bias"),
    ],
)
def test_what_cannot_be_imported_is_named(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    make("llama", {}).save_pretrained(tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(InteropError, match=message):
        import_model(tmp_path)


def test_damaged_directories(tmp_path: Path) -> None:
    with pytest.raises(InteropError, match="not a directory"):
        read_source(tmp_path / "absent")
    with pytest.raises(InteropError, match=r"hf download Qwen/Qwen3-0\.6B --local-dir"):
        read_source("Qwen/Qwen3-0.6B")
    (tmp_path / "adapter").mkdir()
    adapter = {"base_model_name_or_path": "Qwen/Qwen3-0.6B"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(InteropError, match=r"an adapter for Qwen/Qwen3-0\.6B.*merge_and_unload"):
        read_source(tmp_path / "adapter")
    with pytest.raises(InteropError, match=r"config\.json: there is no such file"):
        import_model(tmp_path)
    make("llama", {}).save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    content = shards[1].read_bytes()
    shards[1].write_bytes(content[:-8])
    with pytest.raises(InteropError, match="ends inside tensor"):
        import_model(tmp_path)
    shards[1].write_bytes(b"not safetensors at all")
    with pytest.raises(InteropError, match="not a safetensors file"):
        import_model(tmp_path)
    shards[1].unlink()
    with pytest.raises(InteropError, match="the shard is missing"):
        import_model(tmp_path)
    (tmp_path / INDEX).unlink()
    with pytest.raises(InteropError, match=r"neither model\.safetensors"):
        import_model(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(InteropError, match="pickled"):
        import_model(tmp_path)


def test_reading_needs_no_second_copy(tmp_path: Path) -> None:
    """A tensor of the stored dtype is mapped or goes into its place: nothing is allocated."""
    make("llama", {}).save_pretrained(tmp_path)
    for tensor in stored_tensors(tmp_path):
        for target in (torch.empty(tensor.shape), torch.nn.Parameter(torch.empty(tensor.shape))):
            with torch.profiler.profile(profile_memory=True) as profile:
                tensor.read_into(target)
            assert sum(max(event.cpu_memory_usage, 0) for event in profile.key_averages()) == 0


def test_an_imported_model_is_its_own(tmp_path: Path) -> None:
    """Parameters that are views of the file can be trained; the file keeps its content, and a
    second import is not touched. A file that is replaced under its name leaves the model alone."""
    make("llama", {}).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    model, _ = import_model(tmp_path)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert file.read_bytes() == content
    again, _ = import_model(tmp_path)
    other = tmp_path / "other"
    other.write_bytes(bytes(len(content)))
    other.replace(file)
    for mine, theirs, expected in zip(model.parameters(), again.parameters(), before, strict=True):
        torch.testing.assert_close(theirs.detach(), expected, rtol=0, atol=0)
        torch.testing.assert_close(mine.detach(), expected + 1, rtol=0, atol=0)


def test_tensors_at_odd_offsets(tmp_path: Path) -> None:
    """Other writers need not align their data; such tensors are copied."""
    values = torch.arange(6.0).view(2, 3)
    data = values.numpy().tobytes()
    head = {"x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, len(data)]}}
    text = json.dumps(head).encode()
    text += b" " * ((1 - len(text)) % 4)  # the data start at 1 modulo 4
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    (tensor,) = stored_tensors(tmp_path)
    assert tensor.offset % 4 == 1
    target = torch.nn.Parameter(torch.empty(2, 3))
    tensor.read_into(target)
    assert torch.equal(target.detach(), values)
    assert torch.equal(load_file(file)["x"], values)

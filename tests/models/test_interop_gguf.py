"""GGUF files: written here with the `gguf` package from random models of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from torch import Tensor

from models.interop import InteropError, import_model
from models.interop.gguf import folder_of
from models.interop.tensors import SINGLE, stored_tensors

gguf = pytest.importorskip("gguf")

PIECES = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{n:02X}>" for n in range(256)),
          "▁", "t", "h", "e", "x", "th", "the", "▁t", "▁th", "▁the", "<turn>", "he"]  # fmt: skip
SIZES: dict[str, Any] = {
    "vocab_size": len(PIECES), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 7,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "initializer_range": 0.1,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "pad_token_id": 0, "bos_token_id": 2,
    "eos_token_id": 1,
}  # fmt: skip
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gemma3": ("gemma3", "gemma3_text", {"sliding_window": 16, "query_pre_attn_scalar": 32}),
    "gemma2": ("gemma2", "gemma2", {"sliding_window": 16, "query_pre_attn_scalar": 32}),
    "qwen3": ("qwen3", "qwen3", {}),
    "qwen2": ("qwen2", "qwen2", {"tie_word_embeddings": True}),
    "llama": ("llama", "llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
}
NORMS = {
    "input_layernorm": "attn_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def make(name: str) -> Any:
    """A random model of transformers."""
    _, family, more = MODELS[name]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **json.loads(json.dumps(SIZES | more)))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def written_name(name: str, gemma: bool) -> str:
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    part, kind = name.rsplit(".", 1)
    if part in whole:
        return f"{whole[part]}.{kind}"
    _, _, layer, inside = part.split(".", 3)
    behind = "post_attention_norm" if gemma else "ffn_norm"
    return f"blk.{layer}.{(NORMS | {'post_attention_layernorm': behind})[inside]}.{kind}"


def write(model: Any, name: str, path: Path, quantise: str | None = None) -> None:
    """The model as a file, as converters lay it out."""
    kind, config = MODELS[name][0], model.config
    writer = gguf.GGUFWriter(str(path), kind)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim if hasattr(config, "head_dim") else 16)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    gemma = kind.startswith("gemma")
    rope = config.rope_parameters
    writer.add_rope_freq_base((rope["full_attention"] if name == "gemma3" else rope)["rope_theta"])
    if gemma:
        writer.add_sliding_window(config.sliding_window)
    if name == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(PIECES)
    writer.add_token_scores([-float(n) for n in range(len(PIECES))])
    kinds = [3] * 4 + [6] * 256 + [1] * (len(PIECES) - 260)
    kinds[PIECES.index("<turn>")] = 4
    writer.add_token_types(kinds)
    for add, number in (("bos", 2), ("eos", 1), ("unk", 3), ("pad", 0)):
        getattr(writer, f"add_{add}_token_id")(number)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    for theirs, parameter in model.state_dict().items():
        if theirs == "lm_head.weight" and config.tie_word_embeddings:
            continue
        value = parameter.detach().numpy()
        if gemma and theirs.endswith("norm.weight"):
            value = value + 1
        if name == "llama" and ("q_proj" in theirs or "k_proj" in theirs):
            heads = config.num_attention_heads if "q_proj" in theirs else config.num_key_value_heads
            value = value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2)
            value = value.reshape(parameter.shape)
        value, target = np.ascontiguousarray(value), written_name(theirs, gemma)
        if quantise is not None and value.ndim > 1:
            of = gguf.GGMLQuantizationType[quantise]
            writer.add_tensor(target, gguf.quants.quantize(value, of), raw_dtype=of)
        else:
            writer.add_tensor(target, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tokens() -> Tensor:
    return torch.randint(4, len(PIECES), (2, 60))


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    theirs = make(name)
    write(theirs, name, tmp_path / "x.gguf")
    ours, source = import_model(tmp_path / "x.gguf")
    assert source.eos_ids == (1,)
    batch = tokens()
    with torch.no_grad():
        expected = theirs(batch).logits
        most = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(ours(batch), expected, rtol=0, atol=1e-5 * most)


def test_quantised_weights_are_dequantised_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To what the reading side of the package says they are."""
    theirs = make("gemma3")
    write(theirs, "gemma3", tmp_path / "x.gguf", "Q8_0")
    folder = folder_of(tmp_path / "x.gguf")
    assert "quantised weights (Q8_0) dequantised to float32" in capsys.readouterr().err
    stored = {t.name: t.read() for t in stored_tensors(folder)}
    q8 = gguf.GGMLQuantizationType.Q8_0
    for name, parameter in theirs.state_dict().items():
        if parameter.ndim > 1 and name != "lm_head.weight":
            coarse = gguf.quants.dequantize(gguf.quants.quantize(parameter.numpy(), q8), q8)
            torch.testing.assert_close(stored[name], torch.from_numpy(coarse), rtol=0, atol=0)
    # Once: a second reading finds the folder, a changed file makes it anew.
    before = (folder / SINGLE).stat().st_mtime_ns
    assert folder_of(tmp_path / "x.gguf") == folder
    assert (folder / SINGLE).stat().st_mtime_ns == before
    assert capsys.readouterr().err == ""
    write(theirs, "gemma3", tmp_path / "x.gguf")
    folder_of(tmp_path / "x.gguf")
    assert "weights as they are" in capsys.readouterr().err


def test_tokenizer(tmp_path: Path) -> None:
    write(make("qwen3"), "qwen3", tmp_path / "x.gguf")
    folder = folder_of(tmp_path / "x.gguf")
    inner: Any = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    number = {text: n for n, text in enumerate(PIECES)}
    # Best score first: "th" (265) before "he" (271); what no piece covers is bytes.
    assert inner.encode("the thé").ids == [
        2, number["the"], number["▁th"], 4 + 0xC3, 4 + 0xA9
    ]  # fmt: skip
    assert inner.encode("x<turn>").ids == [2, number["x"], number["<turn>"]]
    assert inner.decode(inner.encode("the thé x").ids) == "the thé x"
    whole = transformers.AutoTokenizer.from_pretrained(folder)
    assert (whole.bos_token, whole.eos_token) == ("<bos>", "<eos>")
    assert whole.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"no such thing at all, but long enough")
    with pytest.raises(InteropError, match="is not a GGUF file"):
        folder_of(path)
    writer = gguf.GGUFWriter(str(path), "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InteropError, match=r"general\.architecture='mamba'"):
        folder_of(path)
    write(make("llama"), "llama", path)
    content = path.read_bytes()
    path.write_bytes(content[:-1000])
    with pytest.raises(InteropError, match="ends inside tensor"):
        folder_of(path)
    assert not list(tmp_path.glob("*.converted*"))

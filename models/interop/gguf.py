"""GGUF files as checkpoints: converted once to a folder of safetensors beside the file.

    folder = folder_of(Path("gemma-3-270m-Q4_K_M.gguf"))     # gemma-3-270m-Q4_K_M.gguf.converted

1. The header gives sizes and tokenizer; what it lacks (rope base of local layers, pattern of
   windows) is what the family takes where its config.json is silent (`models.interop.families`).
2. Tensors are written one at a time under the names of the family. Quantised ones are dequantised
   to float32, exactly, and that is said: the model is the quantised one, no better.
3. The folder is read like any other, and made anew where the file has changed.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from models.interop.gguf_file import PLAIN, GGUFFile
from models.interop.gguf_tokenizer import tokenizer_config, tokenizer_json
from models.interop.tensors import SINGLE, InteropError, read_json

SUFFIX = ".gguf"
_NOTE = "gguf.json"
_NORMS_PRE = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_NORMS_BOTH = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_WHOLE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
# general.architecture -> (model_type, norms of a block).
_KINDS = {
    "llama": ("llama", _NORMS_PRE),
    "qwen2": ("qwen2", _NORMS_PRE),
    "qwen3": ("qwen3", _NORMS_PRE),
    "gemma2": ("gemma2", _NORMS_BOTH),
    "gemma3": ("gemma3_text", _NORMS_BOTH),
}


def folder_of(path: Path) -> Path:
    """The folder to read for a path: a GGUF file's converted one, made now if need be, and else the
    path itself.

    Raises:
        InteropError: the file cannot be converted.
    """
    if path.suffix != SUFFIX or not path.is_file():
        return path
    folder = path.with_name(f"{path.name}.converted")
    stamp = {"bytes": path.stat().st_size, "modified": path.stat().st_mtime_ns}
    if (folder / _NOTE).is_file() and read_json(folder / _NOTE)["of"] == stamp:
        return folder
    fresh = folder.with_name(f"{folder.name}.{os.getpid()}")
    fresh.mkdir(parents=True)
    try:
        kinds = _convert(GGUFFile(path), fresh)
        _write(fresh / _NOTE, {"of": stamp, "file": path.name, "dequantised": kinds})
        if folder.exists():
            shutil.rmtree(folder)
        fresh.replace(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    what = ", ".join(kinds)
    said = f"quantised weights ({what}) dequantised to float32" if kinds else "weights as they are"
    print(f"{path.name}: {said}, in {folder}", file=sys.stderr)
    return folder


def _convert(file: GGUFFile, folder: Path) -> dict[str, int]:
    """Write the folder; numbers in tensors of each quantised type."""
    config = _config(file)
    name = str(config["model_type"])
    jobs = {
        theirs: lambda ours=ours, theirs=theirs: _changed(file.read(ours), theirs, name, config)
        for ours, theirs in _names(file).items()
    }
    _write_tensors(folder / SINGLE, file, jobs, {t: o for o, t in _names(file).items()})
    _write(folder / "config.json", config)
    values = file.metadata
    ends = [config["eos_token_id"], values.get("tokenizer.ggml.eot_token_id")]
    ends = list(dict.fromkeys(n for n in ends if n is not None))
    begin = {"bos_token_id": config["bos_token_id"], "pad_token_id": config["pad_token_id"]}
    _write(folder / "generation_config.json", {"eos_token_id": ends, **begin})
    _write(folder / "tokenizer.json", tokenizer_json(file), indent=None)
    _write(folder / "tokenizer_config.json", tokenizer_config(file))
    if template := values.get("tokenizer.chat_template"):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return file.kinds()


def _config(file: GGUFFile) -> dict[str, Any]:
    """Content of config.json.

    Raises:
        InteropError: the architecture is not known, or a size is missing.
    """
    values, kind = file.metadata, file.metadata.get("general.architecture")
    if kind not in _KINDS:
        raise InteropError(
            f"{file.path}: general.architecture={kind!r}; GGUF files are read of "
            f"{', '.join(_KINDS)}. Take the model's safetensors files instead."
        )

    def of(name: str, default: Any = ...) -> Any:
        found = values.get(f"{kind}.{name}", default)
        if found is ...:
            raise InteropError(f"{file.path}: {kind}.{name} is missing; the file is incomplete.")
        return found

    heads, dim = of("attention.head_count"), of("embedding_length")
    config: dict[str, Any] = {
        "model_type": _KINDS[kind][0],
        "vocab_size": file.entries["token_embd.weight"].shape[0],
        "hidden_size": dim,
        "intermediate_size": of("feed_forward_length"),
        "num_hidden_layers": of("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": of("attention.head_count_kv", heads),
        "head_dim": of("attention.key_length", dim // heads),
        "rms_norm_eps": of("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": of("context_length"),
        "tie_word_embeddings": "output.weight" not in file.entries,
        **{
            theirs: values.get(f"tokenizer.ggml.{ours}_token_id")
            for ours, theirs in (("bos", "bos_token_id"), ("eos", "eos_token_id"),
                                 ("padding", "pad_token_id"))
        },
    }  # fmt: skip
    if kind == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in file.entries
    if (window := of("attention.sliding_window", None)) is not None and kind != "llama":
        config["sliding_window"] = window
    if kind == "gemma2":
        config["attn_logit_softcapping"] = of("attn_logit_softcapping", 50.0)
        config["final_logit_softcapping"] = of("final_logit_softcapping", 30.0)
    if kind in ("gemma2", "gemma3"):
        # The largest of each family scales by the width a head, all others by the head dimension.
        by_width = (kind, config["num_hidden_layers"]) in (("gemma2", 46), ("gemma3", 62))
        config["query_pre_attn_scalar"] = dim // heads if by_width else config["head_dim"]
    rope: dict[str, Any] = {"rope_theta": of("rope.freq_base", 1e4), "rope_type": "default"}
    stretched = of("rope.scaling.type", "none")
    if "rope_freqs.weight" in file.entries:
        factors = file.read("rope_freqs.weight").astype(float).tolist()
        rope |= {"rope_type": "longrope", "short_factor": factors, "long_factor": factors,
                 "attention_factor": 1.0, "factor": 1.0,
                 "original_max_position_embeddings": config["max_position_embeddings"]}  # fmt: skip
    elif stretched == "linear":
        rope |= {"rope_type": "linear", "factor": of("rope.scaling.factor")}
    elif stretched != "none":
        raise InteropError(
            f"{file.path}: {kind}.rope.scaling.type={stretched!r}; only linear is read. Take the "
            "model's safetensors files instead."
        )
    if kind == "gemma3":
        config["rope_parameters"] = {"full_attention": rope}
    else:
        config["rope_parameters"] = rope
    return config


def _names(file: GGUFFile) -> dict[str, str]:
    """Name in the file -> name in a checkpoint of the family.

    Raises:
        InteropError: there is a tensor that the family does not have.
    """
    norms = _KINDS[file.metadata["general.architecture"]][1]
    found: dict[str, str] = {}
    for name in file.entries:
        part, _, kind = name.rpartition(".")
        if part == "rope_freqs":
            continue
        if part in _WHOLE:
            found[name] = f"{_WHOLE[part]}.{kind}"
            continue
        _, layer, inside = (*part.split(".", 2), "", "")[:3]
        theirs = norms.get(inside) or _PARTS.get(inside)
        if theirs is None:
            raise InteropError(
                f"{file.path}: tensor {name} is of a variant that is not implemented; take the "
                "model's safetensors files instead."
            )
        found[name] = f"model.layers.{layer}.{theirs}.{kind}"
    return found


def _changed(tensor: np.ndarray, name: str, family: str, config: dict[str, Any]) -> np.ndarray:
    """A tensor as checkpoints have it: Gemma's norms less the one that files add, and LLaMA's
    rotary pairs half a head apart, which files have side by side."""
    if family.startswith("gemma") and name.endswith("norm.weight"):
        return tensor - 1
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    part = name.split(".")[-2]
    if family == "llama" and part in heads:
        pairs = tensor.reshape(config[heads[part]], -1, 2, *tensor.shape[1:])
        return pairs.swapaxes(1, 2).reshape(tensor.shape)
    return tensor


def _write_tensors(
    path: Path,
    file: GGUFFile,
    jobs: dict[str, Callable[[], np.ndarray]],
    sources: dict[str, str],
) -> None:
    """A safetensors file, one tensor at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in jobs:
        entry = file.entries[sources[name]]
        dtype = PLAIN.get(entry.kind, "F32")
        size = math.prod(entry.shape) * (4 if dtype == "F32" else 2)
        header[name] = {
            "dtype": dtype,
            "shape": list(entry.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for make in jobs.values():
            out.write(np.ascontiguousarray(make()).tobytes())


def _write(path: Path, value: dict[str, Any], indent: int | None = 2) -> None:
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")

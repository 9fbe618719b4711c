"""Llama, Mistral and Qwen2 checkpoints of Hugging Face: configuration and tensor names, both ways.

The three families are one architecture to us (`models.llama`):

| family  | what it adds to Llama                                   |
|---------|---------------------------------------------------------|
| llama   | biases on all projections or none (attention, MLP)      |
| mistral | a sliding window; head dimension independent of d / h   |
| qwen2   | biases on q, k and v alone                              |

Grouped-query heads, rope scaling (linear, dynamic, yarn, llama3) and tied embeddings belong to
all. What a configuration asks for beyond that (experts, latent attention, other activations,
quantisation, layers that differ) is refused by name: there is no approximate import.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from models.architectures.llama import (
    LlamaOptions,
    RopeScaling,
    key_value_heads,
    llama_options,
)
from models.config import ConfigError, ModelConfig
from models.interop.tensors import InteropError, Names, StoredTensor, read_json
from models.language_model import LanguageModel

# What transformers takes where config.json is silent.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"num_key_value_heads": 32},
}
FAMILIES = tuple(_DEFAULTS)
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "linear": "none"}
_OTHERS = {
    "num_local_experts": "a mixture of experts",
    "num_experts": "a mixture of experts",
    "n_routed_experts": "a mixture of experts",
    "kv_lora_rank": "latent attention (MLA)",
    "alibi": "ALiBi positions",
    "quantization_config": "quantised weights",
}


def model_config(directory: Path) -> ModelConfig:
    """Our configuration of a Llama-family checkpoint.

    Raises:
        InteropError: it is missing, incomplete, or asks for what `models.llama` does not have.
    """
    path = directory / "config.json"
    values = read_json(path)
    family = values.get("model_type")
    for name, what in _OTHERS.items():
        if values.get(name):
            raise InteropError(
                f"{path}: {name}={values[name]!r} means {what}, which cannot be imported; use a "
                "dense checkpoint of the Llama, Mistral or Qwen2 family."
            )
    if family not in FAMILIES:
        raise InteropError(
            f"{path}: model_type={family!r} cannot be imported; the families are "
            f"{', '.join(FAMILIES)} (and our own exports, and hgrn2 of flash-linear-attention)."
        )
    values = _DEFAULTS[family] | values
    missing = [name for name in _REQUIRED if values.get(name) is None]
    if missing:
        raise InteropError(f"{path}: {', '.join(missing)} is missing; the file is incomplete.")
    try:
        config = _model_config(family, values)
    except KeyError as error:
        raise InteropError(f"{path}: the rope scaling lacks {error}; complete it.") from None
    except (ConfigError, TypeError) as error:
        raise InteropError(f"{path}: cannot be imported: {error}") from error
    return config


_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)


def _model_config(family: str, values: dict[str, Any]) -> ModelConfig:
    activation = values.get("hidden_act", "silu")
    if activation not in _ACTIVATIONS:
        raise InteropError(f"hidden_act={activation!r}; only silu and linear are implemented.")
    heads, dim = values["num_attention_heads"], values["hidden_size"]
    head_size = values.get("head_dim") or dim // heads
    kv_heads = values.get("num_key_value_heads") or heads
    base, scaling = _rope(values)
    bias = bool(values.get("attention_bias", False)) if family == "llama" else False
    return ModelConfig(
        arch="llama",
        vocab_size=values["vocab_size"],
        dim=dim,
        layers=values["num_hidden_layers"],
        heads=heads,
        glu_dim=values["intermediate_size"],
        tie_embeddings=bool(values.get("tie_word_embeddings", False)),
        norm_eps=values.get("rms_norm_eps", 1e-6),
        options=LlamaOptions(
            rope_base=base,
            kv_heads=None if kv_heads == heads else kv_heads,
            head_size=None if head_size * heads == dim else head_size,
            rope_scaling=scaling,
            window=_window(family, values),
            qkv_bias=bias or family == "qwen2",
            out_bias=bias,
        ),
        glu_bias=bool(values.get("mlp_bias", False)) if family == "llama" else False,
        glu_activation=None if _ACTIVATIONS[activation] == "silu" else "none",
        init_std=values.get("initializer_range"),
    )


def _window(family: str, values: dict[str, Any]) -> int | None:
    kinds = set(values.get("layer_types") or ())
    if len(kinds) > 1:
        raise InteropError(
            f"layer_types mixes {' and '.join(sorted(kinds))}; all layers must be alike."
        )
    if family == "llama" or kinds == {"full_attention"}:
        return None
    if family == "qwen2" and not kinds:
        if not values.get("use_sliding_window", False):
            return None
        full = values.get("max_window_layers", 28)
        if 0 < full < values["num_hidden_layers"]:
            raise InteropError(
                f"use_sliding_window with max_window_layers={full} gives some layers a window and "
                "others none; all layers must be alike."
            )
        return values.get("sliding_window", 4096) if full == 0 else None
    return values.get("sliding_window")


def _rope(values: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """Base and scaling, from `rope_parameters` or the older `rope_scaling` and `rope_theta`."""
    rope: dict[str, Any] = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
    base = rope.get("rope_theta") or values.get("rope_theta") or 10_000.0
    partial = rope.get("partial_rotary_factor") or values.get("partial_rotary_factor") or 1.0
    if partial != 1:
        raise InteropError(f"partial_rotary_factor={partial}; all channels of a head must rotate.")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return float(base), None
    original = rope.get("original_max_position_embeddings")
    context = values.get("max_position_embeddings", 2048)
    scaling = RopeScaling(
        kind=kind,
        factor=float(rope["factor"] or context / rope["original_max_position_embeddings"]),
        # Dynamic scaling starts at the configured context, whatever else is stated.
        original_length={"linear": None, "dynamic": context}.get(kind, original or context),
    )
    if kind == "llama3":
        scaling = replace(
            scaling,
            low_freq_factor=float(rope["low_freq_factor"]),
            high_freq_factor=float(rope["high_freq_factor"]),
        )
    if kind == "yarn":
        scaling = replace(
            scaling,
            attention_factor=_yarn_attention(rope, scaling.factor),
            beta_fast=float(rope.get("beta_fast") or 32),
            beta_slow=float(rope.get("beta_slow") or 1),
            truncate=bool(rope.get("truncate", True)),
        )
    return float(base), scaling


def _yarn_attention(rope: dict[str, Any], factor: float) -> float | None:
    """Temperature of yarn where it is not the default."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    mscale, of_all = rope.get("mscale"), rope.get("mscale_all_dim")
    if not (mscale and of_all) or factor <= 1:
        return None
    return (0.1 * mscale * math.log(factor) + 1) / (0.1 * of_all * math.log(factor) + 1)


def config_json(config: ModelConfig, context: int, eos_id: int | None) -> dict[str, Any]:
    """config.json of a model, for the plainest family that has all it needs.

    Args:
        config: a model with `arch="llama"`.
        context: longest context in tokens (max_position_embeddings).
        eos_id: token that ends a text.

    Raises:
        InteropError: no family has this combination of options.
    """
    options = llama_options(config)
    plain = options.qkv_bias == options.out_bias
    biased = options.qkv_bias or options.out_bias or config.glu_bias
    if plain and options.window is None and config.dim % config.heads == 0:
        family, extra = "llama", {"attention_bias": options.qkv_bias, "mlp_bias": config.glu_bias}
    elif not biased:
        family, extra = "mistral", {"sliding_window": options.window}
    elif options.qkv_bias and not (options.out_bias or config.glu_bias or options.window):
        family, extra = "qwen2", {"use_sliding_window": False}
    else:
        raise InteropError(
            f"window={options.window}, qkv_bias={options.qkv_bias}, out_bias={options.out_bias}, "
            f"glu_bias={config.glu_bias}: no family of transformers has this combination."
        )
    rope: dict[str, Any] = {"rope_theta": options.rope_base, "rope_type": "default"}
    if (scaling := options.rope_scaling) is not None:
        rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "dynamic":
            assert scaling.original_length is not None
            context = scaling.original_length
        elif scaling.kind != "linear":
            rope["original_max_position_embeddings"] = scaling.original_length
        names = {
            "llama3": ("low_freq_factor", "high_freq_factor"),
            "yarn": ("attention_factor", "beta_fast", "beta_slow", "truncate"),
        }.get(scaling.kind, ())
        rope |= {n: v for n in names if (v := getattr(scaling, n)) is not None}
    return {
        "architectures": [f"{family.capitalize()}ForCausalLM"],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.glu_dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": key_value_heads(config),
        "head_dim": config.head_dim,
        "hidden_act": "linear" if config.glu_activation == "none" else "silu",
        "max_position_embeddings": context,
        "initializer_range": config.std,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_parameters": rope,
        "bos_token_id": None,
        "eos_token_id": eos_id,
        "pad_token_id": eos_id,
        **extra,
    }


def read(model: LanguageModel, tensors: Iterable[StoredTensor]) -> Names:
    """Fill a model of `model_config` with their tensors.

    Returns:
        Names of tensors that were needed and did not come, and of those that came unasked.
    """
    slots = views(model)
    needed, unasked = set(slots), set[str]()
    for tensor in tensors:
        if tensor.name in slots:
            tensor.read_into(slots[tensor.name])
            needed.discard(tensor.name)
        elif not _is_spare(tensor.name, model.config):
            unasked.add(tensor.name)
    return Names(missing=needed, unasked=unasked)


def _is_spare(name: str, config: ModelConfig) -> bool:
    """Tensors that say nothing new: stored frequencies, and the head where it is the embedding."""
    tied = name == "lm_head.weight" and config.tie_embeddings
    return tied or name.endswith("rotary_emb.inv_freq")


def views(model: LanguageModel) -> dict[str, Tensor]:
    """Name in a Hugging Face checkpoint -> the parameter, or rows of it, that it is here."""
    config = model.config
    size = config.head_dim
    rows = [config.heads * size, key_value_heads(config) * size, key_value_heads(config) * size]
    state = dict[str, Tensor](model.named_parameters())
    names = {
        "model.embed_tokens.weight": state.pop("embedding.weight"),
        "model.norm.weight": state.pop("norm.weight"),
    }
    if "head.weight" in state:
        names["lm_head.weight"] = state.pop("head.weight")
    for ours, tensor in state.items():
        _, layer, rest = ours.split(".", 2)
        part, kind = rest.rsplit(".", 1)
        prefix = f"model.layers.{layer}."
        if part == "mixer.qkv":
            for letter, piece in zip("qkv", tensor.detach().split(rows), strict=True):
                names[f"{prefix}self_attn.{letter}_proj.{kind}"] = piece
        else:
            names[f"{prefix}{_PARTS[part]}.{kind}"] = tensor
    return names


_PARTS = {
    "mixer.out": "self_attn.o_proj",
    "mixer_norm": "input_layernorm",
    "channel_norm": "post_attention_layernorm",
    "channel.up": "mlp.up_proj",
    "channel.gate": "mlp.gate_proj",
    "channel.down": "mlp.down_proj",
}

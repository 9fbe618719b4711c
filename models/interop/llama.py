"""Configurations of Hugging Face's decoders, both ways, family by family (`families`).

What a configuration asks for beyond what `models.llama` has (experts, latent attention, recurrent
layers, quantisation) is refused by name: there is no approximate import.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from models.architectures.llama import LlamaOptions, key_value_heads, llama_options
from models.config import ConfigError, ModelConfig
from models.interop.families import FAMILIES, HYBRIDS, WITH_IMAGES, Family
from models.interop.rotary import rope_options, rope_values
from models.interop.tensors import InteropError, read_json

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "linear": "none",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
}
_OTHERS = {
    "num_local_experts": "a mixture of experts",
    "num_experts": "a mixture of experts",
    "n_routed_experts": "a mixture of experts",
    "kv_lora_rank": "latent attention (MLA)",
    "alibi": "ALiBi positions",
    "quantization_config": "quantised weights",
    "use_bidirectional_attention": "attention in both directions",
}
_SEEN = {"full_attention", "sliding_attention"}
_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)


def family_of(directory: Path) -> Family:
    """What the family of a checkpoint has; raises InteropError where it cannot be imported."""
    path = directory / "config.json"
    values = read_json(path)
    name = values.get("model_type")
    if name in HYBRIDS or set(values.get("layer_types") or ()) - _SEEN:
        kinds = ", ".join(sorted(set(values.get("layer_types") or ()) - _SEEN))
        what = f" (layer_types: {kinds})" if kinds else ""
        raise InteropError(
            f"{path}: model_type={name!r} has layers that are no softmax attention{what}, so that "
            "it is no transformer to linearize; take one whose layers all are, such as Qwen3 or "
            "SmolLM3."
        )
    if name in WITH_IMAGES:
        raise InteropError(
            f"{path}: model_type={name!r} reads text and images; save the part for text alone, "
            f"with transformers: {WITH_IMAGES[name]}.from_pretrained(DIR).save_pretrained(NEW_DIR)."
        )
    for field, what in _OTHERS.items():
        if values.get(field):
            raise InteropError(
                f"{path}: {field}={values[field]!r} means {what}, which cannot be imported; use a "
                f"dense checkpoint of a family that is read: {', '.join(FAMILIES)}."
            )
    if name not in FAMILIES:
        raise InteropError(
            f"{path}: model_type={name!r} cannot be imported; the families are "
            f"{', '.join(FAMILIES)} (and our own exports, and hgrn2 of flash-linear-attention)."
        )
    return FAMILIES[name]


def model_config(directory: Path) -> ModelConfig:
    """Our configuration of a checkpoint.

    Raises:
        InteropError: it is missing, incomplete, or asks for what `models.llama` does not have.
    """
    family, path = family_of(directory), directory / "config.json"
    values = read_json(path)
    missing = [name for name in _REQUIRED if values.get(name) is None]
    if missing:
        raise InteropError(f"{path}: {', '.join(missing)} is missing; the file is incomplete.")
    try:
        return _model_config(family, values)
    except KeyError as error:
        raise InteropError(f"{path}: the rope scaling lacks {error}; complete it.") from None
    except (ConfigError, TypeError) as error:
        raise InteropError(f"{path}: cannot be imported: {error}") from error


def _model_config(family: Family, given: dict[str, Any]) -> ModelConfig:
    values = {**family.defaults, **given}
    name = values.get(family.activation) or "silu"
    activation = family.activations.get(name) or _ACTIVATIONS.get(name)
    if activation is None:
        raise InteropError(
            f"{family.activation}={name!r}; only {', '.join(_ACTIVATIONS)} are implemented."
        )
    heads, dim = values["num_attention_heads"], values["hidden_size"]
    head_size = values.get("head_dim") or dim // heads
    kv_heads = values.get("num_key_value_heads") or heads
    window, full = _windows(family, values)
    scales: dict[str, Any] = {
        ours: float(values[field])
        for ours, field in family.scales.items()
        if values.get(field) is not None
    }
    if family.root_scaled:
        scales["embedding_scale"] = dim**0.5
    if "query_pre_attn_scalar" in values:
        scales["score_scale"] = values["query_pre_attn_scalar"] ** -0.5
    if scales.get("score_scale") == head_size**-0.5:
        del scales["score_scale"]
    own = {n: scales.pop(n) for n in ("residual_scale", "logit_cap") if n in scales}
    return ModelConfig(
        arch="llama",
        vocab_size=values["vocab_size"],
        dim=dim,
        layers=values["num_hidden_layers"],
        heads=heads,
        glu_dim=values["intermediate_size"],
        tie_embeddings=bool(values.get("tie_word_embeddings", False)),
        norm_eps=values.get("rms_norm_eps", 1e-6),
        glu_bias=_has(family.glu_bias, values),
        glu_activation=None if activation == "silu" else activation,  # pyright: ignore[reportArgumentType]
        init_std=values.get("initializer_range"),
        norms=family.norms,
        norm_offset=family.norm_offset,
        logit_scale=1 / float(values.get("logits_scaling") or 1),
        **own,
        options=LlamaOptions(
            kv_heads=None if kv_heads == heads else kv_heads,
            head_size=None if head_size * heads == dim else head_size,
            window=window,
            full_layers=full,
            qkv_bias=_has(family.qkv_bias, values),
            out_bias=_has(family.out_bias, values),
            qk_norm=family.qk_norm,
            rope_free_layers=_rope_free(family, values, window, full),
            **rope_options(family, values, window is not None),
            **scales,
        ),
    )


def _has(says: str | bool, values: dict[str, Any]) -> bool:
    """Whether there are biases: the value of a field, or what the family always has."""
    return bool(values.get(says, False)) if isinstance(says, str) else says


def _windows(family: Family, values: dict[str, Any]) -> tuple[int | None, tuple[int, ...]]:
    """The window, and the layers that see all keys although there is one."""
    layers, kinds = values["num_hidden_layers"], list(values.get("layer_types") or ())
    window = values.get("sliding_window")
    if family.windows in ("none", "all"):
        if len(set(kinds)) > 1:
            raise InteropError(
                f"layer_types mixes {' and '.join(sorted(set(kinds)))}; all layers of this family "
                "must be alike."
            )
        everywhere = family.windows == "all" and set(kinds) != {"full_attention"}
        return (window if everywhere else None), ()
    if family.windows == "switched" and not values.get("use_sliding_window", False):
        window = None
    if window is None:
        return None, ()
    if not kinds:
        kinds = _silent_kinds(family, values)
    full = tuple(layer for layer in range(layers) if kinds[layer] == "full_attention")
    return (None, ()) if len(full) == layers else (window, full)


def _silent_kinds(family: Family, values: dict[str, Any]) -> list[str]:
    """The kind of every layer, where `layer_types` does not say."""
    layers = range(values["num_hidden_layers"])
    if family.rope == "marked":
        local = [not turns for turns in _marked(values)]
    elif family.windows == "switched":
        local = [layer >= values.get("max_window_layers", 28) for layer in layers]
    else:
        pattern = values.get("sliding_window_pattern") or family.pattern
        local = [pattern is None or (layer + 1) % pattern != 0 for layer in layers]
    return ["sliding_attention" if here else "full_attention" for here in local]


def _marked(values: dict[str, Any]) -> list[bool]:
    """Whether each layer has rotary positions (SmolLM3)."""
    layers, marks = values["num_hidden_layers"], values.get("no_rope_layers")
    if marks is None:
        every = values.get("no_rope_layer_interval") or 4
        return [(layer + 1) % every != 0 for layer in range(layers)]
    return [bool(mark) for mark in marks[:layers]]


def _rope_free(
    family: Family, values: dict[str, Any], window: int | None, full: tuple[int, ...]
) -> tuple[int, ...]:
    """Layers without rotary positions."""
    if family.rope == "marked":
        return tuple(layer for layer, turns in enumerate(_marked(values)) if not turns)
    return full if family.rope == "windowed" and window is not None else ()


def config_json(config: ModelConfig, context: int, eos_id: int | None) -> dict[str, Any]:
    """config.json of a model, for the first family that has all it needs.

    What is written is read again, and has to give the model.

    Args:
        config: a model with `arch="llama"`.
        context: longest context in tokens (max_position_embeddings).
        eos_id: token that ends a text.

    Raises:
        InteropError: no family has this combination of options.
    """
    wanted = _canonical(config)
    for name, family in FAMILIES.items():
        values = _written(name, family, wanted, context)
        try:
            fits = _canonical(_model_config(family, values)) == wanted
        except (ConfigError, KeyError):
            continue
        fits = fits and (config.dim % config.heads == 0 or not family.whole_heads)
        if fits and (config.heads * config.head_dim == config.dim or not family.square):
            return values | {
                "architectures": [family.class_name or f"{name.capitalize()}ForCausalLM"],
                "bos_token_id": None,
                "eos_token_id": eos_id,
                "pad_token_id": eos_id,
            }
    options = llama_options(config)
    raise InteropError(
        f"window={options.window}, qkv_bias={options.qkv_bias}, out_bias={options.out_bias}, "
        f"glu_bias={config.glu_bias}, norms={config.norms!r}, qk_norm={options.qk_norm!r}: no "
        "family of transformers has this combination."
    )


def _canonical(config: ModelConfig) -> ModelConfig:
    """The model with every default written in one way."""
    options, activation = llama_options(config), config.gate_activation
    kv_heads = options.key_value_heads(config.heads)
    whole = config.head_dim * config.heads == config.dim
    scale = options.score_scale
    return config.replace(
        init_std=config.std,
        glu_activation=None if activation == "silu" else activation,
        options=replace(
            options,
            kv_heads=None if kv_heads == config.heads else kv_heads,
            head_size=None if whole else config.head_dim,
            score_scale=None if scale == config.head_dim**-0.5 else scale,
        ),
    )


def _written(name: str, family: Family, config: ModelConfig, context: int) -> dict[str, Any]:
    """A model as the family would say it, as far as the family can."""
    options, layers = llama_options(config), range(config.layers)
    scaling = options.rope_scaling
    if scaling is not None and scaling.kind == "dynamic":
        assert scaling.original_length is not None
        context = scaling.original_length
    theirs = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    values: dict[str, Any] = {
        "model_type": name,
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.glu_dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": key_value_heads(config),
        "head_dim": config.head_dim,
        family.activation: theirs[config.gate_activation],
        "max_position_embeddings": context,
        "initializer_range": config.std,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        **rope_values(family, options),
    }
    for says, has in (
        (family.qkv_bias, options.qkv_bias),
        (family.out_bias, options.out_bias),
        (family.glu_bias, config.glu_bias),
    ):
        if isinstance(says, str):
            values[says] = values.get(says, False) or has
    if family.windows != "none":
        values["sliding_window"] = options.window
    if family.windows in ("layers", "switched"):
        local = [options.window_of(layer) is not None for layer in layers]
        kinds = ["sliding_attention" if here else "full_attention" for here in local]
        values["layer_types"] = kinds
    if family.windows == "switched":
        values["use_sliding_window"] = options.window is not None
    if family.rope == "marked":
        values["no_rope_layers"] = [int(layer not in options.rope_free_layers) for layer in layers]
    if "query_pre_attn_scalar" in family.defaults:
        scale = options.score_scale
        scalar = config.head_dim if scale is None else scale**-2
        whole = round(scalar)
        values["query_pre_attn_scalar"] = whole if whole**-0.5 == scale else scalar
    for ours, field in family.scales.items():
        of_model = ours in ("residual_scale", "logit_cap")
        values[field] = getattr(config if of_model else options, ours)
    if "score_scale" in family.scales and options.score_scale is None:
        values[family.scales["score_scale"]] = config.head_dim**-0.5
    if "embedding_scale" in family.scales:  # Granite's, which divides its logits too
        values["logits_scaling"] = 1 / config.logit_scale
    return values

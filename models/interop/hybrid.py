"""What an exported hybrid's config.json says of its layers, for the code that it carries."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch

from models import flat
from models.architectures.delta import DeltaOptions
from models.architectures.gla import GLAOptions
from models.architectures.llama import (
    LlamaBased,
    LlamaOptions,
    RopeUse,
    llama_options,
    rope_scaling,
)
from models.architectures.mamba2 import Mamba2Options
from models.config import ModelConfig, layer_configs
from models.interop.tensors import InteropError
from models.mixed_stem import is_mixed
from models.rope import rotary_angles
from models.stems import stem_parts

CODE = ("modeling_linscale_hybrid.py", "modeling_linscale_gated.py")
GATED = ("gla", "mamba2", "gated_deltanet", "kda")
"""Those of the second file. Models of one of them alone are exported as hybrids, too."""


def is_hybrid(config: ModelConfig) -> bool:
    """Whether a model is exported as a hybrid: one, a LLaMA without rotary positions, which no
    family of transformers is, or what has its code in the hybrids' files."""
    options = config.options
    nope = isinstance(options, LlamaOptions) and options.rope_share == 0
    return config.mixers is not None or nope or config.arch in GATED


def config_fields(config: ModelConfig) -> dict[str, Any]:
    """Fields of config.json beside those of every model of ours.

    Raises:
        InteropError: the carried code does not have an option of a layer's mixer.
    """
    own = dict.fromkeys(layer_configs(config))
    for kind in own:
        _check(kind)
    stems = stem_parts(config)
    kinds = list(own) + [stem.config for stem in stems if stem.config not in own]
    code = CODE[0].removesuffix(".py")
    return {
        "architectures": ["HybridForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{code}.HybridConfig",
            "AutoModelForCausalLM": f"{code}.HybridForCausalLM",
        },
        "linscale": config.to_json(),
        "hybrid": {
            "kinds": [{"settings": _settings(kind), "rotary": _rotary(kind)} for kind in kinds],
            "layers": [kinds.index(kind) for kind in layer_configs(config)],
            "stems": [
                {
                    "kind": kinds.index(stem.config),
                    "layers": list(stem.layers),
                    "base": stem.config == config,
                }
                for stem in stems
            ],
            "mixed": is_mixed(config),
            "weighted": config.architecture.weighted_norm,
        },
    }


def _settings(kind: ModelConfig) -> dict[str, Any]:
    own = flat.settings(kind) | {"glu_activation": kind.gate_activation}
    return own | {"gated": _sizes(kind)} if kind.arch in GATED else own


def _sizes(kind: ModelConfig) -> dict[str, Any]:
    """What the options of the mixers in the second file come to."""
    options = kind.options
    if isinstance(options, GLAOptions):
        return {"keys": options.keys(kind), "values": kind.head_dim, "rank": options.rank,
                "temperature": options.temperature}  # fmt: skip
    assert isinstance(options, Mamba2Options | DeltaOptions)
    keys, values = options.sizes(kind)
    sizes = {"keys": keys, "values": values, "convolution": options.convolution}
    if isinstance(options, Mamba2Options):
        return sizes | {"groups": options.groups}
    return sizes | {"largest_beta": 2.0 if options.negative_eigenvalues else 1.0}


def _check(kind: ModelConfig) -> None:
    for known in fields(kind):
        if known.name in _CARRIED or not known.metadata.get("later"):
            continue
        if (value := getattr(kind, known.name)) != known.default:
            raise InteropError(
                f"model.{known.name}={value!r}: the carried code of a hybrid does not have it."
            )
    if isinstance(kind.options, LlamaOptions | LlamaBased):
        options = llama_options(kind)
        if not replace(options, rope_share=1.0).plain or 0 < options.rope_share < 1:
            raise InteropError(
                f"model.mixers: {kind.arch} with {options!r}: the carried code of a hybrid has "
                "none of the options that came with imported families."
            )
    if (scaling := rope_scaling(kind)) is not None and scaling.by_length:
        raise InteropError(
            f"model.mixers: {kind.arch} with rope_scaling.kind={scaling.kind!r}: its angles change "
            "with the length of the text, which the carried code does not follow."
        )


_CARRIED = ("glu_bias", "glu_activation", "mup_base_dim", "mixers")


def _rotary(kind: ModelConfig) -> dict[str, Any] | None:
    """What `rotary` says; None without attention that rotates."""
    if not isinstance(kind.options, LlamaOptions | LlamaBased):
        return None
    return rotary(kind)


def rotary(config: ModelConfig) -> dict[str, Any]:
    """How queries and keys of a LLaMA, or of a model based on one, rotate, where that does not
    follow the length: uses of the rotary encoding, that of each layer, the factor on queries."""
    options, scaling = llama_options(config), rope_scaling(config)
    # At position 1 the angles are the frequencies; their tangent is free of the factor. Higher
    # frequencies never exceed one radian a position.
    one = torch.ones(1, 1, dtype=torch.float64)
    layers: list[RopeUse] = [options.rope_of(layer) for layer in range(config.layers)]
    uses: dict[str, Any] = {}
    for use in dict.fromkeys(layers):
        cos, sin = (x.flatten() for x in rotary_angles(config, one, one, torch.float64, use))
        frequencies, scales = torch.atan2(sin, cos), torch.hypot(sin, cos)
        uses[use] = {"frequencies": frequencies.tolist(), "scales": scales.tolist()}
    return {
        "uses": uses,
        "layers": layers,
        "query_scale": options.queries_factor(config.head_dim),
        "query_growth": 0.0 if scaling is None else scaling.query_growth,
        "query_length": 1 if scaling is None else scaling.original_length or 1,
    }

"""HGRN2 checkpoints of flash-linear-attention, both ways, exactly.

Their model and ours are the same function with other parameters:

| theirs                                   | ours                                               |
|------------------------------------------|----------------------------------------------------|
| norms with weights                       | none: each weight scales the columns of the next   |
|                                          | projection, W diag(w)                              |
| reads scaled by head_dim^(-1/2)          | none: the factor goes into the value projection    |
| eps of the norm of the reads always 1e-5 | `norm_eps`: so does sqrt(norm_eps / 1e-5)          |
| SwiGLU channel mixer                     | the same with `glu_activation="silu"`              |
| no lower bounds (`use_lower_bound`)      | logits that leave every bound at 0                 |

Folding a final norm's weight into a tied head would change the embedding too, so that such a
checkpoint becomes an untied model. The way back writes norms of ones. It needs a model with SwiGLU:
theirs has no other channel mixer, while the paper's HGRN2 has one without activation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from models.config import ConfigError, ModelConfig
from models.hgrn2 import GatedRecurrence
from models.interop.tensors import InteropError, Names, StoredTensor, read_json
from models.language_model import LanguageModel

_READ_EPS = 1e-5
"""The eps of their norm of the reads, whatever norm_eps says: the layer does not pass it on."""
_NO_BOUNDS = 1e4
"""A logit of the first layer beside which the softmax gives all others exactly 0."""


def model_config(directory: Path) -> ModelConfig:
    """Our configuration of an HGRN2 checkpoint of flash-linear-attention.

    Raises:
        InteropError: config.json is missing or incomplete, or asks for what our HGRN2 has not.
    """
    path = directory / "config.json"
    values = read_json(path)
    for name, plain in (
        ("use_short_conv", False),
        ("attn", None),
        ("attnres_block_size", None),
        ("hidden_act", "swish"),
    ):
        if (value := values.get(name, plain)) != plain:
            raise InteropError(
                f"{path}: {name}={value!r} cannot be imported; only {name}={plain!r} can."
            )
    try:
        dim = values["hidden_size"]
        expand = values.get("expand_ratio")
        heads = values.get("num_heads") or dim // (expand or 128)
        if expand is not None and expand * heads != dim:
            raise InteropError(
                f"{path}: expand_ratio={expand} with {heads} heads gives keys of another size than "
                f"values ({dim // heads}); only equal sizes can be imported."
            )
        glu = values.get("intermediate_size")
        if glu is None:  # their rule: 2/3 of hidden_ratio * d, rounded up to 256
            glu = -(-int(dim * (values.get("hidden_ratio") or 4) * 2 / 3) // 256) * 256
        return ModelConfig(
            arch="hgrn2",
            vocab_size=values["vocab_size"],
            dim=dim,
            layers=values["num_hidden_layers"],
            heads=heads,
            glu_dim=glu,
            tie_embeddings=False,
            norm_eps=values.get("norm_eps", 1e-6),
            init_std=values.get("initializer_range"),
            glu_activation="silu",
        )
    except KeyError as error:
        raise InteropError(f"{path}: {error} is missing; the file is incomplete.") from None
    except ConfigError as error:
        raise InteropError(f"{path}: cannot be imported: {error}") from error


def read(model: LanguageModel, tensors: Iterable[StoredTensor], values: dict[str, Any]) -> Names:
    """Fill a model of `model_config` with their tensors.

    Args:
        model: with memory for its parameters.
        tensors: of the checkpoint.
        values: its config.json.

    Returns:
        Names of tensors that were needed and did not come, and of those that came unasked.
    """
    slots, folds = _slots(model), _folds(model)
    bounds = slots["model.lower_bounds"]
    optional: set[str] = set()
    if values.get("tie_word_embeddings", False):
        optional.add("lm_head.weight")
    if not values.get("use_lower_bound", True):
        optional.add("model.lower_bounds")
        bounds.zero_()[0] = _NO_BOUNDS
    if not values.get("elementwise_affine", True):
        optional |= {name for name in folds if name.endswith("g_norm.weight")}
    gains: dict[str, Tensor] = {}
    unasked: set[str] = set()
    needed = set(slots) | set(folds)
    for tensor in tensors:
        needed.discard(tensor.name)
        if tensor.name in slots:
            tensor.read_into(slots[tensor.name])
        elif tensor.name in folds:
            gains[tensor.name] = tensor.read()
        else:
            unasked.add(tensor.name)
    if "lm_head.weight" in needed & optional:
        slots["lm_head.weight"].copy_(slots["model.embeddings.weight"])
    for name, gain in gains.items():
        for weight in folds[name]:
            weight.mul_(gain.to(weight))
    for name, weight in slots.items():
        if name.endswith("i_proj.weight"):
            weight.mul_(_value_factor(model.config))
    return Names(missing=needed - optional, unasked=unasked)


def written(model: LanguageModel) -> dict[str, Callable[[], Tensor]]:
    """Their tensors of a model, by name, made when called for.

    Raises:
        InteropError: the model is not an HGRN2 with a SwiGLU.
    """
    config = model.config
    if (
        not isinstance(model.blocks[0].mixer, GatedRecurrence)
        or config.gate_activation != "silu"
        or config.glu_bias
    ):
        raise InteropError(
            f"arch={config.arch!r} with glu_activation={config.glu_activation!r}: "
            "flash-linear-attention's HGRN2 has a SwiGLU channel mixer without biases; train with "
            "model.arch=hgrn2 model.glu_activation=silu to export to it."
        )
    scale = 1 / _value_factor(config)
    tensors: dict[str, Callable[[], Tensor]] = {}
    for name, tensor in _slots(model).items():
        factor = scale if name.endswith("i_proj.weight") else 1.0
        tensors[name] = lambda tensor=tensor, factor=factor: tensor * factor
    for name, (weight, *_) in _folds(model).items():
        tensors[name] = lambda weight=weight: weight.new_ones(weight.shape[1])
    if config.tie_embeddings:
        del tensors["lm_head.weight"]
    return tensors


def config_json(config: ModelConfig, context: int, eos_id: int | None) -> dict[str, Any]:
    """config.json for their HGRN2ForCausalLM of a model that `written` accepts."""
    return {
        "architectures": ["HGRN2ForCausalLM"],
        "model_type": "hgrn2",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.layers,
        "num_heads": config.heads,
        "expand_ratio": config.head_dim,
        "intermediate_size": config.glu_dim,
        "hidden_act": "swish",
        "max_position_embeddings": context,
        "norm_eps": config.norm_eps,
        "initializer_range": config.std,
        "tie_word_embeddings": config.tie_embeddings,
        "use_lower_bound": True,
        "use_short_conv": False,
        "bos_token_id": None,
        "eos_token_id": eos_id,
        "pad_token_id": eos_id,
    }


def _value_factor(config: ModelConfig) -> float:
    """What turns their value projection into ours: a norm with eps of a vector times c is the norm
    with eps / c^2 of the vector."""
    return config.head_dim**-0.5 * (config.norm_eps / _READ_EPS) ** 0.5


def _layer(model: LanguageModel, layer: int) -> dict[str, Tensor]:
    """Our parameters of a block."""
    return {n: p.detach() for n, p in model.blocks[layer].named_parameters()}


def _slots(model: LanguageModel) -> dict[str, Tensor]:
    """Their tensors that are ours, or rows of ours."""
    bounds = next(p for n, p in model.stem.named_parameters() if n == "logits").detach()
    slots = {
        "model.embeddings.weight": model.embedding.weight.detach(),
        "model.lower_bounds": bounds.view(model.config.layers, -1),
        "lm_head.weight": model.head_weight.detach(),
    }
    for layer in range(model.config.layers):
        ours, prefix = _layer(model, layer), f"model.layers.{layer}."
        for letter, rows in zip("qfi", ours["mixer.qfv.weight"].chunk(3), strict=True):
            slots[f"{prefix}attn.{letter}_proj.weight"] = rows
        slots[f"{prefix}attn.o_proj.weight"] = ours["mixer.out.weight"]
        for part in ("up", "gate", "down"):
            slots[f"{prefix}mlp.{part}_proj.weight"] = ours[f"channel.{part}.weight"]
    return slots


def _folds(model: LanguageModel) -> dict[str, list[Tensor]]:
    """Their norm weights, each with our matrices that take it up."""
    folds = {"model.norm.weight": [model.head_weight.detach()]}
    for layer in range(model.config.layers):
        ours, prefix = _layer(model, layer), f"model.layers.{layer}."
        folds[f"{prefix}attn_norm.weight"] = [ours["mixer.qfv.weight"]]
        folds[f"{prefix}attn.g_norm.weight"] = [ours["mixer.out.weight"]]
        folds[f"{prefix}mlp_norm.weight"] = [
            ours["channel.up.weight"],
            ours["channel.gate.weight"],
        ]
    return folds

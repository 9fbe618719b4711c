"""GLA, Gated DeltaNet and KDA of flash-linear-attention, both ways.

Their models and ours are the same functions of the same parameters: RMSNorms with weights, SwiGLU
channel mixers, and mixers that differ by how matrices are cut. Ours have q, k and v in one matrix
and one short convolution, theirs in three; their convolutions have a dimension of size 1 more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from models.architectures.delta import DeltaOptions
from models.architectures.gated_deltanet import GatedDeltaNetOptions
from models.architectures.gla import GLAOptions
from models.architectures.kda import KDAOptions
from models.config import ConfigError, ModelConfig
from models.interop.tensors import InteropError, Names, StoredTensor, read_json
from models.language_model import LanguageModel

CLASSES = {
    "gla": "GLAForCausalLM",
    "gated_deltanet": "GatedDeltaNetForCausalLM",
    "kda": "KDAForCausalLM",
}
"""Their model_type, which is the name of our architecture -> class."""

_PLAIN: dict[str, dict[str, Any]] = {
    "gla": {
        "num_kv_heads": None,
        "feature_map": None,
        "use_short_conv": False,
        "use_output_gate": True,
        "clamp_min": None,
        "elementwise_affine": True,
    },
    "gated_deltanet": {
        "num_v_heads": None,
        "use_gate": True,
        "use_short_conv": True,
        "output_gate_activation": "swish",
    },
    "kda": {
        "num_v_heads": None,
        "use_short_conv": True,
        "safe_gate": False,
        "lower_bound": None,
    },
}
"""What our mixers have no other form of, beside `_PLAIN_ALL`."""
_PLAIN_ALL = {"attn": None, "attnres_block_size": None, "hidden_act": "swish"}


def model_config(directory: Path) -> ModelConfig:
    """Our configuration of a checkpoint of theirs.

    Raises:
        InteropError: config.json is missing or incomplete, or asks for what our mixer has not.
    """
    path = directory / "config.json"
    values = read_json(path)
    arch = values["model_type"]
    for name, plain in (_PLAIN[arch] | _PLAIN_ALL).items():
        if (value := values.get(name, plain)) != plain:
            raise InteropError(
                f"{path}: {name}={value!r} cannot be imported; only {name}={plain!r} can."
            )
    try:
        dim, heads = values["hidden_size"], values["num_heads"]
        glu = values.get("intermediate_size")
        if glu is None:  # their rule: 2/3 of hidden_ratio * d, rounded up to 256
            glu = -(-int(dim * (values.get("hidden_ratio") or 4) * 2 / 3) // 256) * 256
        if arch == "gla":
            options = _gla_options(path, values, dim)
        else:
            kind = GatedDeltaNetOptions if arch == "gated_deltanet" else KDAOptions
            options = kind(
                key_size=values["head_dim"],
                value_expansion=float(values["expand_v"]),
                convolution=values["conv_size"],
                negative_eigenvalues=values.get("allow_neg_eigval", False),
            )
        return ModelConfig(
            arch=arch,
            vocab_size=values["vocab_size"],
            dim=dim,
            layers=values["num_hidden_layers"],
            heads=heads,
            glu_dim=glu,
            tie_embeddings=values.get("tie_word_embeddings", False),
            norm_eps=values.get("norm_eps", 1e-6),
            init_std=values.get("initializer_range"),
            options=options,
        )
    except KeyError as error:
        raise InteropError(f"{path}: {error} is missing; the file is incomplete.") from None
    except ConfigError as error:
        raise InteropError(f"{path}: cannot be imported: {error}") from error


def _gla_options(path: Path, values: dict[str, Any], dim: int) -> GLAOptions:
    if values.get("expand_v", 1.0) != 1:
        raise InteropError(
            f"{path}: expand_v={values['expand_v']!r} cannot be imported; only expand_v=1.0 can."
        )
    return GLAOptions(
        key_ratio=float(values["expand_k"]),
        # Their configuration does not pass these two on: the defaults of their layer.
        rank=values.get("gate_low_rank_dim", 16),
        temperature=float(values.get("gate_logit_normalizer", 16)),
    )


def config_json(config: ModelConfig, context: int, eos_id: int | None) -> dict[str, Any]:
    """config.json for their model of ours.

    Raises:
        InteropError: they have no such model.
    """
    options = config.options
    if config.mixers is not None or config.arch not in CLASSES:
        raise InteropError(
            f"model {config.group}: of flash-linear-attention's models there are hgrn2, "
            f"{', '.join(CLASSES)} in this layout."
        )
    _check_plain(config)
    if isinstance(options, GLAOptions):
        if (options.rank, options.temperature) != (16, 16.0):
            raise InteropError(
                f"model.options.rank={options.rank} and temperature={options.temperature}: "
                "flash-linear-attention's GLA model has 16 for both."
            )
        own = {"expand_k": options.key_ratio, "expand_v": 1.0}
    else:
        assert isinstance(options, DeltaOptions)
        own = {
            "head_dim": options.sizes(config)[0],
            "expand_v": options.value_expansion,
            "conv_size": options.convolution,
            "allow_neg_eigval": options.negative_eigenvalues,
        }
    return {
        "architectures": [CLASSES[config.arch]],
        "model_type": config.arch,
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.layers,
        "num_heads": config.heads,
        "intermediate_size": config.glu_dim,
        "max_position_embeddings": context,
        "norm_eps": config.norm_eps,
        "initializer_range": config.std,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": eos_id,
        "pad_token_id": eos_id,
        **_PLAIN[config.arch],
        **_PLAIN_ALL,
        **own,
    }


def _check_plain(config: ModelConfig) -> None:
    """Refuse what their models have no place for: all later fields but how weights start."""
    if config.gate_activation != "silu":
        raise InteropError(
            f"model.glu_activation={config.glu_activation!r}: flash-linear-attention's models have "
            "SwiGLU channel mixers; only silu can be exported to them."
        )
    for known in fields(config):
        if known.name in ("glu_activation", "mup_base_dim") or not known.metadata.get("later"):
            continue
        if (value := getattr(config, known.name)) != known.default:
            raise InteropError(
                f"model.{known.name}={value!r}: flash-linear-attention's models do not have it; "
                f"only {known.default!r} can be exported to them."
            )


def read(model: LanguageModel, tensors: Iterable[StoredTensor], values: dict[str, Any]) -> Names:
    """Fill a model of `model_config` with their tensors.

    Args:
        model: with memory for its parameters.
        tensors: of the checkpoint.
        values: its config.json.

    Returns:
        Names of tensors that were needed and did not come, and of those that came unasked.
    """
    found = slots(model)
    if not values.get("fuse_norm", True):  # their GLA has another name for the same norm then
        found = {name.replace("g_norm_swish_gate", "g_norm"): x for name, x in found.items()}
    needed, unasked = set(found), set[str]()
    for tensor in tensors:
        if tensor.name in found:
            tensor.read_into(found[tensor.name])
            needed.discard(tensor.name)
        else:
            unasked.add(tensor.name)
    return Names(missing=needed, unasked=unasked)


def written(model: LanguageModel) -> dict[str, Callable[[], Tensor]]:
    """Their tensors of a model, by name, made when called for."""
    return {
        name: lambda tensor=tensor: tensor.detach().contiguous()
        for name, tensor in slots(model).items()
    }


def slots(model: LanguageModel) -> dict[str, Tensor]:
    """Their tensors as our parameters, or as parts of them."""
    found: dict[str, Tensor] = {
        "model.embeddings.weight": model.embedding.weight,
        "model.norm.weight": model.norm.get_parameter("weight"),
    }
    if model.head is not None:
        found["lm_head.weight"] = model.head.weight
    for number, block in enumerate(model.blocks):
        ours = dict(block.named_parameters())
        prefix = f"model.layers.{number}."
        found[f"{prefix}attn_norm.weight"] = ours["mixer_norm.weight"]
        found[f"{prefix}mlp_norm.weight"] = ours["channel_norm.weight"]
        for part in ("up", "gate", "down"):
            found[f"{prefix}mlp.{part}_proj.weight"] = ours[f"channel.{part}.weight"]
        for theirs, name in _NAMES[model.config.arch].items():
            found[f"{prefix}attn.{theirs}"] = ours[f"mixer.{name}"]
        widths = block.get_submodule("mixer").widths  # pyright: ignore[reportAttributeAccessIssue]
        for letter, rows in zip("qkv", ours["mixer.qkv.weight"].split(widths), strict=True):
            found[f"{prefix}attn.{letter}_proj.weight"] = rows
        if "mixer.conv.weight" in ours:
            for letter, rows in zip("qkv", ours["mixer.conv.weight"].split(widths), strict=True):
                found[f"{prefix}attn.{letter}_conv1d.weight"] = rows[:, None]
    return found


_DELTA = {
    "b_proj.weight": "beta.weight",
    "A_log": "decay.log_rate",
    "dt_bias": "decay.bias",
    "o_norm.weight": "norm.weight",
    "o_proj.weight": "out.weight",
}
_NAMES: dict[str, dict[str, str]] = {
    "gla": {
        "g_proj.weight": "gate.weight",
        "gk_proj.0.weight": "rate_down.weight",
        "gk_proj.1.weight": "rate_up.weight",
        "gk_proj.1.bias": "rate_up.bias",
        "g_norm_swish_gate.weight": "norm.weight",
        "o_proj.weight": "out.weight",
    },
    "gated_deltanet": {"a_proj.weight": "rate.weight", "g_proj.weight": "gate.weight", **_DELTA},
    "kda": {
        "f_proj.0.weight": "rate.down.weight",
        "f_proj.1.weight": "rate.up.weight",
        "g_proj.0.weight": "gate.down.weight",
        "g_proj.1.weight": "gate.up.weight",
        "g_proj.1.bias": "gate.up.bias",
        **_DELTA,
    },
}
"""Names within their mixer -> within ours, of what is whole in both."""

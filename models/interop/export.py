"""Write a model of ours as a checkpoint directory for transformers or flash-linear-attention.

| model                        | what is written                                                |
|------------------------------|----------------------------------------------------------------|
| llama                        | a plain Llama checkpoint, or of a relative; no code            |
| tnl, hgrn2, cosformer2       | config.json with `auto_map`, the code of `models.interop.remote`|
| supra, lolcats               | the same; LoRA has to be merged first                          |
| a hybrid, and gla, mamba2,   | the same, with the code of all mixers                          |
| gated_deltanet, kda          |                                                                |
| hgrn2, layout `fla`          | flash-linear-attention's HGRN2 (`models.interop.fla_hgrn2`)    |
| gla, gated_deltanet, kda,    | flash-linear-attention's models of these names                 |
| layout `fla`                 | (`models.interop.fla_mixers`)                                  |

The tokenizer is the caller's to write: this package knows no text.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from models import flat
from models.architecture import BUILT_IN, file_of
from models.architectures.llama import LlamaOptions, rope_scaling
from models.config import ModelConfig
from models.interop import fla_hgrn2, fla_mixers, hybrid, llama, parameter_names
from models.interop.families import FAMILIES
from models.interop.importing import LINSCALE
from models.interop.tensors import SHARD_BYTES, InteropError, write_tensors
from models.language_model import LanguageModel
from models.linearize.lora import LoRALinear
from models.linearize.options import linearized
from models.width import unscaled

Layout = Literal["transformers", "fla"]
_CODE = Path(__file__).parent / "remote"
_CODE_FILES = (
    "configuration_linscale.py", "modeling_linscale.py", "modeling_linscale_recurrence.py",
)  # fmt: skip
_LINEARIZED_CODE = ("modeling_linscale_linearized.py", "modeling_linscale_parts.py")


def export_model(
    model: LanguageModel,
    directory: Path | str,
    *,
    context: int,
    eos_id: int | Sequence[int] | None,
    vocab_size: int | None = None,
    layout: str = "transformers",
    shard_bytes: int = SHARD_BYTES,
    generation: Mapping[str, Any] | None = None,
) -> None:
    """Write weights, configuration, generation configuration and, where needed, code.

    Args:
        model: any of ours.
        directory: where to; made if need be, must be empty or absent.
        context: tokens of the sequences it was trained on.
        eos_id: token that ends a text, or all that do.
        vocab_size: tokens of the tokenizer, where the embedding is padded beyond them: generation
            is told never to draw the rows of the padding. None: all rows.
        layout: `transformers`, or `fla` for a model of flash-linear-attention.
        shard_bytes: largest size of a file of weights.
        generation: settings of generation to keep, as in a `generation_config.json`.

    Raises:
        InteropError: the directory is not empty, or the layout cannot hold the model.
    """
    if layout not in get_args(Layout):
        raise InteropError(f"layout={layout!r}: choose one of {', '.join(get_args(Layout))}.")
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise InteropError(
            f"model.arch={model.config.arch!r}: it has LoRA that is not merged; call "
            "models.linearize.lora.merge_lora(model) first."
        )
    if layout == "fla" and model.config.mixers is not None:
        raise InteropError(
            f"model.mixers={model.config.mixers!r}: layout='fla' is for models whose layers are "
            "all alike; leave the layout out."
        )
    model = unscaled(model)  # no layout knows muP
    every = None if isinstance(eos_id, int | None) else list(eos_id)
    eos_id = eos_id if isinstance(eos_id, int | None) else eos_id[0]
    if layout == "fla" and model.config.arch != "hgrn2":
        content = fla_mixers.config_json(model.config, context, eos_id)
        tensors = fla_mixers.written(model)
    elif layout == "fla":
        content = fla_hgrn2.config_json(model.config, context, eos_id)
        tensors = fla_hgrn2.written(model)
    elif isinstance(model.config.options, LlamaOptions) and not hybrid.is_hybrid(model.config):
        content = llama.config_json(model.config, context, eos_id)
        family = FAMILIES[content["model_type"]]
        tensors = {n: slot.written for n, slot in parameter_names.slots(model, family).items()}
    else:
        named = {name: parameter.detach() for name, parameter in model.named_parameters()}
        content, tensors = _own(model.config, context, eos_id, _made(named))
    content["dtype"] = _name(model.embedding.weight.dtype)
    if every is not None:
        content["eos_token_id"] = every
    _write(Path(directory), content, tensors, vocab_size, shard_bytes, generation)


def export_tensors(
    config: ModelConfig,
    tensors: dict[str, Callable[[], Tensor]],
    directory: Path | str,
    *,
    context: int,
    eos_id: int | None,
    dtype: torch.dtype,
) -> None:
    """`export_model` for a linear model that is never in memory as a whole.

    Args:
        config: the model's.
        tensors: parameter name -> function that makes it, called twice (see `write_tensors`).
        directory, context, eos_id: as `export_model`.
        dtype: of most of the tensors.

    Raises:
        InteropError: the directory is not empty, or the model cannot be exported.
    """
    content, named = _own(config, context, eos_id, tensors)
    content["dtype"] = _name(dtype)
    _write(Path(directory), content, named, None, SHARD_BYTES)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _write(
    directory: Path,
    content: dict[str, Any],
    tensors: dict[str, Callable[[], Tensor]],
    vocab_size: int | None,
    shard_bytes: int,
    given: Mapping[str, Any] | None = None,
) -> None:
    """All files of an export; `content` is config.json."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InteropError(f"{directory}: exists and is not empty; choose another directory.")
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(directory, tensors, shard_bytes)
    _write_json(directory / "config.json", content)
    end = {"eos_token_id": content["eos_token_id"], "pad_token_id": content["pad_token_id"]}
    generation: dict[str, Any] = end | {"do_sample": False}
    if given is not None:  # its own padding stays, and what ends a text is all that may
        own = ("transformers_version", "_from_model_config")
        kept = {name: value for name, value in given.items() if name not in own}
        generation |= kept | {"eos_token_id": end["eos_token_id"]}
    if vocab_size is not None and vocab_size < content["vocab_size"]:
        generation["suppress_tokens"] = list(range(vocab_size, content["vocab_size"]))
    _write_json(directory / "generation_config.json", generation)
    if content["model_type"] == LINSCALE:
        more = {"rotary": _LINEARIZED_CODE, "hybrid": (*_LINEARIZED_CODE, *hybrid.CODE)}
        needed = [name for field, names in more.items() if field in content for name in names]
        for name in (*_CODE_FILES, *needed):
            shutil.copyfile(_CODE / name, directory / name)


def _own(
    config: ModelConfig, context: int, eos_id: int | None, tensors: dict[str, Callable[[], Tensor]]
) -> tuple[dict[str, Any], dict[str, Callable[[], Tensor]]]:
    """config.json and the tensors of a model that carries its code with it."""
    if own := [arch for arch in config.archs if file_of(arch) is not None]:
        raise InteropError(
            f"model.arch={own[0]!r}: an export carries the code of a built-in architecture "
            f"({', '.join(BUILT_IN)}), and there is none for one of your own; load its checkpoint "
            "with linscale.load_pretrained, or write your own code for transformers."
        )
    own = _own_config(config, context, eos_id)
    activation = config.gate_activation in ("silu", "none")
    if linearized(config) is None and not (config.plain_blocks and activation):
        raise InteropError(
            f"model.norms={config.norms!r}, model.residual_scale={config.residual_scale}, "
            f"model.glu_activation={config.glu_activation!r} with model.arch={config.arch!r}: the "
            "exported code of this architecture has pre-norms, plain residuals, and SiLU or none."
        )
    if hybrid.is_hybrid(config):
        own |= hybrid.config_fields(config)
    elif linearized(config) is not None:
        own["architectures"] = ["LinearizedForCausalLM"]
        code = _LINEARIZED_CODE[0].removesuffix(".py")
        own["auto_map"] = {
            "AutoConfig": f"{code}.LinearizedConfig",
            "AutoModelForCausalLM": f"{code}.LinearizedForCausalLM",
        }
        own["rotary"] = _rotary(config)
    return own, {f"model.{name}": make for name, make in tensors.items()}


def _rotary(config: ModelConfig) -> dict[str, Any]:
    """How queries and keys rotate, as the exported code of linearized models reads it."""
    scaling = rope_scaling(config)
    if scaling is not None and scaling.by_length:
        raise InteropError(
            f"model.options.llama.rope_scaling.kind={scaling.kind!r}: its angles change with the "
            "length of the text, which the exported code of linearized models does not follow; "
            "linearize the model without scaling, or with linear, yarn or llama3."
        )
    return hybrid.rotary(config)


def _made(tensors: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
    return {name: lambda tensor=tensor: tensor for name, tensor in tensors.items()}


def _own_config(config: ModelConfig, context: int, eos_id: int | None) -> dict[str, Any]:
    return {
        "architectures": ["LinscaleForCausalLM"],
        "model_type": LINSCALE,
        "auto_map": {
            "AutoConfig": "configuration_linscale.LinscaleConfig",
            "AutoModelForCausalLM": "modeling_linscale.LinscaleForCausalLM",
        },
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.glu_dim,
        "max_position_embeddings": context,
        "initializer_range": config.std,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": eos_id,
        "pad_token_id": eos_id,
        "linscale": flat.settings(config) if not hybrid.is_hybrid(config) else {},
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

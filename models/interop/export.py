"""Write a model of ours as a checkpoint directory for transformers or flash-linear-attention.

| model                        | what is written                                                |
|------------------------------|----------------------------------------------------------------|
| llama                        | a plain Llama (Mistral, Qwen2) checkpoint; no code             |
| tnl, hgrn2, cosformer2       | config.json with `auto_map`, the code of `models.interop.remote`|
| hgrn2, layout `fla`          | flash-linear-attention's HGRN2 (`models.interop.fla_hgrn2`)    |

The tokenizer is the caller's to write: this package knows no text.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from models.interop import fla_hgrn2, llama
from models.interop.importing import LINSCALE
from models.interop.tensors import SHARD_BYTES, InteropError, write_tensors
from models.language_model import LanguageModel

Layout = Literal["transformers", "fla"]
_CODE = Path(__file__).parent / "remote"
_CODE_FILES = ("configuration_linscale.py", "modeling_linscale.py")


def export_model(
    model: LanguageModel,
    directory: Path | str,
    *,
    context: int,
    eos_id: int | None,
    vocab_size: int | None = None,
    layout: str = "transformers",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write weights, configuration, generation configuration and, where needed, code.

    Args:
        model: any of ours.
        directory: where to; made if need be, must be empty or absent.
        context: tokens of the sequences it was trained on.
        eos_id: token that ends a text.
        vocab_size: tokens of the tokenizer, where the embedding is padded beyond them: generation
            is told never to draw the rows of the padding. None: all rows.
        layout: `transformers`, or `fla` for an HGRN2 of flash-linear-attention.
        shard_bytes: largest size of a file of weights.

    Raises:
        InteropError: the directory is not empty, or the layout cannot hold the model.
    """
    directory = Path(directory)
    if layout not in get_args(Layout):
        raise InteropError(f"layout={layout!r}: choose one of {', '.join(get_args(Layout))}.")
    config, tensors = _content(model, context, eos_id, layout)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InteropError(f"{directory}: exists and is not empty; choose another directory.")
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(directory, tensors, shard_bytes)
    config["dtype"] = str(model.embedding.weight.dtype).removeprefix("torch.")
    _write_json(directory / "config.json", config)
    generation: dict[str, Any] = {"eos_token_id": eos_id, "pad_token_id": eos_id}
    generation["do_sample"] = False
    rows = model.config.vocab_size
    if vocab_size is not None and vocab_size < rows:
        generation["suppress_tokens"] = list(range(vocab_size, rows))
    _write_json(directory / "generation_config.json", generation)
    if config["model_type"] == LINSCALE:
        for name in _CODE_FILES:
            shutil.copyfile(_CODE / name, directory / name)


def _content(
    model: LanguageModel, context: int, eos_id: int | None, layout: str
) -> tuple[dict[str, Any], dict[str, Callable[[], Tensor]]]:
    """config.json and the tensors of a layout."""
    if layout == "fla":
        return fla_hgrn2.config_json(model.config, context, eos_id), fla_hgrn2.written(model)
    if model.config.linearized is not None:
        raise InteropError(
            f"model.arch={model.config.arch!r}: linearized models have no modeling code for "
            "transformers; save model.state_dict() with model.config instead."
        )
    if model.config.arch == "llama":
        return llama.config_json(model.config, context, eos_id), _made(llama.views(model))
    named = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    return _own_config(model, context, eos_id), _made(named)


def _made(tensors: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
    return {name: lambda tensor=tensor: tensor for name, tensor in tensors.items()}


def _own_config(model: LanguageModel, context: int, eos_id: int | None) -> dict[str, Any]:
    config = model.config
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
        "linscale": asdict(config),
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

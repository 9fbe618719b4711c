"""Import a checkpoint directory of Hugging Face as a model of ours.

    model, source = import_model("path/to/checkpoint", dtype=torch.float32)

1. config.json decides the family: one of `models.interop.families`, HGRN2, GLA, Gated DeltaNet and
   KDA of flash-linear-attention (`models.interop.fla_hgrn2`, `fla_mixers`), or our own exports.
2. The model is built without memory, then given some, on the wanted device in the wanted dtype.
3. Whole tensors of the file become parameters without being copied, parts of fused ones are copied
   into their places (`models.interop.tensors`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.config import ConfigError, ModelConfig
from models.interop import fla_hgrn2, fla_mixers, llama, parameter_names
from models.interop.families import FAMILIES
from models.interop.gguf import folder_of
from models.interop.tensors import (
    InteropError,
    Names,
    StoredTensor,
    read_json,
    stored_tensors,
)
from models.language_model import LanguageModel, build

ADAPTER = "adapter_config.json"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
LINSCALE = "linscale"
"""model_type of our own exports of linear models."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a checkpoint directory says beside its weights."""

    directory: Path
    """The checkpoint."""
    config: ModelConfig
    """Our configuration of its model."""
    context: int | None
    """Longest context it was made for, in tokens; None where it does not say."""
    eos_ids: tuple[int, ...]
    """Tokens that end a text."""


def read_source(directory: Path | str) -> Source:
    """Read config.json of a checkpoint directory.

    Raises:
        InteropError: it is missing, damaged, or of a model that cannot be imported.
    """
    directory = folder_of(Path(directory))
    check_folder(directory)
    values = read_json(directory / "config.json")
    kind = values.get("model_type")
    if kind == LINSCALE:
        config = _own_config(directory, values)
    elif kind == "hgrn2":
        config = fla_hgrn2.model_config(directory)
    elif kind in fla_mixers.CLASSES:
        config = fla_mixers.model_config(directory)
    else:
        config = llama.model_config(directory)
    generation = directory / "generation_config.json"
    eos = read_json(generation).get("eos_token_id") if generation.is_file() else None
    eos = values.get("eos_token_id") if eos is None else eos
    return Source(
        directory=directory,
        config=config,
        context=values.get("max_position_embeddings"),
        eos_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
    )


def check_folder(directory: Path) -> None:
    """Raise InteropError, with the remedy, where a path is no folder of a whole model."""
    if not directory.is_dir():
        name = directory.as_posix()
        hub = HUB_NAME.fullmatch(name) and not directory.parent.exists()
        remedy = (
            f"it looks like a name on the Hugging Face hub, which is not asked here; download the "
            f"model first: hf download {name} --local-dir DIR, and give DIR."
            if hub
            else "download the checkpoint first and give its path."
        )
        raise InteropError(
            f"{directory}: is not a directory with config.json and safetensors files, nor a GGUF "
            f"file; {remedy}"
        )
    if (directory / ADAPTER).is_file() and not (directory / "config.json").is_file():
        base = read_json(directory / ADAPTER).get("base_model_name_or_path")
        raise InteropError(
            f"{directory}: holds an adapter for {base}, no whole model; merge the two, with peft: "
            "AutoPeftModelForCausalLM.from_pretrained(DIR).merge_and_unload()."
            "save_pretrained(NEW_DIR), and give NEW_DIR."
        )


def import_model(
    directory: Path | str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> tuple[LanguageModel, Source]:
    """The model of a checkpoint directory, in evaluation mode, and what the directory says of it.

    Args:
        directory: with config.json and safetensors files; or a GGUF file.
        dtype: of the parameters; None: as stored.
        device: where the model is wanted.

    Raises:
        InteropError: the checkpoint is incomplete, damaged, or of a model that cannot be imported.
    """
    source = read_source(directory)
    tensors = list(stored_tensors(source.directory))
    if not tensors:
        raise InteropError(f"{source.directory}: its safetensors files hold no tensors.")
    dtype = max(tensors, key=lambda t: t.bytes).dtype if dtype is None else dtype
    model = _with_memory(source.config, dtype, device)
    with torch.no_grad():
        names = _read(model, tensors, read_json(source.directory / "config.json"))
    for label, found in (("lacks", names.missing), ("has unknown tensors", names.unasked)):
        if found:
            first = ", ".join(sorted(found)[:3])
            rest = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise InteropError(
                f"{source.directory}: the checkpoint {label} {first}{rest}; it does not fit its "
                "config.json, or is of a variant that is not implemented."
            )
    return model.eval(), source


def _read(model: LanguageModel, tensors: list[StoredTensor], values: dict[str, Any]) -> Names:
    if values["model_type"] == LINSCALE:
        return _read_own(model, tensors)
    if values["model_type"] == "hgrn2":
        return fla_hgrn2.read(model, tensors, values)
    if values["model_type"] in fla_mixers.CLASSES:
        return fla_mixers.read(model, tensors, values)
    return parameter_names.read(model, FAMILIES[values["model_type"]], tensors)


def _with_memory(
    config: ModelConfig, dtype: torch.dtype, device: torch.device | str
) -> LanguageModel:
    """A model whose matrices hold anything, and whose buffers are set."""
    model = build(config, device="meta", dtype=dtype).to_empty(device=device)
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if reset is not None and not isinstance(module, nn.Linear | nn.Embedding):
            reset()
    return model


def _own_config(directory: Path, values: dict[str, Any]) -> ModelConfig:
    try:
        return ModelConfig.from_json(values.get("linscale", {}))
    except ConfigError as error:
        raise InteropError(
            f"{directory / 'config.json'}: cannot be imported: {error} A field that is not known "
            "comes from a later version."
        ) from error


def _read_own(model: LanguageModel, tensors: Iterable[StoredTensor]) -> Names:
    slots = {f"model.{name}": parameter for name, parameter in model.named_parameters()}
    needed, unasked = set(slots), set[str]()
    for tensor in tensors:
        if tensor.name in slots:
            tensor.read_into(slots[tensor.name])
            needed.discard(tensor.name)
        else:
            unasked.add(tensor.name)
    return Names(missing=needed, unasked=unasked)

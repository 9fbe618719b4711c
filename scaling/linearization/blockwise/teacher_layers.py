"""Some layers of a teacher, read from its files: all others stay on the meta device.

    model = teacher_layers(config, range(5, 10))     # a LanguageModel; only blocks 5-9 have memory

Tensors are read one after another into their places, so that the peak is those layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from linscale.errors import LinscaleError
from models.interop import llama, parameter_names, read_source
from models.interop.gguf import folder_of
from models.interop.tensors import stored_tensors
from models.language_model import Block, LanguageModel, build
from models.linearize.lolcats import HybridAttention
from models.linearize.surgery import take_over
from scaling.linearization.blockwise.transfer_config import Blockwise


def dtype_of(config: Blockwise) -> torch.dtype:
    """Of frozen weights and activations."""
    return torch.bfloat16 if config.precision == "bf16" else torch.float32


def check_teacher(config: Blockwise) -> None:
    """Raise LinscaleError where the teacher's directory holds another model than `config.model`."""
    found = read_source(config.teacher).config
    for name, value in vars(config.model).items():
        if getattr(found, name) != value:
            raise LinscaleError(
                f"teacher={config.teacher}: has model.{name}={getattr(found, name)!r}, and "
                f"{config.name} is for a model with {value!r}; give the directory of that model, "
                "or take the configuration from this one (models.interop.read_source)."
            )


def teacher_layers(
    config: Blockwise,
    layers: range,
    *,
    outside: bool = False,
    device: torch.device | str = "cpu",
) -> LanguageModel:
    """The teacher with these blocks in memory.

    Args:
        config: where the teacher is, and of what dtype it is wanted.
        layers: blocks to read.
        outside: also read embedding, last norm and head.
        device: where the layers are wanted.

    Raises:
        LinscaleError: the files lack a tensor.
        ConfigError: they are missing or damaged.
    """
    model = build(config.model, device="meta", dtype=dtype_of(config))
    wanted: list[nn.Module | None] = [model.blocks[layer] for layer in layers]
    if outside:
        wanted += [model.embedding, model.norm, model.head]
    for part in wanted:
        if part is not None:
            part.to_empty(device=device)
    folder = folder_of(Path(config.teacher))
    every = parameter_names.slots(model, llama.family_of(folder))
    slots = {name: slot for name, slot in every.items() if not slot.parts[0].is_meta}
    for stored in stored_tensors(folder):
        if stored.name in slots:
            slots.pop(stored.name).read(stored)
    if slots:
        raise LinscaleError(
            f"teacher={config.teacher}: lacks {', '.join(sorted(slots)[:3])}; the checkpoint is "
            "incomplete, copy it again."
        )
    return model.eval().requires_grad_(False)


def student_layers(
    config: Blockwise,
    layers: range,
    *,
    outside: bool = False,
    device: torch.device | str = "cpu",
) -> LanguageModel:
    """The student with these blocks in memory, linearized, before they learn.

    What is new in a layer is float32 and drawn from `config.seed` and the layer's number, so that
    it does not depend on the grouping.

    Args, Raises: as `teacher_layers`.
    """
    teacher = teacher_layers(config, layers, outside=outside, device=device)
    student = build(config.student, device="meta", dtype=dtype_of(config))
    std = config.student.std
    for layer in layers:
        block = cast(Block, student.blocks[layer])
        if isinstance(mixer := block.mixer, HybridAttention):
            for part in (mixer.query_map, mixer.key_map, mixer.factor):
                part.to(torch.float32)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed * 1_000_003 + layer)
            take_over(block, cast(nn.Module, teacher.blocks[layer]), std)
    if outside:
        student.embedding, student.norm, student.head = (
            teacher.embedding,
            teacher.norm,
            teacher.head,
        )
    return student.eval().requires_grad_(False)


def learning_tensors(student: LanguageModel, layers: range) -> dict[str, Tensor]:
    """What learns in some layers, by its name in the model."""
    return {
        name: parameter
        for name, parameter in student.named_parameters()
        if any(part in name for part in (".query_map.", ".key_map.", ".factor."))
        and int(name.split(".")[1]) in layers
    }

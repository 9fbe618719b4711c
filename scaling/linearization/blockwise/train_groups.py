"""Groups of layers learn from cached activations, each by itself; then all become one model.

    OUT/blockwise.json                     the configuration
    OUT/group-NN/claim                     who trains a group now (`scaling.system.claims`)
    OUT/group-NN/checkpoint.pt             where a stopped group goes on
    OUT/group-NN/losses.jsonl              {"step", "losses": {layer: loss}}, every step
    OUT/group-NN/learned.safetensors       feature maps and window factors, when it has learned
    OUT/model/                             the assembled checkpoint, in Hugging Face's layout

A group has its own layers, one batch and one layer's activations in memory: the losses are taken
and differentiated one layer after another, on the teacher's hidden states, which is what all layers
together would see. With the same batches in the same order, grouping changes no number.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from linscale.errors import LinscaleError
from models.interop.export import export_tensors
from models.interop.importing import read_source
from models.language_model import Block, LanguageModel, build
from models.linearize.transfer import block_losses, count_trained
from scaling.data.sampler import permute
from scaling.linearization.blockwise.hidden_cache import (
    Boundary,
    cache_activations,
    read_tensors,
    save,
    span_of,
    tokens_of,
)
from scaling.linearization.blockwise.teacher_layers import (
    check_teacher,
    dtype_of,
    learning_tensors,
    student_layers,
)
from scaling.linearization.blockwise.transfer_config import Blockwise
from scaling.system.claims import Claim, exclusive, holder, outwait
from scaling.system.files import read_json, replacing, write_json

CHECKPOINT_STEPS = 100
"""Steps between checkpoints of a group."""
LEARNED = "learned.safetensors"

CHECKPOINT, LOSSES = "checkpoint.pt", "losses.jsonl"

Report = Callable[[str], None]


class GroupBusy(LinscaleError):
    """Another process is training the group."""


def open_folder(config: Blockwise, out: Path) -> None:
    """Make the folder of a transfer, or check that it is this one's.

    Raises:
        LinscaleError: it holds another transfer, or the teacher is another model.
        ConfigError: the teacher cannot be read.
    """
    check_teacher(config)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "blockwise.json"
    if not path.is_file():
        write_json(path, config.to_json() | {"digest": config.digest()})
    elif read_json(path).get("digest") != config.digest():
        raise LinscaleError(
            f"{out}: holds a block-wise transfer with other settings (blockwise.json), or that "
            "file is damaged; choose another --out, or delete it."
        )


def train_group(
    config: Blockwise,
    out: Path,
    number: int,
    *,
    device: torch.device | str = "cpu",
    report: Report = print,
) -> None:
    """Let a group learn from its boundary, or go on where it was stopped.

    Args:
        config: the transfer.
        out: its folder.
        number: of the group.
        device: where it learns.
        report: gets a line when it ends.

    Raises:
        ConfigError: there is no such group.
        LinscaleError: its activations are not there yet, a file cannot be read, or another process
            is training it (`GroupBusy`).
    """
    group, folder = config.group(number), out / f"group-{number:02d}"
    if (folder / LEARNED).is_file():
        return
    held = outwait(folder)
    if held is None:
        by = holder(folder)
        where = "another process" if by is None else f"process {by.pid} on {by.hostname}"
        raise GroupBusy(f"{folder}: {where} is training group {number}; wait for it, or stop it.")
    with held:
        if not (folder / LEARNED).is_file():
            _train(config, out, group, folder, held, device)
            report(_summary(number, group, folder))


def _train(
    config: Blockwise,
    out: Path,
    group: range,
    folder: Path,
    held: Claim,
    device: torch.device | str,
) -> None:
    """Let a claimed group learn, and write what it has learned."""
    boundary = Boundary(out, group.start)
    if not boundary.complete:
        raise LinscaleError(
            f"{boundary.folder}: the activations before layer {group.start} are not complete; run "
            "the part activations first."
        )
    student = student_layers(config, group, device=device)
    tensors = learning_tensors(student, group)
    if tensors:  # a group may keep softmax in all of its layers
        text = tokens_of(config, out)
        _learn(config, student, group, tensors, boundary, text, folder, held)
    held.check()
    save(folder / LEARNED, {name: tensor.detach().cpu() for name, tensor in tensors.items()})
    (folder / CHECKPOINT).unlink(missing_ok=True)


def _summary(number: int, group: range, folder: Path) -> str:
    """How a group ended, in words."""
    path = folder / LOSSES
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    last = json.loads(lines[-1])["losses"] if lines else {}
    losses = ", ".join(f"{layer}: {loss:.4g}" for layer, loss in last.items()) or "none"
    return f"group {number}, layers {group.start} to {group.stop - 1}: last losses {losses}"


def _learn(
    config: Blockwise,
    student: LanguageModel,
    group: range,
    tensors: dict[str, Tensor],
    boundary: Boundary,
    text: Tensor,
    folder: Path,
    held: Claim,
) -> None:
    """Train from where the group stands to its last step."""
    parameters = list(tensors.values())
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.0)
    device = parameters[0].device
    blocks = [cast(Block, student.blocks[layer]) for layer in group]
    lines = _resume(folder, tensors, optimizer)
    for step in range(len(lines), config.steps):
        epoch, position = divmod(step, config.batches)
        order = permute(np.array([position]), config.batches, config.seed, epoch)
        batch = int(order[0])
        span = span_of(text[batch].to(device=device, dtype=torch.int64))
        x = boundary.batch(batch).to(device=device, dtype=dtype_of(config))
        with torch.no_grad():
            scaled, shared, _ = student.stem(x, span, None)
            x = x if group.start else scaled  # the stem acts on embedded tokens alone
        optimizer.zero_grad()
        losses = block_losses(
            blocks, group.start, x, span, shared, cross_entropy=config.cross_entropy
        )
        last: dict[int, float] = {}
        for layer, loss in losses:
            loss.backward()
            last[layer] = float(loss.detach())
        optimizer.step()
        lines.append(json.dumps({"step": step + 1, "losses": last}))
        if (step + 1) % CHECKPOINT_STEPS == 0 or step + 1 == config.steps:
            held.check()
            _keep(folder, lines, tensors, optimizer)


def _keep(
    folder: Path, lines: list[str], tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> None:
    with replacing(folder / LOSSES) as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
    state: dict[str, Any] = {"step": len(lines), "tensors": tensors}
    with replacing(folder / CHECKPOINT) as file:
        torch.save(state | {"optimizer": optimizer.state_dict()}, file)


def _resume(
    folder: Path, tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> list[str]:
    """Put a stopped group back; returns the lines of its finished steps."""
    path = folder / CHECKPOINT
    if not path.is_file():
        return []
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(state["tensors"][name])
        optimizer.load_state_dict(state["optimizer"])
        lines = (folder / LOSSES).read_text(encoding="utf-8").splitlines()[: state["step"]]
        if len(lines) < state["step"]:
            raise ValueError(f"{LOSSES} ends before step {state['step']}")
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        text = " ".join(str(error).split())[:200]
        raise LinscaleError(
            f"{path}: the group cannot go on from it ({text}); delete {folder} and give the same "
            "command again: the group learns from its start."
        ) from None
    return lines


def assemble(config: Blockwise, out: Path) -> Path:
    """Write teacher and learned tensors as one linearized checkpoint, a layer at a time in memory.

    Returns:
        Its directory, in Hugging Face's layout, with the teacher's tokenizer.

    Raises:
        LinscaleError: a group has not learned yet, or what it has learned cannot be read.
    """
    with exclusive(out / "assemble.lock", f"{out}: another process is assembling it; waiting"):
        return _assemble(config, out)


def _assemble(config: Blockwise, out: Path) -> Path:
    target, part = out / "model", out / "model.part"
    if target.is_dir():
        return target
    files = {group: out / f"group-{n:02d}" / LEARNED for n, group in enumerate(config.groups)}
    for number, path in enumerate(files.values()):
        if not path.is_file():
            raise LinscaleError(f"{path}: group {number} has not learned yet; train it first.")
    if part.is_dir():  # of a run that was stopped
        shutil.rmtree(part)
    source, teacher = read_source(config.teacher), Path(config.teacher)

    @lru_cache(maxsize=1)
    def layer_tensors(layer: int | None) -> dict[str, Tensor]:
        """The finished tensors of a layer; None: those outside of the layers."""
        if layer is None:
            model = student_layers(config, range(0), outside=True)
            return {n: p.detach() for n, p in model.named_parameters() if not p.is_meta}
        model = student_layers(config, range(layer, layer + 1))
        block = {n: p.detach() for n, p in model.named_parameters() if not p.is_meta}
        path = next(path for group, path in files.items() if layer in group)
        remedy = f"delete {path.parent} and give the same command again: the group learns anew."
        block.update({n: t for n, t in read_tensors(path, remedy).items() if n in block})
        return block

    whole = build(config.student, device="meta", dtype=dtype_of(config))

    def maker(name: str, dtype: torch.dtype) -> Callable[[], Tensor]:
        layer = int(name.split(".")[1]) if name.startswith("blocks.") else None
        return lambda: layer_tensors(layer)[name].to(dtype)

    export_tensors(
        config.student,
        {name: maker(name, p.dtype) for name, p in whole.named_parameters()},
        part,
        context=source.context or config.data.sequence_length,
        eos_id=source.eos_ids[0] if source.eos_ids else None,
        dtype=dtype_of(config),
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        if (teacher / name).is_file():
            shutil.copyfile(teacher / name, part / name)
    part.rename(target)  # a folder of this name is whole: weights, code and tokenizer
    return target


def run(
    config: Blockwise,
    out: Path,
    *,
    only: str | None = None,
    device: torch.device | str = "cpu",
    report: Report = print,
) -> None:
    """Do what is still to be done of a transfer, or one part of it.

    Args:
        config: the transfer.
        out: its folder.
        only: `activations`, the number of a group, or `assemble`; None: everything.
        device: where to compute.
        report: gets a line for each part.

    Raises:
        LinscaleError, ConfigError: as the parts.
    """
    if only not in (None, "activations", "assemble") and not (only or "").isdigit():
        raise LinscaleError(
            f"only={only!r}: choose activations, assemble, or the number of a group, 0 to "
            f"{len(config.groups) - 1}."
        )
    open_folder(config, out)
    if only in (None, "activations"):
        cache_activations(config, out, device)
        report(f"activations of {config.cached_tokens:,} tokens before each of "
               f"{len(config.groups)} groups: {out / 'activations'}")  # fmt: skip
    numbers = range(len(config.groups)) if only is None else [int(only)] if only.isdigit() else []
    busy: list[str] = []
    for number in numbers:
        try:
            train_group(config, out, number, device=device, report=report)
        except GroupBusy as error:
            if only is not None:
                raise
            busy.append(str(error))
    if busy:
        report("\n".join([*busy, "the same command assembles the model when they have learned"]))
    elif only in (None, "assemble"):
        target = assemble(config, out)
        student = build(config.student, device="meta")
        student.requires_grad_(False)
        for parameter in learning_tensors(student, range(config.model.layers)).values():
            parameter.requires_grad_(True)
        report(f"{target}: written; {count_trained(student)}")

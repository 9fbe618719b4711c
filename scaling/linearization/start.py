"""The first moment of a run that starts from a teacher, and the end of its stage 1.

    validate the teacher -> copy its weights into the student -> validate the student
    ... stage 1 ... -> validate the student

All on the run's fixed validation blocks and in its precision. A model that is sharded over devices
takes the teacher's weights and is not validated before it is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from models.language_model import LanguageModel
from scaling.config import RunConfig
from scaling.linearization import record as linearization
from scaling.linearization.stages import transfer_losses
from scaling.linearization.teacher import adopt, load_teacher
from scaling.losses import Batch, block_means
from scaling.module import TrainingModule
from scaling.parallel import accelerator
from scaling.record import RunRecord
from scaling.shards import PreparedData


def begin(
    module: TrainingModule, record: RunRecord, prepared: PreparedData, validation: list[Batch]
) -> None:
    """Give a fresh module its teacher's weights. The main process writes the record.

    Raises:
        LinscaleError, ConfigError: the teacher is missing or does not fit
            (`scaling.linearization.teacher`).
    """
    config, sharded = module.config, module.sharded
    teacher = load_teacher(config, prepared.tokenizer())
    measured: dict[str, Any] = {}
    if not sharded:
        measured["teacher"] = _losses(teacher.model, config, validation)
    adopt(module.net, teacher.model)
    layers = None
    if not sharded:
        measured["surgery"] = _losses(module.net, config, validation)
        if config.transfer_steps:
            layers = _layers(module.net, config, validation)
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        linearization.begin(record.path, config, {"name": teacher.name, **teacher.cost})
        for name, losses in measured.items():
            linearization.note(record.path, "validation", name, _summary(losses))
        if layers is not None:
            linearization.note(record.path, "layers", "before", layers)
        for line in linearization.describe(linearization.read(record.path)):
            record.log(line)


def end_transfer(module: TrainingModule, record: RunRecord, validation: list[Batch]) -> None:
    """Write what stage 1 has brought."""
    net, config = module.net, module.config
    losses = _losses(net, config, validation)
    summary = _summary(losses)
    linearization.note(record.path, "validation", "transfer", summary)
    linearization.note(record.path, "layers", "after", _layers(net, config, validation))
    record.log(f"stage 1 done | validation loss {summary['loss']:.4f}")


def _losses(net: LanguageModel, config: RunConfig, batches: list[Batch]) -> Tensor:
    """Mean loss of every validation block, on the run's device and in its precision."""
    with _evaluating(net, config) as device:
        return torch.cat([block_means(net, _to(batch, device)).cpu() for batch in batches])


def _layers(net: LanguageModel, config: RunConfig, batches: list[Batch]) -> list[float]:
    """Stage 1's loss of each linearized layer, mean over the validation batches."""
    with _evaluating(net, config) as device:
        parts = [transfer_losses(net, config, _to(batch, device)).cpu() for batch in batches]
    return torch.stack(parts).double().mean(0).tolist()


def _to(batch: Batch, device: torch.device) -> Batch:
    return tuple(tensor.to(device) for tensor in batch)


@contextmanager
def _evaluating(net: LanguageModel, config: RunConfig) -> Iterator[torch.device]:
    """The net on the run's device, in evaluation mode, without gradients; as before afterwards."""
    device, home = torch.device(accelerator(config)), net.embedding.weight.device
    training = net.training
    net.to(device).eval()
    bf16 = config.parallel.precision == "bf16"
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        yield device
    net.to(home).train(training)


def _summary(losses: Tensor) -> dict[str, Any]:
    return {
        "loss": losses.mean().item(),
        "std": losses.std().item() if len(losses) > 1 else None,
        "blocks": len(losses),
    }

"""The first moment of a run that starts from a teacher, and the end of its aligning stages.

    validate the teacher and windows alone (`scaling.linearization.baselines`)
    -> its weights into the student [-> fit outputs] -> validate the student
    ... a stage that aligns layers ... -> validate the student
    ... a milestone -> validate the student's parts

All on the run's fixed validation blocks and in its precision. A model that is sharded over devices
takes the teacher's weights and is not validated before it is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from linscale.errors import LinscaleError
from models.language_model import LanguageModel
from models.linearize.lolcats import Reads
from models.linearize.parts import hybrid_mixers, reading
from scaling.config.run import RunConfig
from scaling.data.loader import Batch, to_batch
from scaling.data.prepared import PreparedData
from scaling.linearization import baselines
from scaling.linearization import linearization_record as linearization
from scaling.linearization.teacher import adopt, load_teacher
from scaling.plan.accelerator import accelerator
from scaling.record.record import RunRecord
from scaling.training.loss import block_means
from scaling.training.objective import Training

LayerLosses = Callable[[LanguageModel, LanguageModel | None, Batch], Tensor]
"""Student, teacher and batch -> loss of each layer, (layers,)."""


def begin(
    module: Training,
    config: RunConfig,
    record: RunRecord,
    prepared: PreparedData,
    validation: list[Batch],
    alignments: Mapping[str, LayerLosses],
) -> None:
    """Give a fresh module its teacher's weights. The main process writes the record.

    Args:
        module: with fresh weights.
        config: the run.
        record: of the run.
        prepared: its data.
        validation: its fixed batches.
        alignments: losses of the run's objectives that align layers, to measure before training.

    Raises:
        LinscaleError, ConfigError: the teacher is missing or does not fit
            (`scaling.linearization.teacher`).
    """
    net = module.net
    teacher = load_teacher(config, prepared.tokenizer())
    measured: dict[str, Tensor] = {}
    windows: dict[str, tuple[baselines.Baseline, Tensor]] = {}
    layers: dict[str, list[float]] = {}
    if not module.sharded:
        measured["teacher"] = _losses(teacher.model, config, validation)
        if baselines.is_linearized(config):
            softmax = baselines.softmax_form(teacher.model)
            if softmax is not teacher.model:
                measured["softmax"] = _losses(softmax, config, validation)
            windows = baselines.measure(
                config, softmax, lambda model: _losses(model, config, validation)
            )
    adopt(net, teacher.model)
    if not module.sharded:
        if count := config.linearize.fit_sequences:
            measured["weights"] = _losses(net, config, validation)
            _fit(net, teacher.model, prepared, config, count)
        measured["surgery"] = _losses(net, config, validation)
        for name, layer_losses in alignments.items():
            layers[name] = _layers(layer_losses, net, teacher.model, config, validation)
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        known = {"name": teacher.name, "context": teacher.context, **teacher.cost}
        linearization.begin(record.path, config, known)
        for name, losses in measured.items():
            linearization.note(record.path, "validation", name, _summary(losses))
        for name, (baseline, losses) in windows.items():
            shown = linearization.window_entry(baseline)
            linearization.note(record.path, "baselines", name, shown | _summary(losses))
        for name, losses in layers.items():
            linearization.note(record.path, "layers", _key(name, "before"), losses)
        for line in linearization.describe(linearization.read(record.path)):
            record.log(line)


def lend(module: Training, config: RunConfig, record: RunRecord, prepared: PreparedData) -> None:
    """Give a module its teacher for the stages that need it as a second model.

    Raises:
        LinscaleError, ConfigError: as `begin`, or it is not the teacher that the run began with.
    """
    teacher = load_teacher(config, prepared.tokenizer())
    known = linearization.read(record.path).get("teacher", {})
    if known.get("sha256") != teacher.cost.get("sha256"):
        raise LinscaleError(
            f"linearize.teacher={config.linearize.teacher}: the weights there are not those "
            f"that the run began with ({known.get('name')}; now {teacher.name}); put them back, or "
            f"delete {record.path} to start again."
        )
    module.lend(teacher.model)


def end_alignment(
    name: str,
    layer_losses: LayerLosses,
    module: Training,
    config: RunConfig,
    record: RunRecord,
    validation: list[Batch],
) -> None:
    """Write what a stage that aligns layers has brought."""
    net = module.net
    tokens = module.step * config.tokens_per_step
    summary = {**_summary(_losses(net, config, validation)), "tokens": tokens}
    linearization.note(record.path, "validation", name, summary)
    layers = _layers(layer_losses, net, module.teacher, config, validation)
    linearization.note(record.path, "layers", _key(name, "after"), layers)
    record.log(f"{linearization.EVENTS[name]} | validation loss {summary['loss']:.4f}")


def measure_parts(
    module: Training, config: RunConfig, record: RunRecord, validation: list[Batch]
) -> None:
    """Write what the student's linear part and its window carry, at a milestone.

    The student with one of them off, in all layers and in each alone: mean loss, and how much
    that is above the student's, with the standard error of the difference over blocks.
    """
    net = module.net
    mixers = hybrid_mixers(net)
    if not mixers or module.sharded:
        return
    whole = _losses(net, config, validation)

    def without(reads: Reads, layers: list[int] | None = None) -> dict[str, Any]:
        with reading(net, reads, layers):
            difference = _losses(net, config, validation) - whole
        found = _summary(difference)
        spread = None if found["std"] is None else found["std"] / len(difference) ** 0.5
        loss = whole.mean().item() + found["loss"]
        return {"loss": loss, "difference": found["loss"], "stderr": spread}

    tokens = module.step * config.tokens_per_step
    parts = {
        "loss": whole.mean().item(),
        "linear off": without("window"),
        "window off": without("past"),
        "layers": [
            {"layer": n, "linear off": without("window", [n]), "window off": without("past", [n])}
            for n in mixers
        ],
    }
    linearization.note(record.path, "parts", str(tokens), parts)


def _key(stage: str, when: str) -> str:
    """Key in the layers of linearization.json; attention transfer's has no prefix."""
    return when if stage == "transfer" else f"{stage} {when}"


def _fit(
    net: LanguageModel,
    teacher: LanguageModel,
    prepared: PreparedData,
    config: RunConfig,
    sequences: int,
) -> None:
    """Solve the output projections on the first sequences of the run."""
    from models.linearize.initialise import fit_outputs

    prepared.verify_changed()  # the checkpoint of step 0 keeps what comes of them
    rows = prepared.train.gather(prepared.order(config.seed).blocks(0, sequences))
    fit_outputs(net, teacher, to_batch(rows)[0])


def _losses(net: LanguageModel, config: RunConfig, batches: list[Batch]) -> Tensor:
    """Mean loss of every validation block, on the run's device and in its precision."""
    with _evaluating(net, config) as device:
        return torch.cat([block_means(net, _to(batch, device)).cpu() for batch in batches])


def _layers(
    layer_losses: LayerLosses,
    net: LanguageModel,
    teacher: LanguageModel | None,
    config: RunConfig,
    batches: list[Batch],
) -> list[float]:
    """Loss of each layer that is aligned, mean over the validation batches."""
    with _evaluating(net, config) as device:
        home = None if teacher is None else teacher.embedding.weight.device
        if teacher is not None:
            teacher.to(device)
        parts = [layer_losses(net, teacher, _to(batch, device)).cpu() for batch in batches]
        if teacher is not None:
            teacher.to(home)
    return torch.stack(parts).double().mean(0).tolist()


def _to(batch: Batch, device: torch.device) -> Batch:
    return tuple(tensor.to(device) for tensor in batch)


@contextmanager
def _evaluating(net: LanguageModel, config: RunConfig) -> Iterator[torch.device]:
    """The net on the run's device, in evaluation mode, without gradients; as before afterwards."""
    device, home = torch.device(accelerator(config)), net.embedding.weight.device
    training = net.training
    net.to(device).eval()
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=config.parallel.bf16):
        yield device
    net.to(home).train(training)


def _summary(losses: Tensor) -> dict[str, Any]:
    return {
        "loss": losses.mean().item(),
        "std": losses.std().item() if len(losses) > 1 else None,
        "blocks": len(losses),
    }

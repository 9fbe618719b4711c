"""What a block-wise transfer takes, before anything of the teacher is read.

    disk      one copy of the hidden states before each group: groups x tokens x d x bytes
    memory    the layers of a group, what learns in them with gradients and Adam's moments, and the
              peak of one step, which is one layer's activations, whatever the group
    work      activations: the teacher's forward pass of all groups but the last; a group: for every
              token and epoch the teacher's forward pass of its layers, and three times the forward
              pass of feature maps and new attentions

The peak of a step is that of the very code, run on tensors without memory (`FakeTensorMode`): exact
but for the workspace of kernels. Groups do not wait for each other: with as many devices as groups
the time is that of the activations and of one group.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, NoReturn, cast

import torch
from torch import nn

from models.accounting import forward_flops_per_token, mean_keys, parameters
from models.architectures.lolcats import LoLCATs
from models.config import ConfigError, ModelConfig
from models.language_model import Block, LanguageModel
from models.linearize.lolcats import HybridAttention
from models.linearize.transfer import block_losses, let_learn
from scaling.linearization.blockwise.hidden_cache import span_of
from scaling.linearization.blockwise.teacher_layers import dtype_of
from scaling.linearization.blockwise.transfer_config import Blockwise
from scaling.plan.plan import USABLE
from scaling.system.devices import GIB, Device
from scaling.system.live_memory import LiveBytes

ADAM_BYTES = 16
"""Of a learning parameter: itself, its gradient and two moments in float32."""


@dataclass(frozen=True, kw_only=True)
class BlockwisePlan:
    """The costs of a transfer on one kind of device."""

    name: str
    device: str
    layers: int
    groups: int
    group_layers: int
    parameters: int
    """Of the teacher."""
    learning_parameters: int
    """Feature maps and window factors of all layers."""
    tokens: int
    """Tokens whose activations are kept."""
    epochs: int
    steps: int
    """Optimizer steps of a group."""
    boundary_bytes: float
    """On disk, of the hidden states before one group."""
    disk_bytes: float
    """Of those before all groups."""
    weights_bytes: float
    """In memory: frozen weights of a group."""
    step_bytes: float
    """In memory: the peak of a step beside weights and optimizer."""
    memory_per_device: float
    """In memory while a group learns."""
    whole_memory: float
    """The same if all layers were one group."""
    activations_flops: float
    """Of making the activations."""
    group_flops: float
    """Of one group."""
    flops: float
    """Of everything."""
    activations_hours: float
    group_hours: float
    device_hours: float
    """Of one device doing everything."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def plan(config: Blockwise, device: Device) -> BlockwisePlan:
    """The costs of a transfer.

    Raises:
        ConfigError: a group does not fit on the device, even if it were smaller; the message says
            what would.
    """
    model, groups = config.model, len(config.groups)
    per_layer = _layer_parameters(model)
    learning = parameters(config.student)["feature_map"]
    width = dtype_of(config).itemsize
    size = min(config.group_layers, model.layers)
    step = step_bytes(config)
    each = width * per_layer + ADAM_BYTES * learning / model.layers
    held = step + size * each
    if held > USABLE * device.memory:
        _refuse(config, device, step, each)
    boundary = float(config.cached_tokens) * model.dim * width
    teacher, student = _layer_flops(config)
    tokens = config.cached_tokens
    activations = tokens * teacher * config.groups[-1].start
    work = tokens * config.epochs * (teacher + student)
    speed = device.peak_flops * device.efficiency * 3600
    return BlockwisePlan(
        name=config.name,
        device=device.name,
        layers=model.layers,
        groups=groups,
        group_layers=size,
        parameters=sum(parameters(model).values()),
        learning_parameters=learning,
        tokens=tokens,
        epochs=config.epochs,
        steps=config.steps,
        boundary_bytes=boundary,
        disk_bytes=groups * boundary,
        weights_bytes=float(size * width * per_layer),
        step_bytes=step,
        memory_per_device=held,
        whole_memory=step + model.layers * each,
        activations_flops=activations,
        group_flops=size * work,
        flops=activations + model.layers * work,
        activations_hours=activations / speed,
        group_hours=size * work / speed,
        device_hours=(activations + model.layers * work) / speed,
    )


def step_bytes(config: Blockwise) -> float:
    """Peak of a group's step beside its weights and optimizer: hidden states and one layer's work.

    Every linear layer does the same, so that two are enough to see it.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    options = config.student.options_as(LoLCATs)
    if len(options.softmax_layers) == config.model.layers:
        return 0.0
    # A second layer, so that the first one's hidden states go on to it.
    two = config.student.replace(layers=2, options=replace(options, softmax_layers=()))
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype_of(config))
    try:
        with FakeTensorMode():
            model = LanguageModel(two).requires_grad_(False)
            blocks = [cast(Block, block) for block in model.blocks]
            known = [_float32_maps(block) for block in blocks]
            tokens = torch.zeros(config.data.batch_sequences, config.data.sequence_length).long()
            x = torch.empty(*tokens.shape, two.dim)
            span = span_of(tokens)
            x, shared, _ = model.stem(x, span, None)
            fixed = [*model.parameters(), *model.buffers()]
            with LiveBytes(*fixed) as live:
                before = live.live
                live.watch(x, *(angle for angles in shared for angle in angles))
                losses = block_losses(
                    blocks, 0, x, span, shared, cross_entropy=config.cross_entropy
                )
                _, loss = next(losses)
                loss.backward()
                gradients = 4 * sum(p.numel() for p in known[0])
                del loss
                next(losses)
    finally:
        torch.set_default_dtype(default)
    return float(live.peak - before - gradients)


def _float32_maps(block: Block) -> list[nn.Parameter]:
    """What learns in a block, made float32; returned."""
    mixer = block.mixer
    assert isinstance(mixer, HybridAttention)
    for part in (mixer.query_map, mixer.key_map, mixer.factor):
        for name, parameter in list(part.named_parameters(recurse=False)):
            wide = torch.empty(parameter.shape, dtype=torch.float32)
            setattr(part, name, nn.Parameter(wide))
    return let_learn(mixer)


def _layer_parameters(model: ModelConfig) -> int:
    """Of one layer of the teacher."""
    groups = parameters(model)
    outside = groups["embedding"] + groups["head"] + model.dim
    return (sum(groups.values()) - outside) // model.layers


def _layer_flops(config: Blockwise) -> tuple[float, float]:
    """Of one layer and token: the teacher's forward pass, and what the student adds to it."""
    options, keys = config.student.options_as(LoLCATs), mean_keys(config.data.sequence_length)
    teacher = forward_flops_per_token(config.model, keys)
    student = forward_flops_per_token(config.student, keys)
    kept = len(options.softmax_layers) / config.model.layers
    new = student["attention"] + student["feature_map"] - kept * teacher["attention"]
    layers = config.model.layers
    return (sum(teacher.values()) - teacher["head"]) / layers, 3 * new / layers


def _refuse(config: Blockwise, device: Device, step: float, each: float) -> NoReturn:
    fitting = int((USABLE * device.memory - step) // each)
    size = min(config.group_layers, config.model.layers)
    remedy = (
        f"group_layers={fitting} fits."
        if fitting >= 1
        else "not even one layer does; take fewer data.batch_sequences or precision=bf16."
    )
    raise ConfigError(
        f"{config.name}: a group of {size} layers needs about {(step + size * each) / GIB:.0f} GiB "
        f"and {device.name} has {device.memory / GIB:.0f} GiB; {remedy}"
    )

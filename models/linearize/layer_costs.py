"""Which layers should keep their softmax attention: those that cost most without it, as measured.

    costs = layer_costs(student, loss)                   # {layer: nats a token}
    kept = keep_costliest(costs, 2)                      # for Linearized.softmax_layers
    kept = keep_spread(32, 8)                            # by position alone: 3, 7, 11, ... 31

The cost of a layer is the loss with that layer alone linear, less the loss with none: the student's
weights with softmax attention in all other layers. It is measured after attention transfer, when
every layer has a linear attention worth judging (a fresh one costs what its random start costs),
and before anything else of the student has learned. Layers are judged one at a time: what two cost
together may be more. `loss` may be any measure: the loss of a text, or the divergence of a model's
next tokens from the teacher's (`divergence`), which sees changes that the text's loss does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from models.config import ConfigError
from models.language_model import LanguageModel, build
from models.linearize.options import linearized


def with_softmax_layers(student: LanguageModel, layers: tuple[int, ...]) -> LanguageModel:
    """The student with softmax attention in exactly these layers, on the same tensors.

    Raises:
        ConfigError: the model is not linearized, a layer does not exist, or softmax would go where
            there is no linear attention to take its place.
    """
    config = student.config
    options = linearized(config)
    if options is None:
        raise ConfigError(
            f"model.arch={config.arch!r}: is not linearized; linearize a llama model first."
        )
    if missing := sorted(set(options.softmax_layers) - set(layers)):
        raise ConfigError(
            f"layer {missing[0]} of the student has no linear attention; linearize all layers "
            "before choosing which to keep."
        )
    chosen = config.replace(options=replace(options, softmax_layers=tuple(layers)))
    model = build(chosen, device="meta", dtype=student.embedding.weight.dtype)
    names = model.state_dict().keys()
    tensors = {name: t for name, t in student.state_dict().items() if name in names}
    model.load_state_dict(tensors, assign=True)
    for name, buffer in student.named_buffers():
        owner, _, last = name.rpartition(".")
        if name in dict(model.named_buffers()):
            setattr(model.get_submodule(owner), last, buffer)
    return model.train(student.training)


@torch.no_grad()
def layer_costs(student: LanguageModel, loss: Callable[[LanguageModel], float]) -> dict[int, float]:
    """What each linear layer costs, in nats a token.

    Args:
        student: linearized, with its feature maps trained.
        loss: of a model on held-out text, in nats a token; the more text, the finer the
            differences that can be seen.

    Raises:
        ConfigError: the model is not linearized.
    """
    every = tuple(range(student.config.layers))
    base = loss(with_softmax_layers(student, every))
    linear = [layer for layer in every if layer not in student.config.softmax_layers]
    return {
        layer: loss(with_softmax_layers(student, every[:layer] + every[layer + 1 :])) - base
        for layer in linear
    }


def keep_costliest(costs: dict[int, float], keep: int) -> tuple[int, ...]:
    """The `keep` layers that cost most, in order; the earlier one where two cost the same.

    Raises:
        ConfigError: there are not so many.
    """
    if not 0 <= keep <= len(costs):
        raise ConfigError(f"keep={keep}: must be between 0 and {len(costs)}, the linear layers.")
    ranked = sorted(costs, key=lambda layer: (-costs[layer], layer))
    return tuple(sorted(ranked[:keep]))


def keep_spread(layers: int, keep: int) -> tuple[int, ...]:
    """`keep` of so many layers, evenly spread: the last of each of `keep` groups in a row.

    Raises:
        ConfigError: there are not so many.
    """
    if not 0 <= keep <= layers:
        raise ConfigError(f"keep={keep}: must be between 0 and {layers}, the layers.")
    return tuple((i + 1) * layers // keep - 1 for i in range(keep))


@torch.no_grad()
def divergence(
    model: LanguageModel, teacher: LanguageModel, tokens: Tensor, cu_seqlens: Tensor | None = None
) -> Tensor:
    """KL(teacher || model) of the next tokens in nats, mean over the tokens of each row, (B,).

    Args:
        model, teacher: of one vocabulary.
        tokens: (B, T), or one row of packed sequences.
        cu_seqlens: their boundaries, as in `LanguageModel.forward`.
    """
    theirs, mine = (
        m(tokens, cu_seqlens=cu_seqlens).float().log_softmax(-1) for m in (teacher, model)
    )
    return (theirs.exp() * (theirs - mine)).sum(-1).mean(-1)

"""Costs of an architecture without closed forms, read off its parts on the meta device.

The built-in architectures have closed forms (`models.architecture.LayerCosts`). One that gives none
is counted by two rules, which are exact for a mixer that is made of linear layers and of the
linear-attention primitive:

    every weight matrix of a mixer or stem multiplies each token once: 2 FLOPs a parameter;
    every number of a mixer's state is updated once and read once a token: 4 FLOPs.

Needs torch, unlike the closed forms; nothing is allocated.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from models.architecture import LayerCosts, StemCosts, part
from models.config import ModelConfig
from models.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn


@lru_cache(maxsize=256)
def layer_costs(config: ModelConfig, layer: int) -> LayerCosts:
    """What the token mixer of one layer costs, as the `costs` of an `Architecture`. It has no row
    in the `paper` convention.

    Raises:
        ConfigError: the mixer keeps no recurrent state, so that its costs depend on the context
            and need a closed form.
    """
    import torch

    mixer = _built(config.architecture.mixer, config, layer)
    kept = mixer.initial_state(1, torch.device("meta"), torch.float32)  # pyright: ignore[reportCallIssue]
    state = sum(tensor.numel() for tensor in kept.values())
    if state == 0:
        raise ConfigError(
            f"model.arch={config.arch!r} starts with an empty state, so its FLOPs depend on the "
            "context; give closed forms as the costs of its Architecture."
        )
    return LayerCosts(
        parameters={"token_mixer": _numbers(mixer)},
        flops={"projections": 2.0 * _in_matrices(mixer)},
        state=state,
    )


@lru_cache(maxsize=64)
def stem_costs(config: ModelConfig) -> StemCosts:
    """What the stem costs, as the `stem_costs` of an `Architecture`."""
    import torch

    stem = _built(config.architecture.stem, config)
    kept = stem.initial_state(1, torch.device("meta"), torch.float32)  # pyright: ignore[reportCallIssue]
    return StemCosts(
        parameters={"position": _numbers(stem)},
        flops={"position": 2.0 * _in_matrices(stem)},
        state=sum(tensor.numel() for tensor in kept.values()),
    )


@lru_cache(maxsize=64)
def norm_parameters(config: ModelConfig) -> int:
    """Parameters of one norm."""
    return _numbers(_built(config.architecture.norm, config.dim, config.norm_eps))


def _built(component: object, *arguments: object) -> nn.Module:
    import torch

    with torch.device("meta"):
        return part(component)(*arguments)  # pyright: ignore[reportArgumentType]


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _in_matrices(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.ndim > 1)

"""Costs of an architecture without closed forms, read off the model on the meta device.

The built-in architectures have closed forms (`models.architecture.LayerCosts`). One that gives none
is counted by two rules, which are exact for a mixer that is made of linear layers and of the
linear-attention primitive:

    every weight matrix outside the embedding multiplies each token once: 2 FLOPs a parameter;
    every number of the recurrent state is updated once and read once a token: 4 FLOPs.

Needs torch, unlike the closed forms; nothing is allocated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from models.config import ModelConfig
from models.errors import ConfigError

_GROUPS = {"embedding": "embedding", "head": "head", "stem": "position", "norm": "norm"}
_BLOCK_GROUPS = {"mixer": "token_mixer", "channel": "channel_mixer"}


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a whole model costs."""

    parameters: Mapping[str, int]
    """By group."""
    flops: Mapping[str, float]
    """Forward FLOPs of one token, by term."""
    state: int
    """Numbers in a sequence's state."""


@lru_cache(maxsize=64)
def costs(config: ModelConfig) -> Costs:
    """Costs of a model.

    Groups and terms are those of `models.accounting`.

    Raises:
        ConfigError: the architecture keeps no recurrent state, so that its costs depend on the
            context and need a closed form.
    """
    from torch.utils._pytree import tree_leaves

    from models.language_model import build

    model = build(config, device="meta")
    groups = dict.fromkeys((*_GROUPS.values(), *_BLOCK_GROUPS.values()), 0)
    matrices = dict(groups)
    for name, parameter in model.named_parameters():
        top, _, rest = name.partition(".")
        if top == "blocks":
            group = _BLOCK_GROUPS.get(rest.split(".")[1], "norm")
        else:
            group = _GROUPS[top]
        groups[group] += parameter.numel()
        matrices[group] += parameter.numel() if parameter.ndim > 1 else 0
    kept = model.initial_state(1, device="meta")
    blocks = sum(leaf.numel() for leaf in tree_leaves(kept.blocks))
    if blocks == 0:
        raise ConfigError(
            f"model.arch={config.arch!r} starts with an empty state, so its FLOPs depend on the "
            "context; give closed forms as the costs of its Architecture."
        )
    flops = {
        "projections": 2.0 * matrices["token_mixer"],
        "attention": 4.0 * blocks,
        "channel_mixer": 2.0 * matrices["channel_mixer"],
        "position": 2.0 * matrices["position"],
        "head": 2.0 * config.dim * config.vocab_size,
    }
    state = blocks + sum(leaf.numel() for leaf in tree_leaves(kept.stem))
    return Costs(parameters=groups, flops=flops, state=state)

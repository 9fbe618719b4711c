"""Which stems a model has. Free of torch.

What runs once before the blocks is the base architecture's stem. Layers of other architectures may
need what their own stem prepares (`Architecture.shares`: rotary angles, lower bounds of forget
gates); a hybrid has such a stem too, once for all layers to whom it gives the same. Where no layer
needs what the base architecture's stem prepares, and it has parameters that nothing would then
teach, the hybrid does without it.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache

from models.config import ModelConfig, layer_configs


@dataclass(frozen=True)
class StemPart:
    """One stem of a model."""

    config: ModelConfig
    """What it is built of."""
    layers: tuple[int, ...]
    """Whose mixers get what it shares."""


@lru_cache(maxsize=512)
def stem_parts(config: ModelConfig) -> tuple[StemPart, ...]:
    """The stems of a model: that of its base architecture first, where it has that one."""
    base = (config.architecture.stem, _need(config))
    parts = {base: StemPart(config, ())}
    for layer, own in enumerate(layer_configs(config)):
        key = (own.architecture.stem, _need(own))
        if key[1] is None and key != base:
            continue
        known = parts.get(key, StemPart(own, ()))
        parts[key] = StemPart(known.config, (*known.layers, layer))
    learns = bool(config.architecture.stem_costs(config).parameters)
    if base[1] is not None and learns and not parts[base].layers:
        del parts[base]
    return tuple(parts.values())


def _need(config: ModelConfig) -> Hashable | None:
    """What the work of a stem that only shares depends on; None for any other stem."""
    shares = config.architecture.shares
    return None if shares is None else shares(config)

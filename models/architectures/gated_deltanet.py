"""Gated DeltaNet: options and costs (the mixer: `models.gated_deltanet`)."""

from __future__ import annotations

from dataclasses import dataclass

from models.architecture import Architecture, LayerCosts
from models.architectures.delta import DeltaOptions, delta_costs
from models.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class GatedDeltaNetOptions(DeltaOptions):
    """Gated DeltaNet."""

    key_size: int | None = None
    """Channels of a head's keys. None: 3/4 of d / h, rounded down; with values twice as wide that
    makes 6 d^2 weights a layer, as published."""
    value_expansion: float = 2.0
    """Value channels for each key channel."""

    def sizes(self, model: ModelConfig) -> tuple[int, int]:
        keys = model.head_dim
        keys = max(1, 3 * keys // 4) if self.key_size is None else keys
        return keys, round(keys * self.value_expansion)


def costs(model: ModelConfig, layer: int) -> LayerCosts:
    """One layer."""
    _, values = model.options_as(GatedDeltaNetOptions).sizes(model)
    d, heads = model.dim, model.heads
    return delta_costs(model, gate=d * heads * values, gate_vectors=0, rate=d * heads, decays=heads)


ARCHITECTURE = Architecture(
    label="Gated DeltaNet",
    colour="#56B4E9",
    marker="P",
    mixer="models.gated_deltanet:GatedDeltaNet",
    activation="silu",
    options=GatedDeltaNetOptions,
    starts_from="attention",
    costs=costs,
)

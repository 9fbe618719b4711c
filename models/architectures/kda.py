"""Kimi Delta Attention: options and costs (the mixer: `models.kda`)."""

from __future__ import annotations

from dataclasses import dataclass

from models.architecture import Architecture, LayerCosts
from models.architectures.delta import DeltaOptions, delta_costs
from models.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class KDAOptions(DeltaOptions):
    """Kimi Delta Attention."""


def costs(model: ModelConfig, layer: int) -> LayerCosts:
    """One layer."""
    keys, values = model.options_as(KDAOptions).sizes(model)
    d, width = model.dim, model.heads * values
    channels = model.heads * keys
    return delta_costs(
        model,
        gate=values * (d + width),
        gate_vectors=width,
        rate=values * (d + channels),
        decays=channels,
    )


ARCHITECTURE = Architecture(
    label="KDA",
    colour="#7570B3",
    marker="X",
    mixer="models.kda:KimiDeltaAttention",
    activation="silu",
    options=KDAOptions,
    starts_from="attention",
    costs=costs,
)

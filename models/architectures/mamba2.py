"""Mamba-2's mixer: options and costs (the mixer: `models.mamba2`)."""

from __future__ import annotations

from dataclasses import dataclass

from models.architecture import Architecture, LayerCosts, Options
from models.config import ModelConfig
from models.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Mamba2Options(Options):
    """Mamba-2's mixer."""

    expansion: int = 2
    """Width of the values of all heads, in d; with 2 a layer has 6 d^2 weights."""
    state_size: int | None = None
    """Channels of keys and queries, the paper's N. None: d / h."""
    groups: int = 1
    """Heads with the same keys and queries form a group; so many groups."""
    convolution: int = 4
    """Tokens that the short convolution takes in; 1: each its own alone."""

    def _validate(self) -> None:
        self._require("expansion", 1 <= self.expansion <= 16, "from 1 to 16")
        known = self.state_size is None or self.state_size >= 1
        self._require("state_size", known, "at least 1, or None")
        self._require("groups", self.groups >= 1, "at least 1")
        self._require("convolution", 1 <= self.convolution <= 64, "from 1 to 64")

    def check(self, model: ModelConfig, where: str = Options._prefix) -> None:
        if model.heads % self.groups:
            raise ConfigError(
                f"{where}groups={self.groups}: must divide model.heads={model.heads}."
            )

    def sizes(self, model: ModelConfig) -> tuple[int, int]:
        """Key and value channels of a head."""
        keys = model.head_dim if self.state_size is None else self.state_size
        return keys, self.expansion * model.head_dim


def costs(model: ModelConfig, layer: int) -> LayerCosts:
    """One layer; element-wise work, the short convolution with it, is not counted in FLOPs."""
    options = model.options_as(Mamba2Options)
    d, heads = model.dim, model.heads
    keys, values = options.sizes(model)
    wide = heads * values
    channels = wide + 2 * options.groups * keys
    matrices = d * (channels + heads + wide)  # x, B, C; steps; out
    state = heads * keys * values
    return LayerCosts(
        parameters={
            "token_mixer": matrices + channels * (options.convolution + 1) + heads,
            "gate": d * wide,
            "norm": wide,
            "decay": 2 * heads,
        },
        flops={"projections": 2.0 * matrices, "gate": 2.0 * d * wide},
        state=state,
        spare=channels * (options.convolution - 1),
    )


ARCHITECTURE = Architecture(
    label="Mamba-2",
    colour="#E69F00",
    marker="v",
    mixer="models.mamba2:StateSpaceDuality",
    activation="silu",
    options=Mamba2Options,
    costs=costs,
)

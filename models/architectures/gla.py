"""GLA: options and costs (the mixer: `models.gla`)."""

from __future__ import annotations

from dataclasses import dataclass

from models.architecture import Architecture, LayerCosts, Options
from models.config import ModelConfig
from models.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class GLAOptions(Options):
    """Gated linear attention."""

    key_ratio: float = 0.5
    """Key channels for each value channel; with 1/2 a layer has 4 d^2 weights."""
    rank: int = 16
    """Of the matrices that give the decays (section 4.4 of the paper)."""
    temperature: float = 16.0
    """A decay is its sigmoid to the power of one over this."""

    def _validate(self) -> None:
        self._require("key_ratio", 0 < self.key_ratio <= 16, "above 0 and at most 16")
        self._require("rank", self.rank >= 1, "at least 1")
        self._require("temperature", 0 < self.temperature < float("inf"), "above 0 and finite")

    def check(self, model: ModelConfig, where: str = Options._prefix) -> None:
        if self.keys(model) != model.head_dim * self.key_ratio or self.keys(model) < 1:
            raise ConfigError(
                f"{where}key_ratio={self.key_ratio}: must be such that {model.head_dim} value "
                "channels a head times it are a whole number of key channels."
            )

    def keys(self, model: ModelConfig) -> int:
        """Key channels of a head."""
        return round(model.head_dim * self.key_ratio)


def costs(model: ModelConfig, layer: int) -> LayerCosts:
    """One layer."""
    options = model.options_as(GLAOptions)
    d, values, width = model.dim, model.head_dim, model.heads * options.keys(model)
    matrices = d * (2 * width + 2 * d) + options.rank * (d + width)  # q, k; v, out; decays
    return LayerCosts(
        parameters={"token_mixer": matrices + width, "gate": d * d, "norm": values},
        flops={"projections": 2.0 * matrices, "gate": 2.0 * d * d},
        state=width * values,
    )


ARCHITECTURE = Architecture(
    label="GLA",
    colour="#8C6D31",
    marker="<",
    mixer="models.gla:GatedLinearAttention",
    activation="silu",
    options=GLAOptions,
    starts_from="attention",
    splits_sequences=True,
    costs=costs,
)

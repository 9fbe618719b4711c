"""SUPRA: options and costs (the mixer: `models.linearize.supra`; arXiv 2405.06640)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from models.architecture import Architecture, Kept, LayerCosts, Options
from models.architectures import llama
from models.architectures.tnl import DecayOptions, DecaySlopes
from models.config import ModelConfig
from models.errors import ConfigError
from models.linearize.options import Linearized


@dataclass(frozen=True, kw_only=True)
class Supra(Linearized, DecayOptions):
    """SUPRA's attention."""

    decay_slopes: DecaySlopes = "alibi-flat"
    """As in the authors' code: ALiBi's slopes, the same in every layer. The others: see
    `models.architectures.tnl.DecayOptions`."""
    norm: bool = True
    """Normalise each head's output, in the place of softmax's denominator. False: no norm and no
    denominator (an ablation)."""

    def _validate(self) -> None:
        Linearized._validate(self)
        DecayOptions._validate(self)

    def check(self, model: ModelConfig, where: str = Options._prefix) -> None:
        super().check(model, where)
        if (features := self.features(model.head_dim)) != model.head_dim:
            raise ConfigError(
                f"{where}feature_map={self.feature_map!r}: it has {features} features and the head "
                f"dimension is {model.head_dim}; SUPRA rotates the features, so the two must be "
                "equal."
            )


def costs(model: ModelConfig, layer: int) -> LayerCosts:
    """One layer; queries and keys share a map where they have as many heads."""
    options, d, size = model.options_as(Supra), model.dim, model.head_dim
    keys = llama.key_value_heads(model)
    maps = options.map_parameters(model.heads, size)
    if keys != model.heads:
        maps += options.map_parameters(keys, size)
    map_flops = options.map_flops(model.heads, size) + options.map_flops(keys, size)

    def paper(_: int) -> Mapping[str, float]:
        share = options.features(size) / size / (2 * model.heads)
        return {"attention": 72.0 * d * d * share, "vector": 20.0 * d,
                "feature_map": 3.0 * map_flops}  # fmt: skip

    kept = Kept(
        wide=13.2 * d,
        narrow=7.7 * d,
        recurrent=model.heads * size * size,
        products=7 * d,
    )
    return LayerCosts(
        parameters={
            **llama.kept_parameters(model),
            "decay": model.heads if options.learn_decay else 0,
            "feature_map": maps,
        },
        flops={"projections": 2.0 * llama.projections(model), "feature_map": float(map_flops)},
        state=model.heads * size * size,
        kept=llama.counted(model, kept) if options.feature_map == Supra.feature_map else None,
        paper_parameters=llama.projections(model) - 4 * d * d + 4 * d + maps,
        paper_flops=paper,
    )


ARCHITECTURE = Architecture(
    label="SUPRA",
    mixer="models.linearize.supra:SupraAttention",
    stem="models.llama:RotaryStem",
    shares=llama.angles,
    activation="silu",
    options=Supra,
    costs=costs,
    starts_from="surgery",
)

"""HGRN2: costs (the mixer: `models.hgrn2`). It has no options."""

from __future__ import annotations

from collections.abc import Mapping

from models.architecture import Architecture, Kept, LayerCosts, StemCosts
from models.config import ModelConfig


def costs(model: ModelConfig, layer: int) -> LayerCosts:
    """One layer."""
    d, state = model.dim, model.dim * model.head_dim

    def paper(_: int) -> Mapping[str, float]:
        return {"attention": 24.0 * d * d / model.heads, "vector": 29.0 * d}

    return LayerCosts(
        parameters={"token_mixer": 4 * d * d},
        flops={"projections": 8.0 * d * d},
        state=state,
        kept=Kept(wide=7.0 * d, narrow=5.5 * d, recurrent=state, products=5 * d),
        paper_parameters=d,
        paper_flops=paper,
    )


def stem_costs(model: ModelConfig) -> StemCosts:
    """The logits of the lower bounds, of all layers, in hybrids too: a bound rises with the depth
    of its layer. The paper counts them layer by layer."""
    return StemCosts(parameters={"decay": model.layers * model.dim})


ARCHITECTURE = Architecture(
    label="HGRN2",
    colour="#009E73",
    marker="^",
    mixer="models.hgrn2:GatedRecurrence",
    norm="models.layers:SRMSNorm",
    stem="models.hgrn2:LowerBounds",
    shares=lambda model: (model.layers, model.heads, model.head_dim),
    splits_sequences=True,
    costs=costs,
    stem_costs=stem_costs,
    weighted_norm=False,
    starts_from="attention",
)

"""cosFormer2: options and costs (the mixer: `models.cosformer2`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from models.architecture import Architecture, Kept, LayerCosts, StemCosts
from models.architectures.tnl import GatedOptions
from models.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class CosFormer2Options(GatedOptions):
    """Linear attention re-weighted by a cosine."""

    tpe: bool = True
    """Toeplitz position encoding after the embedding."""


def costs(model: ModelConfig, layer: int) -> LayerCosts:
    """One layer; LRPE doubles the keys."""
    options = model.options_as(CosFormer2Options)
    d, rank = model.dim, options.gate_dim(model)
    state = 2 * d * model.head_dim

    def paper(_: int) -> Mapping[str, float]:
        return {"attention": 54.0 * d * d / model.heads, "vector": 23.0 * d}

    return LayerCosts(
        parameters={
            "token_mixer": 4 * d * d,
            "gate": 2 * d * rank,
            "position": d if options.lrpe_learned else 0,
        },
        flops={"projections": 8.0 * d * d, "gate": 4.0 * d * rank},
        state=state,
        kept=Kept(
            wide=10.0 * d,
            narrow=7.0 * d,
            gate=rank,
            recurrent=state,
            products=6 * d + rank,
        ),
        paper_parameters=2 * d * model.head_dim + 7 * d,
        paper_flops=paper,
    )


def stem_costs(model: ModelConfig) -> StemCosts:
    """TPE: a (d/h, d/h) matrix and a pole for every head."""
    matrices = model.dim * model.head_dim
    if not model.options_as(CosFormer2Options).tpe:
        return StemCosts(paper_parameters=matrices)
    return StemCosts(
        parameters={"position": matrices + model.heads},
        flops={"position": 2.0 * matrices},
        state=model.dim,
        paper_parameters=matrices,
    )


ARCHITECTURE = Architecture(
    label="cosFormer2",
    colour="#B0568E",
    marker="D",
    mixer="models.cosformer2:CosineAttention",
    norm="models.layers:SRMSNorm",
    stem="models.cosformer2:ToeplitzStem",
    options=CosFormer2Options,
    splits_sequences=True,
    costs=costs,
    stem_costs=stem_costs,
    weighted_norm=False,
    starts_from="attention",
)

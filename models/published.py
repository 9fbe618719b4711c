"""Shapes of published models outside the paper of the first four architectures.

GLA: section 5.1 of arXiv 2312.06635. Gated DeltaNet: the 1.3B model of arXiv 2412.06464, as
flash-linear-attention's configuration of it has it. Kimi Delta Attention is published inside a
mixture of experts, Mamba-2 in a model without channel mixers; neither is a model of ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from models.architecture import Options
from models.architectures.gated_deltanet import GatedDeltaNetOptions
from models.config import ModelConfig
from models.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class _Shape:
    arch: str
    layers: int
    dim: int
    heads: int
    glu_dim: int
    options: Options = field(default_factory=Options)


PUBLISHED: dict[str, _Shape] = {
    "gla-340M": _Shape(arch="gla", layers=24, dim=1024, heads=4, glu_dim=2816),
    "gla-1.3B": _Shape(arch="gla", layers=24, dim=2048, heads=4, glu_dim=5632),
    "gated_deltanet-1.3B": _Shape(
        arch="gated_deltanet",
        layers=21,
        dim=2048,
        heads=6,
        glu_dim=5632,
        options=GatedDeltaNetOptions(key_size=256),
    ),
}
"""Name -> shape."""


def published_config(name: str, vocab_size: int = 32_000) -> ModelConfig:
    """The configuration of a published model, with a head of its own.

    Args:
        name: one of `PUBLISHED`.
        vocab_size: rows of the embedding table; theirs by default.

    Raises:
        ConfigError: there is no model of that name.
    """
    if name not in PUBLISHED:
        raise ConfigError(f"name={name!r}: choose one of {', '.join(PUBLISHED)}.")
    shape = PUBLISHED[name]
    return ModelConfig(
        arch=shape.arch,
        vocab_size=vocab_size,
        dim=shape.dim,
        layers=shape.layers,
        heads=shape.heads,
        glu_dim=shape.glu_dim,
        tie_embeddings=False,
        options=shape.options,
    )

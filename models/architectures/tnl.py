"""TNL: options and costs (the mixer: `models.tnl`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from models.architecture import Architecture, Kept, LayerCosts, Options
from models.config import ModelConfig
from models.errors import ConfigError

DecaySlopes = Literal["alibi", "alibi-flat", "linear", "retnet", "none"]


@dataclass(frozen=True, kw_only=True)
class DecayOptions(Options):
    """One fixed decay a head."""

    decay_slopes: DecaySlopes = "alibi"
    """Decay per head: `alibi` as in TNL's authors' code (ALiBi's powers of two times a layer factor
    1 - i/(l-1) + 1e-5); `alibi-flat`, the same powers without the factor, alike in all layers, as
    in SUPRA's authors' code; `linear`, eq. 10 of arXiv 2405.17381: exp(-(8h/H)(1 - i/l)); `retnet`,
    arXiv 2307.08621: 1 - 2^(-5-h) in all layers; or none."""
    learn_decay: bool = False
    """Train the decay slopes (the authors found that this diverges; kept for ablations)."""

    def _validate(self) -> None:
        if self.learn_decay and self.decay_slopes == "none":
            raise ConfigError(
                f"{self._prefix}learn_decay=True with {self._prefix}decay_slopes='none': there is "
                "no slope to train; choose another of its values as the start."
            )


@dataclass(frozen=True, kw_only=True)
class GatedOptions(Options):
    """A low-rank output gate, and linearised rotations (LRPE) of q and k."""

    gate_rank: int | None = None
    """Rank t of the low-rank output gate. None: d / h, as in the paper."""
    lrpe_learned: bool = True
    """Train the LRPE angles (the authors' code does; the paper does not say)."""
    rope_base: float = 10_000.0
    """Base of the LRPE angles."""

    def _validate(self) -> None:
        known = self.gate_rank is None or self.gate_rank >= 1
        self._require("gate_rank", known, "at least 1, or None")
        self._require("rope_base", 0 < self.rope_base < float("inf"), "above 0 and finite")

    def gate_dim(self, model: ModelConfig) -> int:
        """Rank of the output gate with the default resolved."""
        return model.head_dim if self.gate_rank is None else self.gate_rank


@dataclass(frozen=True, kw_only=True)
class TNLOptions(GatedOptions, DecayOptions):
    """TransNormerLLM's linear attention."""

    lrpe: Literal["none", "first", "all"] = "none"
    """Layers that carry LRPE. 2406.16690 eq. 9 has none; the authors' released models have it in
    the first layer only."""

    def _validate(self) -> None:
        GatedOptions._validate(self)
        DecayOptions._validate(self)

    def rotates(self, layer: int) -> bool:
        """Whether a layer carries LRPE."""
        return self.lrpe == "all" or (self.lrpe == "first" and layer == 0)


def costs(model: ModelConfig, layer: int) -> LayerCosts:
    """One layer; LRPE doubles the keys."""
    options = model.options_as(TNLOptions)
    d, rank, rotated = model.dim, options.gate_dim(model), options.rotates(layer)
    state = d * model.head_dim * (2 if rotated else 1)

    def paper(_: int) -> Mapping[str, float]:
        return {"attention": 36.0 * d * d / model.heads, "vector": 20.0 * d}

    return LayerCosts(
        parameters={
            "token_mixer": 4 * d * d,
            "gate": 2 * d * rank,
            "position": d if rotated and options.lrpe_learned else 0,
            "decay": model.heads if options.learn_decay else 0,
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
        paper_parameters=2 * d * model.head_dim,
        paper_flops=paper,
    )


ARCHITECTURE = Architecture(
    label="TNL",
    colour="#D55E00",
    marker="s",
    mixer="models.tnl:DecayAttention",
    norm="models.layers:SRMSNorm",
    options=TNLOptions,
    splits_sequences=True,
    costs=costs,
    weighted_norm=False,
    starts_from="attention",
)

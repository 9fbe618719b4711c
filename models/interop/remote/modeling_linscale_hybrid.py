"""Hybrids for transformers, in plain PyTorch: each layer has the token mixer of its own kind.

Layers of TNL, HGRN2 and cosFormer2 keep a recurrent state (`modeling_linscale`), so do those of
GLA, Mamba-2, Gated DeltaNet and KDA (`modeling_linscale_gated`), layers of softmax attention their
keys and values, SUPRA's and LoLCATs' what `modeling_linscale_linearized` says; the cache holds them
side by side. Models whose layers are all of one of those four kinds are exported so, too. Rows may
be padded on either side: a masked token changes no state and has no position.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_linscale import LinscaleConfig
from .modeling_linscale import (
    KINDS,
    LinscaleCache,
    LinscaleForCausalLM,
    LinscaleMixer,
    LinscaleStem,
    fresh_angles,
    run_block,
)
from .modeling_linscale_gated import FRESH, GATED
from .modeling_linscale_linearized import LinearizedMixer
from .modeling_linscale_parts import FeatureMap, Norm, rotary_angles
from .modeling_linscale_recurrence import head_slopes, normalize


class HybridConfig(LinscaleConfig):
    """A class of its own, because transformers keeps one model class for each configuration's.

    `hybrid` holds `kinds`, the settings of every kind of layer with its `rotary` angles, where it
    has any; `layers`, the kind of each layer; `stems`, the kind that each stem is of, the layers
    that it serves, and whether it is the `base` architecture's; whether the stems are `mixed`, or
    one stands alone; and whether norms are `weighted`.
    """


class PlainNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return normalize(x, self.eps)


class HybridBlock(nn.Module):
    """x + TokenMixer(Norm(x)), then x + ChannelMixer(Norm(x))."""

    def __init__(self, settings: dict[str, Any], layer: int, weighted: bool) -> None:
        super().__init__()
        dim, width, bias = settings["dim"], settings["glu_dim"], settings["glu_bias"]
        norm = Norm if weighted else PlainNorm
        self.activation = F.silu if settings["glu_activation"] == "silu" else nn.Identity()
        self.mixer_norm = norm(dim, settings["norm_eps"])
        self.recurrent = settings["arch"] in KINDS
        kind = LinscaleMixer if self.recurrent else GATED.get(settings["arch"], LinearizedMixer)
        self.mixer = kind(settings, layer)
        self.channel_norm = norm(dim, settings["norm_eps"])
        self.channel = nn.ModuleDict(
            {
                "up": nn.Linear(dim, width, bias=bias),
                "gate": nn.Linear(dim, width, bias=bias),
                "down": nn.Linear(width, dim, bias=bias),
            }
        )

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        positions: Tensor,
        shared: Any,
        state: dict[str, Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The block's output and its state.

        Args:
            x: (B, T, d).
            mask: (B, T) float, 0 at padding.
            positions: (B, T), -1 at padding.
            shared: the lower bound of a layer that has one, or cosines and sines of its angles with
                the factor on queries.
            state: of this layer; empty before the first token.
        """
        inner = self.mixer_norm(x)
        if self.recurrent:
            bound = shared if isinstance(shared, Tensor) else None
            mixed, kept = self.mixer(inner, mask, positions.clamp(min=0), bound, state.get("kv"))
            after = {"kv": kept}
        else:
            mixed, after = self.mixer(inner, positions, shared, state)
        x = x + mixed
        inner = self.channel_norm(x)
        gated = self.channel["up"](inner) * self.activation(self.channel["gate"](inner))
        return x + self.channel["down"](gated), after


class HybridModel(nn.Module):
    """Embedding, stems, blocks and final norm, under the parameter names of Linscale's
    checkpoints."""

    def __init__(self, settings: dict[str, Any], hybrid: dict[str, Any]) -> None:
        super().__init__()
        self.kinds, self.layers = hybrid["kinds"], hybrid["layers"]
        self.stems, self.gradient_checkpointing = hybrid["stems"], False
        dim, weighted = settings["dim"], hybrid["weighted"]
        self.embedding = nn.Embedding(settings["vocab_size"], dim)
        stems = [
            LinscaleStem(self.kinds[stem["kind"]]["settings"], acts=stem["base"])
            for stem in self.stems
        ]
        self.stem = nn.Module() if hybrid["mixed"] or not stems else stems[0]
        if hybrid["mixed"]:
            self.stem.parts = nn.ModuleList(stems)
        self.blocks = nn.ModuleList(
            HybridBlock(self.kinds[kind]["settings"], layer, weighted)
            for layer, kind in enumerate(self.layers)
        )
        self.norm = (Norm if weighted else PlainNorm)(dim, settings["norm_eps"])
        tied = settings["tie_embeddings"]
        self.head = None if tied else nn.Linear(dim, settings["vocab_size"], bias=False)

    def forward(
        self, x: Tensor, mask: Tensor, cache: LinscaleCache
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As `LinscaleModel.forward`."""
        states, present = cache.states, mask.to(torch.bool)
        count = present.to(torch.int64).cumsum(1)
        if "count" in states:
            count = count + states["count"]
        states["count"] = count[:, -1:]
        positions = (count - 1).masked_fill(~present, -1)
        wide = mask.to(torch.promote_types(x.dtype, torch.float32))
        for stem in self._parts():
            x = stem.encode(x, wide, states)
        shared = self._shared(positions, wide.dtype)
        seen: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            seen.append(x)
            prefix = f"block {layer} "
            before = {n[len(prefix) :]: s for n, s in states.items() if n.startswith(prefix)}
            x, after = run_block(self, block, x, wide, positions, shared[layer], before)
            states.update({prefix + name: state for name, state in after.items()})
        cache.seen += x.shape[1]
        x = self.norm(x)
        return x, (*seen, x)

    def _parts(self) -> list[LinscaleStem]:
        if not self.stems:
            return []
        return list(getattr(self.stem, "parts", [self.stem]))

    def _shared(self, positions: Tensor, dtype: torch.dtype) -> list[Any]:
        """What each layer's mixer gets beside x: lower bound, angles, or nothing."""
        found: list[Any] = [None] * len(self.layers)
        for layer, kind in enumerate(self.layers):
            if (rotary := self.kinds[kind]["rotary"]) is not None:
                angles = rotary_angles(rotary, positions, dtype)
                found[layer] = angles[rotary["layers"][layer]]
        for stem, served in zip(self._parts(), self.stems, strict=True):
            bounds = stem.bounds()
            for layer in served["layers"]:
                if bounds[layer] is not None:
                    found[layer] = bounds[layer]
        return found


class HybridForCausalLM(LinscaleForCausalLM):
    """A hybrid with recurrent states, keys and values as its cache."""

    config_class = HybridConfig
    _no_split_modules = ["HybridBlock"]  # noqa: RUF012 (transformers' protocol)
    wide_modules = ("stem", "angles", "decay", "factor")

    @staticmethod
    def make_model(config: LinscaleConfig) -> Any:
        """The model without its head's product and loss."""
        return HybridModel(config.linscale, config.hybrid)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        fresh = module.fresh() if isinstance(module, FRESH) else {}
        for name, parameter in module.named_parameters(recurse=False):
            if getattr(parameter, "_is_hf_initialized", False):
                continue
            if name in fresh:
                parameter.copy_(fresh[name])
            elif isinstance(module, nn.Linear | nn.Embedding) and name == "weight":
                parameter.normal_(std=self.config.initializer_range)
            elif isinstance(module, FeatureMap) and name == "weight":
                nn.init.kaiming_uniform_(parameter)
            elif isinstance(module, Norm):
                parameter.fill_(1)
            elif name == "weight":
                parameter.copy_(torch.eye(parameter.shape[-1]))
            elif name not in ("slopes", "theta", "logit"):
                parameter.zero_()
        if isinstance(module, LinscaleMixer | LinearizedMixer):
            self._init_mixer(module)

    def _init_mixer(self, mixer: LinscaleMixer | LinearizedMixer) -> None:
        """What starts from the settings of its layer."""
        for part, name in (("angles", "theta"), ("decay", "slopes"), ("factor", "logit")):
            if getattr(mixer, part, None) is None:
                continue
            parameter = getattr(mixer, part).get_parameter(name)
            if getattr(parameter, "_is_hf_initialized", False):
                continue
            if name == "theta":
                parameter.copy_(fresh_angles(mixer.settings))
            elif name == "slopes":
                parameter.copy_(torch.tensor(head_slopes(mixer.settings, mixer.layer)))
            else:
                factor: float = mixer.settings["lolcats"]["window_factor"]
                parameter.fill_(math.log(factor / (1 - factor)))

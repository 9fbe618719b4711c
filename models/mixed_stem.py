"""The stem of a hybrid: every stem that its layers need runs, each layer gets what its own made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from models.architecture import part
from models.config import ModelConfig
from models.errors import ConfigError
from models.layers import LayerState, Shared, Span, Stem
from models.stems import StemPart, stem_parts


class MixedStem(Stem):
    """The stem of the base architecture may change x and carry a state; others only share."""

    def __init__(self, config: ModelConfig, parts: Sequence[StemPart]) -> None:
        super().__init__(config)
        self.parts = nn.ModuleList(part(p.config.architecture.stem)(p.config) for p in parts)
        self._layers = [p.layers for p in parts]
        self._acts = [p.config == config for p in parts]

    def forward(
        self, x: Tensor, span: Span, state: LayerState | None
    ) -> tuple[Tensor, list[Shared], LayerState]:
        shared: list[Shared] = self._none()
        kept: LayerState = {}
        for stem, layers, acts in self._each():
            after, own, own_state = stem(x, span, state if acts else None)
            if acts:
                x, kept = after, own_state
            self._share(shared, own, layers)
        return x, shared, kept

    def step(
        self, x: Tensor, positions: Tensor, state: LayerState
    ) -> tuple[Tensor, list[Shared], LayerState]:
        shared = self._none()
        for stem, layers, acts in self._each():
            after, own, own_state = stem.step(x, positions, state if acts else {})
            if acts:
                x, state = after, own_state
            self._share(shared, own, layers)
        return x, shared, state

    def initial_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> LayerState:
        kept: LayerState = {}
        for stem, _, acts in self._each():
            if acts:
                kept = stem.initial_state(batch_size, device, dtype)
        return kept

    def _each(self) -> zip[tuple[Stem, tuple[int, ...], bool]]:
        return zip(cast("list[Stem]", list(self.parts)), self._layers, self._acts, strict=True)

    def _none(self) -> list[Shared]:
        return [()] * self.config.layers

    @staticmethod
    def _share(shared: list[Shared], own: list[Shared], layers: tuple[int, ...]) -> None:
        for layer in layers:
            shared[layer] = own[layer]


def make_stem(config: ModelConfig) -> Stem:
    """The stem of a model.

    Raises:
        ConfigError: a stem that is said to share alone carries a state.
    """
    parts = stem_parts(config)
    if not is_mixed(config):
        return part(parts[0].config.architecture.stem)(config) if parts else Stem(config)
    for own in (other for other in parts if other.config != config):
        kept = getattr(part(own.config.architecture.stem), "initial_state", Stem.initial_state)
        if kept is not Stem.initial_state:
            raise ConfigError(
                f"model.mixers: the stem of {own.config.arch} carries a state, so that it is none "
                "that only shares; leave Architecture.shares out."
            )
    return MixedStem(config, parts)


def is_mixed(config: ModelConfig) -> bool:
    """Whether a model's stem is made of parts: it is not its base architecture's alone, or none."""
    parts = stem_parts(config)
    return len(parts) > 1 or any(stem.config != config for stem in parts)

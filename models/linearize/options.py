"""How softmax attention becomes linear attention: the options that both methods have.

SUPRA (arXiv 2405.06640) exchanges softmax attention for linear attention with decay and a norm;
LoLCATs (arXiv 2410.10254) for linear attention to the far past beside softmax attention to a
window. Their own options: `models.architectures`. Plain data and closed forms, without torch, so
that configurations and accounting can use them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from models.architecture import BUILT_IN, Options, find
from models.architectures.llama import LlamaBased, LlamaOptions
from models.config import ModelConfig
from models.errors import ConfigError

FeatureMapName = Literal["supra", "t2r", "hedgehog", "relu", "elu", "taylor", "identity", "none"]
SIZED = ("t2r", "hedgehog")
"""Feature maps whose learned matrix may have any number of columns."""
POSITIVE = ("supra", "t2r", "hedgehog", "relu", "elu", "taylor", "none")
"""Feature maps whose products q.k are never negative, as a denominator needs."""


@dataclass(frozen=True, kw_only=True)
class Linearized(LlamaBased):
    """What both methods have."""

    feature_map: FeatureMapName = "supra"
    """Map of queries and keys before their product (`models.linearize.feature_maps`)."""
    feature_size: int | None = None
    """Columns of the learned matrix of `t2r` and `hedgehog`. None: the head dimension for `t2r`,
    half of it for `hedgehog`, which has two features a column."""
    softmax_layers: tuple[int, ...] = ()
    """Layers, counted from 0, that keep their softmax attention."""

    def _validate(self) -> None:
        size = self.feature_size
        self._require("feature_size", size is None or size >= 1, "a positive whole number, or None")
        if size is not None and self.feature_map not in SIZED:
            raise ConfigError(
                f"{self._prefix}feature_size={size}: the size of feature_map={self.feature_map!r} "
                "is fixed; leave it out."
            )
        layers = list(self.softmax_layers)
        ordered = layers == sorted(set(layers)) and all(layer >= 0 for layer in layers)
        self._require("softmax_layers", ordered, "layer indices in increasing order")

    def check(self, model: ModelConfig, where: str = Options._prefix) -> None:
        super().check(model, where)
        if self.softmax_layers and self.softmax_layers[-1] >= model.layers:
            raise ConfigError(
                f"{where}softmax_layers={self.softmax_layers}: the last layer is "
                f"{model.layers - 1}."
            )

    def instead(self, layer: int) -> tuple[str, Options] | None:
        return ("llama", self.llama) if layer in self.softmax_layers else None

    def columns(self, head_dim: int) -> int:
        """Columns of the learned matrix of `t2r` and `hedgehog`."""
        default = head_dim // 2 if self.feature_map == "hedgehog" else head_dim
        return default if self.feature_size is None else self.feature_size

    def features(self, head_dim: int) -> int:
        """Features F of a head."""
        special: dict[str, Callable[[], int]] = {
            "t2r": lambda: self.columns(head_dim),
            "hedgehog": lambda: 2 * self.columns(head_dim),
            "taylor": lambda: 1 + head_dim + head_dim**2,
            "none": lambda: 0,
        }
        return special.get(self.feature_map, lambda: head_dim)()

    def map_parameters(self, heads: int, head_dim: int) -> int:
        """Parameters of one feature map over `heads` heads."""
        if self.feature_map == "supra":
            return (heads * head_dim) ** 2 + heads * head_dim
        if self.feature_map not in SIZED:
            return 0
        bias = self.feature_map == "t2r"
        return heads * (head_dim + bias) * self.columns(head_dim)

    def map_flops(self, heads: int, head_dim: int) -> int:
        """FLOPs of one feature map over `heads` heads of one token: two a multiply-add."""
        if self.feature_map == "supra":
            return 2 * (heads * head_dim) ** 2
        return 2 * heads * head_dim * self.columns(head_dim) if self.feature_map in SIZED else 0


def linearized(model: ModelConfig) -> Linearized | None:
    """The options of a linearized LLaMA; None for any other model."""
    return model.options if isinstance(model.options, Linearized) else None


def linearized_config(config: ModelConfig, options: Linearized) -> ModelConfig:
    """The configuration of a linearized model.

    Args:
        config: of the softmax model, `arch="llama"`.
        options: the method; its part `llama` becomes the model's own.

    Raises:
        ConfigError: the model is no LLaMA, or the options do not fit it.
    """
    if not isinstance(config.options, LlamaOptions):
        what = "is linearized already" if linearized(config) else "has no softmax attention"
        raise ConfigError(
            f"model.arch={config.arch!r} {what}; only llama (and imported checkpoints "
            "of its relatives, such as Qwen3 or Gemma 3) can be linearized."
        )
    if config.mixers is not None:
        raise ConfigError(
            f"model.mixers={config.mixers!r}: layers of a hybrid cannot be linearized; take a "
            "model whose layers are all llama's."
        )
    arch = next(name for name in BUILT_IN if find(name).options is type(options))
    return config.replace(arch=arch, options=replace(options, llama=config.options))

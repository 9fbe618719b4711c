"""How softmax attention becomes linear attention: the options of the two methods.

SUPRA (arXiv 2405.06640) exchanges softmax attention for linear attention with decay and a norm;
LoLCATs (arXiv 2410.10254) for linear attention to the far past beside softmax attention to a
window. Plain data and closed forms, without torch, so that configurations and accounting can use
them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from models.errors import ConfigError

FeatureMapName = Literal["supra", "t2r", "hedgehog", "relu", "elu", "taylor", "identity"]
FEATURE_MAPS: tuple[FeatureMapName, ...] = get_args(FeatureMapName)
Arrangement = Literal["terraced", "sliding"]

SIZED = ("t2r", "hedgehog")
"""Feature maps whose learned matrix may have any number of columns."""
POSITIVE = ("supra", "t2r", "hedgehog", "relu", "elu", "taylor")
"""Feature maps whose products q.k are never negative, as a denominator needs."""


@dataclass(frozen=True, kw_only=True)
class Linearized:
    """What both methods have.

    Raises:
        ConfigError: a value is out of range or contradicts another.
    """

    feature_map: FeatureMapName = "supra"
    """Map of queries and keys before their product (`models.linearize.feature_maps`)."""
    feature_size: int | None = None
    """Columns of the learned matrix of `t2r` and `hedgehog`. None: the head dimension for `t2r`,
    half of it for `hedgehog`, which has two features a column."""
    softmax_layers: tuple[int, ...] = ()
    """Layers, counted from 0, that keep their softmax attention."""

    def __post_init__(self) -> None:
        if self.feature_map not in FEATURE_MAPS:
            raise self.error("feature_map", f"choose one of {', '.join(FEATURE_MAPS)}.")
        size = self.feature_size
        if size is not None and (isinstance(size, bool) or size < 1):
            raise self.error("feature_size", "must be a positive whole number, or None.")
        if size is not None and self.feature_map not in SIZED:
            raise self.error(
                "feature_size",
                f"the size of feature_map={self.feature_map!r} is fixed; leave it out.",
            )
        layers = tuple(self.softmax_layers)
        if list(layers) != sorted(set(layers)) or any(layer < 0 for layer in layers):
            raise self.error("softmax_layers", "must be layer indices in increasing order.")
        object.__setattr__(self, "softmax_layers", layers)

    def error(self, name: str, remedy: str) -> ConfigError:
        """A ConfigError about a field of this part."""
        part = type(self).__name__.lower()
        return ConfigError(f"model.{part}.{name}={getattr(self, name)!r}: {remedy}")

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


@dataclass(frozen=True, kw_only=True)
class Supra(Linearized):
    """SUPRA's attention (`models.linearize.supra`); the decay is `ModelConfig.decay_slopes`."""

    norm: bool = True
    """Normalise each head's output, in the place of softmax's denominator. False: no norm and no
    denominator (an ablation)."""


@dataclass(frozen=True, kw_only=True)
class LoLCATs(Linearized):
    """LoLCATs' attention (`models.linearize.lolcats`); defaults as published."""

    feature_map: FeatureMapName = "hedgehog"
    window: int = 64
    """Softmax window w in tokens."""
    arrangement: Arrangement = "terraced"
    """`terraced`: a token sees its own block of w tokens and the block before. `sliding`: a token
    sees the last w tokens, itself included."""
    affine: bool = False
    """Weigh the linear part by one minus the window factor, instead of one."""
    window_factor: float = 0.1
    """Start of the learned factor of each head on the softmax part, above 0 and below 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.feature_map not in POSITIVE:
            raise self.error(
                "feature_map",
                f"its products may be negative, and the denominator zero; choose one of "
                f"{', '.join(POSITIVE)}.",
            )
        if isinstance(self.window, bool) or self.window < 1:
            raise self.error("window", "must be a positive whole number of tokens.")
        if self.arrangement not in get_args(Arrangement):
            raise self.error("arrangement", f"choose one of {', '.join(get_args(Arrangement))}.")
        if not 0 < self.window_factor < 1:
            raise self.error("window_factor", "must be above 0 and below 1.")

    def seen(self, position: int) -> int:
        """Keys in the softmax window of the token at `position` (counted from 1)."""
        if self.arrangement == "sliding":
            return min(position, self.window)
        block, index = divmod(position - 1, self.window)
        return index + 1 + (self.window if block else 0)

    def mean_seen(self, length: int) -> float:
        """Keys in the softmax window on average over a sequence of `length` tokens."""
        w, (blocks, rest) = self.window, divmod(length, self.window)
        if self.arrangement == "sliding":
            short = min(length, w)
            return (short * (short + 1) / 2 + (length - short) * w) / length
        own = blocks * w * (w + 1) // 2 + rest * (rest + 1) // 2
        return (own + w * max(length - w, 0)) / length

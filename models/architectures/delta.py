"""What the architectures with the delta rule share: options and costs (`models.delta_mixer`)."""

from __future__ import annotations

from dataclasses import dataclass

from models.architecture import LayerCosts, Options
from models.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class DeltaOptions(Options):
    """A mixer with the delta rule."""

    key_size: int | None = None
    """Channels of a head's keys. None: d / h."""
    value_expansion: float = 1.0
    """Value channels for each key channel."""
    convolution: int = 4
    """Tokens that the short convolution of q, k and v takes in; 1: each its own alone."""
    negative_eigenvalues: bool = False
    """beta in (0, 2) instead of (0, 1): a write may flip the sign of what is held under its key,
    and so count modulo two (arXiv 2411.12537)."""

    def _validate(self) -> None:
        known = self.key_size is None or self.key_size >= 1
        self._require("key_size", known, "at least 1, or None")
        self._require("value_expansion", 0 < self.value_expansion <= 16, "above 0 and at most 16")
        self._require("convolution", 1 <= self.convolution <= 64, "from 1 to 64")

    def head_dim(self, dim: int, heads: int) -> int:
        return super().head_dim(dim, heads) if self.key_size is None else self.key_size

    def check(self, model: ModelConfig, where: str = Options._prefix) -> None:
        keys, values = self.sizes(model)
        self._require(
            "value_expansion",
            values >= 1 and values == keys * self.value_expansion,
            f"such that {keys} key channels times it are a whole number of value channels",
        )

    def sizes(self, model: ModelConfig) -> tuple[int, int]:
        """Key and value channels of a head."""
        keys = model.head_dim
        return keys, round(keys * self.value_expansion)


def delta_costs(
    model: ModelConfig, *, gate: int, gate_vectors: int, rate: int, decays: int
) -> LayerCosts:
    """One layer; element-wise work, the short convolution with it, is not counted in FLOPs.

    Args:
        model: model.
        gate: weights of the output gate's matrices.
        gate_vectors: biases of the output gate.
        rate: weights of the matrices that give the decays.
        decays: decays of a token.
    """
    options = model.options_as(DeltaOptions)
    d, heads = model.dim, model.heads
    keys, values = options.sizes(model)
    channels = heads * (2 * keys + values)
    matrices = d * (channels + heads * values + heads) + rate  # q, k, v; out; beta; decays
    state = heads * keys * values
    return LayerCosts(
        parameters={
            "token_mixer": matrices + channels * options.convolution,
            "gate": gate + gate_vectors,
            "norm": values,
            "decay": heads + decays,
        },
        # Beside update and read of the state, the read for the correction.
        flops={"projections": 2.0 * matrices, "gate": 2.0 * gate, "attention": 2.0 * state},
        state=state,
        spare=channels * (options.convolution - 1),
    )

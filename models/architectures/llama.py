"""LLaMA, the softmax baseline: options and costs (the mixer: `models.llama`).

Options for models of the family, all off in the paper's: grouped-query attention, a head dimension
of its own, stretched rotary frequencies, a sliding window and biases. `LlamaBased` is for
architectures that change a LLaMA's attention and keep its projections: they carry its options as a
part, `llama`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from models.architecture import Architecture, Kept, LayerCosts, Options, Softmax
from models.config import ModelConfig, layer_configs
from models.errors import ConfigError
from models.fields import LATER, Part

RopeKind = Literal["linear", "dynamic", "yarn", "llama3"]


@dataclass(frozen=True, kw_only=True)
class RopeScaling(Part):
    """How rotary frequencies are stretched to contexts beyond the trained one (`models.rope`)."""

    kind: RopeKind
    """`linear`: positions divided by `factor`. `dynamic`: NTK-aware base that grows with the length
    of the call. `yarn`: by parts with a temperature (arXiv 2309.00071). `llama3`: by wavelength."""
    factor: float
    """Ratio of the wanted context to the trained one, at least 1."""
    original_length: int | None = None
    """Context of the original training in tokens (not for `linear`)."""
    attention_factor: float | None = None
    """`yarn`: multiplies cos and sin. None: 0.1 ln(factor) + 1."""
    beta_fast: float = 32.0
    """`yarn`: channels that turn more often than this in the original context keep their angle."""
    beta_slow: float = 1.0
    """`yarn`: channels that turn less often than this are interpolated in full."""
    truncate: bool = True
    """`yarn`: round the two channel boundaries outwards to whole channels."""
    low_freq_factor: float = 1.0
    """`llama3`: wavelengths above original_length / low_freq_factor are interpolated in full."""
    high_freq_factor: float = 4.0
    """`llama3`: wavelengths below original_length / high_freq_factor stay as they are."""

    _prefix = "model.options.rope_scaling."

    def _validate(self) -> None:
        self._require("factor", 1 <= self.factor < float("inf"), "at least 1 and finite")
        if self.kind != "linear" and (self.original_length is None or self.original_length < 1):
            raise ConfigError(
                f"{self._prefix}original_length={self.original_length}: {self.kind} scaling needs "
                "the context of the original training, a positive number of tokens."
            )
        if self.kind == "llama3" and not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ConfigError(
                f"{self._prefix}low_freq_factor={self.low_freq_factor}: must be above 0 and below "
                f"high_freq_factor={self.high_freq_factor}."
            )


@dataclass(frozen=True, kw_only=True)
class LlamaOptions(Options):
    """Softmax attention with rotary positions, or without."""

    softmax = True
    rope_base: float = 10_000.0
    """Base of the rotary frequencies."""
    kv_heads: int | None = None
    """Key and value heads, each shared by heads / kv_heads query heads (grouped-query attention,
    arXiv 2305.13245). None: as many as heads."""
    head_size: int | None = None
    """Head dimension where it is not dim / heads. None: dim / heads."""
    rope_scaling: RopeScaling | None = None
    """Stretching of the rotary frequencies; None: none."""
    window: int | None = None
    """Keys that a query sees, itself included (sliding-window attention). None: all."""
    qkv_bias: bool = False
    """Biases of the query, key and value projections."""
    out_bias: bool = False
    """Bias of the attention output projection."""
    rope: bool = field(default=True, metadata=LATER)
    """Rotate queries and keys by their positions. False: none (NoPE), for hybrids, whose recurrent
    layers know the order of tokens."""

    def _validate(self) -> None:
        for name in ("kv_heads", "head_size", "window"):
            value = getattr(self, name)
            self._require(name, value is None or value >= 1, "a positive whole number, or None")
        self._require("rope_base", 0 < self.rope_base < float("inf"), "above 0 and finite")
        if not self.rope and self.rope_scaling is not None:
            raise ConfigError(
                f"{self._prefix}rope_scaling with {self._prefix}rope=False: there are no rotations "
                "to stretch; leave one of the two out."
            )

    def check(self, model: ModelConfig, where: str = Options._prefix) -> None:
        if model.heads % self.key_value_heads(model.heads):
            raise ConfigError(
                f"{where}kv_heads={self.kv_heads} does not divide model.heads={model.heads}; every "
                "key-value head must serve equally many query heads."
            )
        if self.rope and model.head_dim % 2:
            raise ConfigError(
                f"model.dim={model.dim} with model.heads={model.heads} and {where}head_size="
                f"{self.head_size} gives head dimension {model.head_dim}; rotary embeddings need "
                "an even one."
            )

    def head_dim(self, dim: int, heads: int) -> int:
        return super().head_dim(dim, heads) if self.head_size is None else self.head_size

    def widened(self, factor: int) -> LlamaOptions:
        return replace(self, kv_heads=None if self.kv_heads is None else factor * self.kv_heads)

    def key_value_heads(self, heads: int) -> int:
        """Key and value heads with the default resolved."""
        return heads if self.kv_heads is None else self.kv_heads

    def seen(self, position: int) -> int:
        """Keys that the query at `position` (counted from 1) sees, itself included."""
        return position if self.window is None else min(position, self.window)

    def mean_seen(self, length: int) -> float:
        """Keys that a query sees on average in a sequence: (n + 1) / 2 without a window."""
        w = self.seen(length)
        return (w * (w + 1) / 2 + (length - w) * w) / length


@dataclass(frozen=True, kw_only=True)
class LlamaBased(Options):
    """Options of an architecture with a LLaMA's projections and another attention."""

    llama: LlamaOptions = LlamaOptions()
    """The transformer's own options."""

    def check(self, model: ModelConfig, where: str = Options._prefix) -> None:
        self.llama.check(model, f"{where}llama.")

    def head_dim(self, dim: int, heads: int) -> int:
        return self.llama.head_dim(dim, heads)

    def widened(self, factor: int) -> LlamaBased:
        return replace(self, llama=self.llama.widened(factor))


def llama_options(model: ModelConfig) -> LlamaOptions:
    """The options of a LLaMA, or of the LLaMA that a model is based on.

    Raises:
        ConfigError: the model is neither.
    """
    options = model.options
    return options.llama if isinstance(options, LlamaBased) else model.options_as(LlamaOptions)


def rope_scaling(model: ModelConfig) -> RopeScaling | None:
    """How a model's rotary frequencies are stretched; None where they are not, or it has none."""
    based = isinstance(model.options, LlamaOptions | LlamaBased)
    return llama_options(model).rope_scaling if based else None


def follows_length(model: ModelConfig) -> bool:
    """Whether rotary angles of some layer depend on how long a sequence becomes."""
    scalings = map(rope_scaling, layer_configs(model))
    return any(scaling is not None and scaling.kind == "dynamic" for scaling in scalings)


def angles(model: ModelConfig) -> Hashable:
    """What the rotary angles of a model depend on; models that are equal in this share them."""
    options = llama_options(model)
    return options.rope, options.rope_base, options.rope_scaling, model.head_dim


def key_value_heads(model: ModelConfig) -> int:
    """Key and value heads of a LLaMA or of a model based on one; any other has one a head."""
    if isinstance(model.options, LlamaOptions | LlamaBased):
        return llama_options(model).key_value_heads(model.heads)
    return model.heads


def projections(model: ModelConfig) -> int:
    """Weights of the projections to q, k, v and from the heads' outputs, in one layer."""
    heads = 2 * (model.heads + key_value_heads(model))
    return model.dim * heads * model.head_dim


def projection_parameters(model: ModelConfig) -> int:
    """The same with biases."""
    options, size = llama_options(model), model.head_dim
    bias = options.qkv_bias * (model.heads + 2 * key_value_heads(model)) * size
    return projections(model) + bias + options.out_bias * model.dim


def softmax(model: ModelConfig) -> Softmax:
    """Keys and values of one layer of softmax attention."""
    options = llama_options(model)
    return Softmax(
        query_width=model.heads * model.head_dim,
        key_width=key_value_heads(model) * model.head_dim,
        seen=options.seen,
        mean=options.mean_seen,
        held=options.seen,
    )


def costs(model: ModelConfig, layer: int) -> LayerCosts:
    """One layer of softmax attention; also of a model based on LLaMA that keeps it there."""
    d = model.dim

    def paper(length: int) -> Mapping[str, float]:
        return {"attention": 12.0 * length * d, "vector": 20.0 * d}

    return LayerCosts(
        parameters={"token_mixer": projection_parameters(model)},
        flops={"projections": 2.0 * projections(model)},
        softmax=softmax(model),
        kept=Kept(wide=10.0 * d, narrow=6.5 * d, states=model.heads, products=5 * d),
        paper_parameters=projections(model) - 4 * d * d + 4 * d,
        paper_flops=paper,
    )


ARCHITECTURE = Architecture(
    label="LLaMA",
    colour="#0072B2",
    marker="o",
    mixer="models.llama:SoftmaxAttention",
    stem="models.llama:RotaryStem",
    activation="silu",
    shares=angles,
    options=LlamaOptions,
    costs=costs,
    starts_from="itself",
)

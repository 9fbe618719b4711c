"""LLaMA, the softmax baseline: options and costs (the mixer: `models.llama`).

Options for models of the family, all off in the paper's: grouped-query attention, a head dimension
of its own, stretched rotary frequencies, a sliding window, biases, normed queries and keys, rotary
positions and windows by layer, scaled and capped scores, scaled embeddings. `LlamaBased` is for
architectures that change a LLaMA's attention and keep its projections: they carry its options as a
part, `llama`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from models.architecture import Architecture, Kept, LayerCosts, Options, Softmax
from models.config import ModelConfig, layer_configs
from models.errors import ConfigError
from models.fields import LATER, Part

RopeKind = Literal["linear", "dynamic", "yarn", "llama3", "longrope"]


@dataclass(frozen=True, kw_only=True)
class RopeScaling(Part):
    """How rotary frequencies are stretched to contexts beyond the trained one (`models.rope`)."""

    kind: RopeKind
    """`linear`: positions divided by `factor`. `dynamic`: NTK-aware base that grows with the length
    of the call. `yarn`: by parts with a temperature (arXiv 2309.00071). `llama3`: by wavelength.
    `longrope`: by given factors, one set for short calls and one for long (arXiv 2402.13753)."""
    factor: float
    """Ratio of the wanted context to the trained one, at least 1."""
    original_length: int | None = None
    """Context of the original training in tokens (not for `linear`)."""
    attention_factor: float | None = None
    """`yarn`, `longrope`: multiplies cos and sin. None: 0.1 ln(factor) + 1 for `yarn`, and for
    `longrope` sqrt(1 + ln(factor) / ln(original_length))."""
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
    short_factors: tuple[float, ...] = field(default=(), metadata=LATER)
    """`longrope`: divisors of the frequencies up to original_length tokens."""
    long_factors: tuple[float, ...] = field(default=(), metadata=LATER)
    """`longrope`: divisors of the frequencies of longer calls."""
    query_growth: float = field(default=0.0, metadata=LATER)
    """Queries are multiplied by 1 + this x ln(1 + floor(position / original_length))."""

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
        whole = all(0 < f < float("inf") for f in (*self.short_factors, *self.long_factors))
        self._require("long_factors", whole, "above 0 and finite, as short_factors")
        self._require("query_growth", 0 <= self.query_growth < float("inf"), "at least 0")
        if self.query_growth and self.original_length is None:
            raise ConfigError(
                f"{self._prefix}query_growth={self.query_growth}: needs original_length, the "
                "context of the original training."
            )

    @property
    def by_length(self) -> bool:
        """Whether angles depend on the length of the call."""
        longer = self.kind == "longrope" and self.short_factors != self.long_factors
        return self.kind == "dynamic" or longer


QueryKeyNorm = Literal["none", "head", "all"]
"""What the norms of queries and keys take the mean square of."""
RopeUse = Literal["global", "local", "none"]
"""Which rotary angles a layer has: those of `rope_base` and `rope_scaling`, those of
`local_rope_base`, or none."""


@dataclass(frozen=True, kw_only=True)
class LlamaOptions(Options):
    """Softmax attention with rotary positions, or without."""

    softmax = True
    of_stem = frozenset({"embedding_scale"})
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
    full_layers: tuple[int, ...] = field(default=(), metadata=LATER)
    """Layers, counted from 0, whose queries see all keys although there is a `window`."""
    rope_share: float = field(default=1.0, metadata=LATER)
    """Share of a head's channels that rotate. 0: none (NoPE), for hybrids, whose recurrent layers
    know the order of tokens."""
    rope_free_layers: tuple[int, ...] = field(default=(), metadata=LATER)
    """Layers, counted from 0, without rotary positions."""
    local_rope_base: float | None = field(default=None, metadata=LATER)
    """Base of the rotary frequencies in layers with a window, which are then not stretched. None:
    as in the others."""
    qk_norm: QueryKeyNorm = field(default="none", metadata=LATER)
    """Norms of queries and keys before the rotation: over each head's channels (`head`), or over
    those of all heads (`all`)."""
    score_scale: float | None = field(default=None, metadata=LATER)
    """Factor on the products of queries and keys. None: 1 / sqrt(head dimension)."""
    score_cap: float | None = field(default=None, metadata=LATER)
    """Scores s of softmax attention become c tanh(s / c) with c this number. None: they stay."""
    embedding_scale: float = field(default=1.0, metadata=LATER)
    """Factor on the embedded tokens, rounded to their dtype."""

    def _validate(self) -> None:
        for name in ("kv_heads", "head_size", "window"):
            value = getattr(self, name)
            self._require(name, value is None or value >= 1, "a positive whole number, or None")
        for name in ("rope_base", "embedding_scale"):
            self._require(name, 0 < getattr(self, name) < float("inf"), "above 0 and finite")
        for name in ("local_rope_base", "score_scale", "score_cap"):
            value = getattr(self, name)
            fits = value is None or 0 < value < float("inf")
            self._require(name, fits, "above 0 and finite, or None")
        self._require("rope_share", 0 <= self.rope_share <= 1, "between 0 and 1")
        for name in ("full_layers", "rope_free_layers"):
            layers = list(getattr(self, name))
            ordered = layers == sorted(set(layers)) and all(layer >= 0 for layer in layers)
            self._require(name, ordered, "layer indices in increasing order")
        if self.window is None and (self.full_layers or self.local_rope_base is not None):
            name = "full_layers" if self.full_layers else "local_rope_base"
            self._require(name, False, "left out without a window")

    def check(self, model: ModelConfig, where: str = Options._prefix) -> None:
        if model.heads % self.key_value_heads(model.heads):
            raise ConfigError(
                f"{where}kv_heads={self.kv_heads} does not divide model.heads={model.heads}; every "
                "key-value head must serve equally many query heads."
            )
        if model.head_dim % 2:
            raise ConfigError(
                f"model.dim={model.dim} with model.heads={model.heads} and {where}head_size="
                f"{self.head_size} gives head dimension {model.head_dim}; rotary embeddings need "
                "an even one."
            )
        turning = self.rotated(model.head_dim)
        if turning % 2 or (self.rope_share > 0 and not turning):
            raise ConfigError(
                f"{where}rope_share={self.rope_share} of {model.head_dim} channels: channels "
                "rotate in pairs; choose a share that is an even number of them."
            )
        scaling = self.rope_scaling
        if scaling is not None and scaling.kind == "dynamic" and turning <= 2:
            raise ConfigError(
                f"{where}rope_scaling.kind='dynamic': needs more than the {turning} channels of a "
                "head that rotate here."
            )
        if scaling is not None and scaling.kind == "longrope":
            for name in ("short_factors", "long_factors"):
                if len(getattr(scaling, name)) != self.rotated(model.head_dim) // 2:
                    raise ConfigError(
                        f"{where}rope_scaling.{name}: has {len(getattr(scaling, name))} values; "
                        f"{self.rotated(model.head_dim) // 2} channel pairs rotate."
                    )
        for name in ("full_layers", "rope_free_layers"):
            layers = getattr(self, name)
            if layers and layers[-1] >= model.layers:
                raise ConfigError(f"{where}{name}={layers}: the last layer is {model.layers - 1}.")

    def head_dim(self, dim: int, heads: int) -> int:
        return super().head_dim(dim, heads) if self.head_size is None else self.head_size

    def widened(self, factor: int) -> LlamaOptions:
        return replace(self, kv_heads=None if self.kv_heads is None else factor * self.kv_heads)

    def key_value_heads(self, heads: int) -> int:
        """Key and value heads with the default resolved."""
        return heads if self.kv_heads is None else self.kv_heads

    def rotated(self, head_dim: int) -> int:
        """Channels of a head that rotate."""
        return int(head_dim * self.rope_share)

    def window_of(self, layer: int) -> int | None:
        """Keys that a query of a layer sees, itself included; None: all."""
        return None if layer in self.full_layers else self.window

    def rope_of(self, layer: int) -> RopeUse:
        """Which rotary angles a layer has."""
        if self.rope_share == 0 or layer in self.rope_free_layers:
            return "none"
        local = self.local_rope_base is not None and self.window_of(layer) is not None
        return "local" if local else "global"

    def queries_factor(self, head_dim: int) -> float:
        """Factor on queries that makes scores of 1 / sqrt(head size) those of `score_scale`."""
        return 1.0 if self.score_scale is None else self.score_scale * head_dim**0.5

    @property
    def plain(self) -> bool:
        """Whether attention has none of the options that came with imported families."""
        own = [f for f in fields(self) if f.metadata.get("later")]
        return all(getattr(self, f.name) == f.default for f in own)


@dataclass(frozen=True, kw_only=True)
class LlamaBased(Options):
    """Options of an architecture with a LLaMA's projections and another attention."""

    of_stem = frozenset({"llama.embedding_scale"})
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
    return any(scaling is not None and scaling.by_length for scaling in scalings)


def angles(model: ModelConfig) -> Hashable:
    """What the rotary angles of a model depend on; models that are equal in this share them."""
    options = replace(llama_options(model), kv_heads=None, head_size=None)
    if options.local_rope_base is None:  # no layer's angles go by its window
        options = replace(options, window=None, full_layers=())
    return options, model.head_dim


def key_value_heads(model: ModelConfig) -> int:
    """Key and value heads of a LLaMA or of a model based on one; any other has one a head."""
    if isinstance(model.options, LlamaOptions | LlamaBased):
        return llama_options(model).key_value_heads(model.heads)
    return model.heads


def projections(model: ModelConfig) -> int:
    """Weights of the projections to q, k, v and from the heads' outputs, in one layer."""
    heads = 2 * (model.heads + key_value_heads(model))
    return model.dim * heads * model.head_dim


def kept_parameters(model: ModelConfig) -> dict[str, int]:
    """Parameters of one layer's attention by group: projections with biases, norms of queries and
    keys."""
    options, size = llama_options(model), model.head_dim
    bias = options.qkv_bias * (model.heads + 2 * key_value_heads(model)) * size
    normed = {"none": 0, "head": 2, "all": model.heads + key_value_heads(model)}
    return {
        "token_mixer": projections(model) + bias + options.out_bias * model.dim,
        "norm": normed[options.qk_norm] * size,
    }


def counted(model: ModelConfig, kept: Kept) -> Kept | None:
    """What a layer keeps for its backward pass, where its parts are those it was counted for."""
    return kept if llama_options(model).plain and model.plain_blocks else None


def softmax(model: ModelConfig, layer: int) -> Softmax:
    """Keys and values of one layer of softmax attention."""
    window = llama_options(model).window_of(layer)

    def seen(position: int) -> int:
        return position if window is None else min(position, window)

    def mean(length: int) -> float:
        w = seen(length)
        return (w * (w + 1) / 2 + (length - w) * w) / length

    return Softmax(
        query_width=model.heads * model.head_dim,
        key_width=key_value_heads(model) * model.head_dim,
        seen=seen,
        mean=mean,
        held=seen,
    )


def costs(model: ModelConfig, layer: int) -> LayerCosts:
    """One layer of softmax attention; also of a model based on LLaMA that keeps it there."""
    d = model.dim

    def paper(length: int) -> Mapping[str, float]:
        return {"attention": 12.0 * length * d, "vector": 20.0 * d}

    return LayerCosts(
        parameters=kept_parameters(model),
        flops={"projections": 2.0 * projections(model)},
        softmax=softmax(model, layer),
        kept=counted(
            model, Kept(wide=10.0 * d, narrow=6.0 * d, states=model.heads, products=5 * d)
        ),
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

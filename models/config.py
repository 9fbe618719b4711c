"""Model configurations: one frozen dataclass, the paper's sizes, and a rule for toy rungs.

Sizes follow Table 7 of *Scaling Laws for Linear Complexity Language Models* (arXiv 2406.16690).
Two of its printed cells are not what its own parameter and FLOP columns count, and the counted
values are used here: every head has dimension 128, so 70M, 160M and 1B have 4, 6 and 12 heads
(printed: 8, 8, 16 in Table 2), and the GLU width at 1B is 4096 (printed: 5632).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, Literal, TypeVar

from linscale import layer_groups
from models import flat, layer_pattern, model_json
from models.architecture import Architecture, Options, file_of, find
from models.errors import ConfigError
from models.fields import LATER, Part, build, check, unknown_name

Arch = str
"""Name of an architecture: built in, or a module of your own (`models.architecture.find`)."""
ARCHS: tuple[Arch, ...] = ("llama", "tnl", "hgrn2", "cosformer2")
"""The architectures of the paper."""

PAPER_VOCAB = 100_280
"""Vocabulary of every run in the paper (cl100k_base plus special tokens, padded)."""

MOST_LAYERS = 10_000
"""Costs are summed layer by layer."""
MOST_WIDTH = 10**9
"""Rows and columns of a matrix."""

Activation = Literal["silu", "none", "gelu", "gelu_tanh", "relu"]
"""What the gate of a channel mixer may pass through."""
NormPlaces = Literal["pre", "post", "both"]
"""Where the norms of a block may stand."""

OptionsT = TypeVar("OptionsT", bound=Options)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Part):
    """One language model: a stack of (token mixer, channel mixer) blocks with residuals.

    Raises:
        ConfigError: a value is out of range or two values contradict each other.
    """

    arch: Arch
    """Token mixer: softmax (`llama`), per-head decay (`tnl`), per-channel data-dependent decay
    (`hgrn2`), no decay (`cosformer2`), gated linear attention (`gla`), Mamba-2's (`mamba2`), the
    delta rule (`gated_deltanet`, `kda`), a linearized LLaMA's (`supra`, `lolcats`), or one of your
    own: the name of a module that defines `ARCHITECTURE`, such as `my_package.gla`."""
    vocab_size: int
    """Rows of the embedding table."""
    dim: int
    """Width d of the residual stream."""
    layers: int
    """Number of blocks l."""
    heads: int
    """Heads h; the head dimension is dim / heads unless an option says otherwise."""
    glu_dim: int
    """Hidden width g of the channel mixer (three d x g matrices)."""
    tie_embeddings: bool = True
    """Share the embedding with the output projection (the paper does)."""
    norm_eps: float = 1e-6
    """Added to the mean square inside every norm."""
    init_std: float | None = None
    """Standard deviation of every weight matrix. None: 0.02 at all widths (the paper does not
    state its initialisation; the authors' released configurations have 0.02)."""
    glu_bias: bool = field(default=False, metadata=LATER)
    """Biases of the channel mixer."""
    glu_activation: Activation | None = field(default=None, metadata=LATER)
    """Activation of the channel mixer's gate (`gelu_tanh`: GELU by its tanh formula). None: that
    of the architecture, SiLU for `llama` and its linearized forms, none for the other linear
    models of the paper."""
    norms: NormPlaces = field(default="pre", metadata=LATER)
    """Where a block norms: what each mixer reads (`pre`), what each mixer returns, before it is
    added (`post`), or both."""
    norm_offset: bool = field(default=False, metadata=LATER)
    """Norms multiply by one plus their weights, which start at zero."""
    residual_scale: float = field(default=1.0, metadata=LATER)
    """Factor on what each mixer adds to the residual stream."""
    logit_scale: float = field(default=1.0, metadata=LATER)
    """Factor on the logits."""
    logit_cap: float | None = field(default=None, metadata=LATER)
    """Logits z become c tanh(z / c) with c this number (after `logit_scale`). None: they stay."""
    mup_base_dim: int | None = field(default=None, metadata=LATER)
    """Width whose learning rate, initial spread and weight decay are given; at other widths they
    follow by muP (`models.width`). None: they are used as they are."""
    mixers: str | tuple[str, ...] | None = field(default=None, metadata=LATER)
    """Token mixers of the layers where they are not all those of `arch`: a pattern that is repeated
    over the depth, such as `hgrn2*3+llama`, or a list (`models.layer_pattern`). Norm, channel
    mixer and stem stay those of `arch`. Kept as one text; None where it names `arch` alone."""
    options: Options = field(default=Options())
    """Options of the architecture's own (`models.architectures`). `Options()`: its defaults."""

    _prefix = "model."

    def __post_init__(self) -> None:
        check(str, self.arch, "model.arch")
        kind = self.architecture.options
        if type(self.options) is Options:
            object.__setattr__(self, "options", kind())
        super().__post_init__()
        if self.mixers is not None:
            self._set_mixers(self.mixers)

    def _validate(self) -> None:
        for name in ("vocab_size", "dim", "layers", "heads", "glu_dim"):
            most = MOST_LAYERS if name == "layers" else MOST_WIDTH
            within = 1 <= getattr(self, name) <= most
            self._require(name, within, f"a whole number from 1 to {most:,}")
        kind = self.architecture.options
        if type(self.options) is not kind:
            raise ConfigError(
                f"model.options={self.options!r} with model.arch={self.arch!r}: must be "
                f"{kind.__name__}, or left out."
            )
        self.options.head_dim(self.dim, self.heads)
        self.options.check(self)
        base = self.mup_base_dim
        self._require("mup_base_dim", base is None or base >= 1, "at least 1, or None")
        self._require("norm_eps", 0 < self.norm_eps < math.inf, "above 0 and finite")
        self._require("init_std", 0 <= self.std < math.inf, "at least 0 and finite, or None")
        for name in ("residual_scale", "logit_scale"):
            self._require(name, 0 < getattr(self, name) < math.inf, "above 0 and finite")
        cap = self.logit_cap
        self._require("logit_cap", cap is None or 0 < cap < math.inf, "above 0 and finite, or None")
        if self.norm_offset and not self.architecture.weighted_norm:
            raise ConfigError(
                f"model.norm_offset=True with model.arch={self.arch!r}: its norms have no weights; "
                "leave it out."
            )

    def _set_mixers(self, pattern: str | tuple[str, ...]) -> None:
        """Put the one text of a pattern in its place, and check that its mixers fit the model."""
        each = layer_pattern.read(pattern, self.arch, self.options)
        first, text = each[0], layer_pattern.write(each, self.arch, self.options)
        if len(each) == 1 and first.arch == self.arch:
            object.__setattr__(self, "options", first.options)
            object.__setattr__(self, "mixers", None)
            self._validate()
            return
        if len(each) > self.layers:
            raise ConfigError(
                f"model.mixers={text!r} names {len(each)} layers with model.layers={self.layers}; "
                "take more layers, or a pattern that fits into them."
            )
        object.__setattr__(self, "mixers", text)
        for mixer in dict.fromkeys(each):
            start = layer_pattern.start_of(mixer.arch, self.arch, self.options)
            for name in layer_pattern.changes(start, mixer.options).keys() & mixer.options.of_stem:
                raise ConfigError(
                    f"model.mixers={text!r}: {name} acts on the embedded tokens, which belong to "
                    f"the base architecture alone; set model.options.{name}."
                )
            try:
                self.with_mixer(mixer.arch, mixer.options)
            except ConfigError as error:
                text = str(error).replace("model.options.", f"model.mixers.{mixer.arch}.")
                raise ConfigError(text) from None

    def with_mixer(self, arch: Arch, options: Options) -> ModelConfig:
        """The model with mixers of one architecture in all layers, and this one's activation."""
        return replace(
            self,
            arch=arch,
            options=options,
            mixers=None,
            glu_activation=self.gate_activation,
            norm_offset=self.norm_offset and find(arch).weighted_norm,
        )

    @property
    def architecture(self) -> Architecture:
        """What kind of model this is; of a hybrid, what its norms and channel mixers are of."""
        return find(self.arch)

    @property
    def group(self) -> str:
        """The name that models of its kind share in tables and figures."""
        assert not isinstance(self.mixers, tuple)
        return layer_groups.group(self.arch, self.mixers)

    @property
    def label(self) -> str:
        """The same in print."""
        labels = {arch: find(arch).label for arch in self.archs}
        words = re.split(r"([\w.]+)(?=[*+( ]|$)", self.group) if self.mixers else [self.arch]
        return "".join(labels.get(word, word) for word in words)

    @property
    def archs(self) -> tuple[Arch, ...]:
        """The base architecture, and those of all layers."""
        return tuple(dict.fromkeys((self.arch, *(c.arch for c in layer_configs(self)))))

    @property
    def whole_sequences(self) -> tuple[Arch, ...]:
        """The architectures in it that cannot share out a sequence to several devices."""
        return tuple(arch for arch in self.archs if not find(arch).splits_sequences)

    def options_as(self, kind: type[OptionsT]) -> OptionsT:
        """The options, of a known type.

        Raises:
            ConfigError: they are of another architecture.
        """
        if not isinstance(self.options, kind):
            raise ConfigError(f"model.arch={self.arch!r}: has no {kind.__name__}.")
        return self.options

    @property
    def softmax_layers(self) -> tuple[int, ...]:
        """Layers with softmax attention over all keys (or LLaMA's window)."""
        each = enumerate(layer_configs(self))
        return tuple(layer for layer, config in each if config.options.softmax)

    @property
    def head_dim(self) -> int:
        """Dimension of one head: d / h unless an option says otherwise."""
        return self.options.head_dim(self.dim, self.heads)

    @property
    def std(self) -> float:
        """Initialisation standard deviation with the default resolved."""
        return 0.02 if self.init_std is None else self.init_std

    @property
    def gate_activation(self) -> Activation:
        """Activation of the channel mixer's gate, with the default resolved."""
        chosen = self.glu_activation
        return self.architecture.activation if chosen is None else chosen

    @property
    def plain_blocks(self) -> bool:
        """Whether blocks are the paper's: one norm before each mixer, which is added as it is."""
        return self.norms == "pre" and self.residual_scale == 1

    def replace(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed, validated again.

        With another `arch` and no `options`, those options stay that both have.
        """
        names = {f.name for f in fields(self)}
        if unknown := sorted(set(changes) - names):
            raise flat.explain_move(f"model.{unknown[0]}", self.arch) or ConfigError(
                f"model.{unknown[0]}: no such field."
            )
        if changes.get("arch", self.arch) != self.arch and "options" not in changes:
            moved = model_json.carried(self.to_json(), changes["arch"])
            kind = find(changes["arch"]).options
            changes["options"] = build(kind, moved["options"], "model.options.")
            changes.setdefault("mixers", moved.get("mixers"))
        return replace(self, **changes)

    def with_options(self, **changes: Any) -> ModelConfig:
        """A copy with some options changed, validated again."""
        names = {f.name for f in fields(self.options)}
        if unknown := sorted(set(changes) - names):
            raise unknown_name(f"model.options.{unknown[0]}", [f"model.options.{n}" for n in names])
        return replace(self, options=replace(self.options, **changes))

    @classmethod
    def field_types(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The type of `options`, which depends on `arch` (see `models.fields.hints_for`)."""
        arch = values.get("arch")
        return {"options": find(arch).options} if isinstance(arch, str) else {}

    def to_json(self) -> dict[str, Any]:
        """Every value as plain JSON types, and for an architecture of your own its file."""
        values = json.loads(json.dumps(asdict(self)))
        own = {arch: file for arch in self.archs if (file := file_of(arch)) is not None}
        file = own.pop(self.arch, None)
        values |= {} if file is None else {"file": file}
        return values | {"files": own} if own else values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The configuration of `to_json`, or of a record from before options nested.

        Raises:
            ConfigError: an unknown field, a wrong type or a value that cannot work.
        """
        return build(cls, model_json.nested(values), "model.")


@lru_cache(maxsize=512)
def layer_configs(config: ModelConfig) -> tuple[ModelConfig, ...]:
    """What each layer's token mixer is built of: the model as if all layers were like this one."""
    each = (layer_pattern.Mixer(config.arch, config.options),)
    if config.mixers is not None:
        each = layer_pattern.read(config.mixers, config.arch, config.options)
    made: dict[layer_pattern.Mixer, ModelConfig] = {}
    found: list[ModelConfig] = []
    for layer in range(config.layers):
        mixer = each[layer % len(each)]
        if (other := mixer.options.instead(layer)) is not None:
            mixer = layer_pattern.Mixer(*other)
        if mixer not in made:
            own = mixer == layer_pattern.Mixer(config.arch, config.options)
            made[mixer] = (
                config
                if own and config.mixers is None
                else config.with_mixer(mixer.arch, mixer.options)
            )
        found.append(made[mixer])
    return tuple(found)


# (layers, dim, heads, glu_dim).
PAPER_SHAPES: dict[str, tuple[int, int, int, int]] = {
    "70M": (6, 512, 4, 1536),
    "160M": (12, 768, 6, 2048),
    "410M": (26, 1024, 8, 2816),
    "1B": (32, 1536, 12, 4096),
    "3B": (35, 2560, 20, 6912),
    "7B": (32, 4096, 32, 11008),
}
PAPER_DEPTHS: dict[tuple[Arch, str], int] = {("tnl", "410M"): 25, ("cosformer2", "410M"): 25}
"""Layers where they are not those of `PAPER_SHAPES`."""
PAPER_SIZES: tuple[str, ...] = tuple(PAPER_SHAPES)

# The four shapes of the 1B aspect-ratio study (Table 5); glu_dim is 8/3 d, rounded up to 256 as in
# the six sizes (2048: the printed g = 5632 of Table 7 belongs to this shape).
ASPECT_SHAPES: dict[str, tuple[int, int, int, int]] = {
    "1B-1536x32": (32, 1536, 12, 4096),
    "1B-1792x24": (24, 1792, 14, 4864),
    "1B-2048x18": (18, 2048, 16, 5632),
    "1B-3072x8": (8, 3072, 24, 8192),
}


def paper_config(arch: Arch, size: str, vocab_size: int = PAPER_VOCAB) -> ModelConfig:
    """The configuration of one of the paper's models.

    Args:
        arch: architecture.
        size: one of `PAPER_SIZES`, or of the 1B shape variants in `ASPECT_SHAPES`.
        vocab_size: rows of the embedding table.
    """
    shapes = PAPER_SHAPES | ASPECT_SHAPES
    if size not in shapes:
        raise ConfigError(f"size={size!r}: choose one of {', '.join(shapes)}.")
    layers, dim, heads, glu_dim = shapes[size]
    layers = PAPER_DEPTHS.get((arch, size), layers)
    return ModelConfig(
        arch=arch, vocab_size=vocab_size, dim=dim, layers=layers, heads=heads, glu_dim=glu_dim
    )


def toy_config(
    arch: Arch,
    dim: int,
    *,
    vocab_size: int,
    layers: int | None = None,
    head_dim: int | None = None,
) -> ModelConfig:
    """A rung below the paper's ladder that keeps its proportions, for a CPU or a first test.

    Depth grows with width (about dim / 24, at least 2) and the GLU width is 8/3 d, rounded up to a
    multiple of 16. Heads have 16 channels, and there are at least 4 of them, as in the paper's
    smallest model: TNL's decays are spread over the heads, and two heads leave none that forgets
    quickly. Matrices start at 0.02 sqrt(1024 / d): the paper's spread would hardly move a model of
    width 32 in its first million tokens.

    Args:
        arch: architecture.
        dim: width d.
        vocab_size: rows of the embedding table.
        layers: depth, where the rule is not wanted.
        head_dim: channels of a head, where the rule is not wanted.

    Raises:
        ConfigError: heads cannot divide the width.
    """
    if head_dim is None:
        head_dim = min(16, dim // 4) if dim >= 8 else dim
    if dim < 1 or dim % head_dim:
        raise ConfigError(f"dim={dim}: must be a positive multiple of head_dim={head_dim}.")
    return ModelConfig(
        arch=arch,
        vocab_size=vocab_size,
        dim=dim,
        layers=max(2, round(dim / 24)) if layers is None else layers,
        heads=dim // head_dim,
        glu_dim=-(-dim * 8 // 3 // 16) * 16,
        init_std=round(0.02 * math.sqrt(1024 / dim), 6),
    )

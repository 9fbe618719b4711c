"""Model configurations: one frozen dataclass, the paper's sizes, and a rule for toy rungs.

Sizes follow Table 7 of *Scaling Laws for Linear Complexity Language Models* (arXiv 2406.16690).
Two of its printed cells are not what its own parameter and FLOP columns count, and the counted
values are used here: every head has dimension 128, so 70M, 160M and 1B have 4, 6 and 12 heads
(printed: 8, 8, 16 in Table 2), and the GLU width at 1B is 4096 (printed: 5632).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Literal, get_args

from models.errors import ConfigError
from models.linearize.options import Linearized, LoLCATs, Supra

Arch = str
"""Name of an architecture: a key of `ARCH_NAMES` and the module that builds it."""
ARCHS: tuple[Arch, ...] = ("llama", "tnl", "hgrn2", "cosformer2")
"""The architectures of the paper."""
LINEARIZED: tuple[Arch, ...] = ("supra", "lolcats")
"""LLaMA with other attentions (`models.linearize`): they share its options."""
ARCH_NAMES: dict[Arch, str] = {
    "llama": "LLaMA",
    "tnl": "TNL",
    "hgrn2": "HGRN2",
    "cosformer2": "cosFormer2",
    "supra": "SUPRA",
    "lolcats": "LoLCATs",
}
"""Every architecture with its name in print. A new one is `models/NAME.py` and one line here."""

PAPER_VOCAB = 100_280
"""Vocabulary of every run in the paper (cl100k_base plus special tokens, padded)."""


LATER = {"later": True}
"""Metadata of fields that came after the first runs were named. Such a field enters the identity of
a run only where it differs from its default: a new option renames no run that does without it."""


SOFTMAX_ONLY = (
    "kv_heads",
    "head_size",
    "rope_scaling",
    "window",
    "qkv_bias",
    "out_bias",
    "glu_bias",
)
"""Fields of `ModelConfig` that only `llama` and its linearized forms have."""

RopeKind = Literal["linear", "dynamic", "yarn", "llama3"]


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
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

    def __post_init__(self) -> None:
        where = "model.rope_scaling."
        if self.kind not in get_args(RopeKind):
            choices = ", ".join(get_args(RopeKind))
            raise ConfigError(f"{where}kind={self.kind!r}: choose one of {choices}.")
        if not self.factor >= 1:
            raise ConfigError(f"{where}factor={self.factor}: must be at least 1.")
        if self.kind != "linear" and (self.original_length is None or self.original_length < 1):
            raise ConfigError(
                f"{where}original_length={self.original_length}: {self.kind} scaling needs the "
                "context of the original training, a positive number of tokens."
            )
        if self.kind == "llama3" and not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ConfigError(
                f"{where}low_freq_factor={self.low_freq_factor}: must be above 0 and below "
                f"high_freq_factor={self.high_freq_factor}."
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One language model: a pre-norm stack of (token mixer, channel mixer) blocks.

    Raises:
        ConfigError: a value is out of range or two values contradict each other.
    """

    arch: Arch
    """Token mixer: softmax (`llama`), per-head decay (`tnl`), per-channel data-dependent decay
    (`hgrn2`), no decay (`cosformer2`), a linearized LLaMA's (`supra`, `lolcats`), or one of your
    own: any key of `ARCH_NAMES`."""
    vocab_size: int
    """Rows of the embedding table."""
    dim: int
    """Width d of the residual stream."""
    layers: int
    """Number of blocks l."""
    heads: int
    """Heads h; the head dimension is dim / heads unless `head_size` says otherwise."""
    glu_dim: int
    """Hidden width g of the channel mixer (three d x g matrices)."""
    tie_embeddings: bool = True
    """Share the embedding with the output projection (the paper does)."""
    norm_eps: float = 1e-6
    """Added to the mean square inside every norm."""
    rope_base: float = 10_000.0
    """Base of the rotary frequencies (`llama`) and of the LRPE angles (`tnl`, `cosformer2`)."""
    gate_rank: int | None = None
    """Rank t of the low-rank output gate (`tnl`, `cosformer2`). None: d / h, as in the paper."""
    decay_slopes: Literal["alibi", "linear", "retnet", "none"] = "alibi"
    """Decay per head of `tnl` and `supra`: `alibi` as in the authors' code (powers of two times a
    layer factor 1 - i/(l-1) + 1e-5); `linear`, eq. 10 of arXiv 2405.17381: exp(-(8h/H)(1 - i/l));
    `retnet`, arXiv 2307.08621: 1 - 2^(-5-h) in all layers; or none."""
    learn_decay: bool = False
    """Train the decay slopes (the authors found that this diverges; kept for ablations)."""
    tnl_lrpe: Literal["none", "first", "all"] = "none"
    """Layers of TNL that carry LRPE. 2406.16690 eq. 9 has none; the authors' released models have
    it in the first layer only."""
    lrpe_learned: bool = True
    """Train the LRPE angles (the authors' code does; the paper does not say)."""
    tpe: bool = True
    """cosFormer2's Toeplitz position encoding after the embedding."""
    init_std: float | None = None
    """Standard deviation of every weight matrix. None: 0.02 at all widths (the paper does not
    state its initialisation; the authors' released configurations have 0.02)."""

    kv_heads: int | None = field(default=None, metadata=LATER)
    """Key and value heads of `llama`, each shared by heads / kv_heads query heads (grouped-query
    attention, arXiv 2305.13245). None: as many as heads."""
    head_size: int | None = field(default=None, metadata=LATER)
    """Head dimension of `llama` where it is not dim / heads. None: dim / heads."""
    rope_scaling: RopeScaling | None = field(default=None, metadata=LATER)
    """Stretching of `llama`'s rotary frequencies; None: none."""
    window: int | None = field(default=None, metadata=LATER)
    """Keys that a query of `llama` sees, itself included (sliding-window attention). None: all."""
    qkv_bias: bool = field(default=False, metadata=LATER)
    """Biases of `llama`'s query, key and value projections."""
    out_bias: bool = field(default=False, metadata=LATER)
    """Bias of `llama`'s attention output projection."""
    glu_bias: bool = field(default=False, metadata=LATER)
    """Biases of `llama`'s channel mixer."""
    glu_activation: Literal["silu", "none"] | None = field(default=None, metadata=LATER)
    """Activation of the channel mixer's gate. None: that of the paper, SiLU for `llama` and its
    linearized forms, none for the other linear models."""
    mup_base_dim: int | None = field(default=None, metadata=LATER)
    """Width whose learning rate, initial spread and weight decay are given; at other widths they
    follow by muP (`models.width`). None: they are used as they are."""
    supra: Supra | None = field(default=None, metadata=LATER)
    """Attention of `supra`; None becomes the published options there."""
    lolcats: LoLCATs | None = field(default=None, metadata=LATER)
    """Attention of `lolcats`; None becomes the published options there."""

    def __post_init__(self) -> None:
        for name, choices in (
            ("arch", tuple(ARCH_NAMES)),
            ("decay_slopes", ("alibi", "linear", "retnet", "none")),
            ("tnl_lrpe", ("none", "first", "all")),
            ("glu_activation", ("silu", "none", None)),
        ):
            value = getattr(self, name)
            if value not in choices:
                names = ", ".join(str(choice).lower() for choice in choices)
                raise ConfigError(f"model.{name}={value!r}: choose one of {names}.")
        for name in ("vocab_size", "dim", "layers", "heads", "glu_dim"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"model.{name}={value!r}: must be a positive whole number.")
        self._check_softmax_options()
        if self.head_size is None and self.dim % self.heads:
            divisors = [h for h in range(1, self.dim + 1) if self.dim % h == 0]
            near = min(divisors, key=lambda h: (abs(h - self.heads), h))
            raise ConfigError(
                f"model.heads={self.heads} does not divide model.dim={self.dim}; "
                f"the nearest number that does is {near}."
            )
        if self._has_rotary and self.head_dim % 2:
            raise ConfigError(
                f"model.dim={self.dim} with model.heads={self.heads} and "
                f"model.head_size={self.head_size} gives head dimension {self.head_dim}; rotary "
                "embeddings need an even one."
            )
        if self.learn_decay and self.decay_slopes == "none":
            raise ConfigError(
                "model.learn_decay=True with model.decay_slopes='none': there is no slope to "
                "train; choose alibi or linear as the start."
            )
        self._check_linearized()
        if self.gate_rank is not None and self.gate_rank < 1:
            raise ConfigError(f"model.gate_rank={self.gate_rank}: must be at least 1, or None.")
        if self.mup_base_dim is not None and self.mup_base_dim < 1:
            raise ConfigError(
                f"model.mup_base_dim={self.mup_base_dim}: must be at least 1, or None."
            )
        if not self.norm_eps > 0:
            raise ConfigError(f"model.norm_eps={self.norm_eps}: must be above 0.")

    def _check_softmax_options(self) -> None:
        """Fields that only `llama` and its linearized forms have, and their ranges."""
        for name in ("kv_heads", "head_size", "window"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or value < 1):
                raise ConfigError(
                    f"model.{name}={value!r}: must be a positive whole number, or None."
                )
        if self.heads % self.key_value_heads:
            raise ConfigError(
                f"model.kv_heads={self.kv_heads} does not divide model.heads={self.heads}; every "
                "key-value head must serve equally many query heads."
            )
        if not self._has_rotary:
            for name in SOFTMAX_ONLY:
                if (value := getattr(self, name)) not in (None, False):
                    raise ConfigError(
                        f"model.{name}={value!r} with model.arch={self.arch!r}: only llama has "
                        "this option; leave it out."
                    )

    def _check_linearized(self) -> None:
        """The part of the method is there, and no other; its values fit the model."""
        for name, part in (("supra", Supra), ("lolcats", LoLCATs)):
            if self.arch == name and getattr(self, name) is None:
                object.__setattr__(self, name, part())
            elif self.arch != name and getattr(self, name) is not None:
                raise ConfigError(
                    f"model.{name} with model.arch={self.arch!r}: only {name} has these options; "
                    "leave them out."
                )
        options = self.linearized
        if options is None:
            return
        if options.softmax_layers and options.softmax_layers[-1] >= self.layers:
            raise options.error("softmax_layers", f"the last layer is {self.layers - 1}.")
        if self.arch == "supra" and options.features(self.head_dim) != self.head_dim:
            raise options.error(
                "feature_map",
                f"it has {options.features(self.head_dim)} features and the head dimension is "
                f"{self.head_dim}; SUPRA rotates the features, so the two must be equal.",
            )

    @property
    def _has_rotary(self) -> bool:
        return self.arch == "llama" or self.arch in LINEARIZED

    @property
    def linearized(self) -> Linearized | None:
        """Options of a linearized LLaMA; None for the other architectures."""
        return self.supra if self.arch == "supra" else self.lolcats

    @property
    def softmax_layers(self) -> tuple[int, ...]:
        """Layers with softmax attention over all keys (or LLaMA's window)."""
        if self.linearized is not None:
            return self.linearized.softmax_layers
        return tuple(range(self.layers)) if self.arch == "llama" else ()

    @property
    def head_dim(self) -> int:
        """Dimension of one head: d / h unless `head_size` is set."""
        return self.dim // self.heads if self.head_size is None else self.head_size

    @property
    def key_value_heads(self) -> int:
        """Key and value heads with the default resolved."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def gate_dim(self) -> int:
        """Rank of the output gate with the default resolved."""
        return self.head_dim if self.gate_rank is None else self.gate_rank

    @property
    def std(self) -> float:
        """Initialisation standard deviation with the default resolved."""
        return 0.02 if self.init_std is None else self.init_std

    def replace(self, **changes: object) -> ModelConfig:
        """A copy with some fields changed, validated again."""
        names = {f.name for f in fields(self)}
        unknown = sorted(set(changes) - names)
        if unknown:
            raise ConfigError(f"model.{unknown[0]}: no such field.")
        return replace(self, **changes)  # pyright: ignore[reportArgumentType]


# (layers, dim, heads, glu_dim). TNL and cosFormer2 have 25 layers at 410M.
PAPER_SHAPES: dict[str, tuple[int, int, int, int]] = {
    "70M": (6, 512, 4, 1536),
    "160M": (12, 768, 6, 2048),
    "410M": (26, 1024, 8, 2816),
    "1B": (32, 1536, 12, 4096),
    "3B": (35, 2560, 20, 6912),
    "7B": (32, 4096, 32, 11008),
}
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
    if size == "410M" and arch in ("tnl", "cosformer2"):
        layers = 25
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

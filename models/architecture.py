"""What an architecture is, and how it is found by name. Free of torch.

    ARCHITECTURE = Architecture(label="GLA", mixer=GatedLinearAttention, norm=RMSNorm)

An `Architecture` says everything that the suite asks about one kind of language model: the parts
that a model is built of, the options it has, what it costs, whether its sequences can be split over
devices, how it is drawn. `find(name)` gives the one of a name: built in (`BUILT_IN`, one module of
`models.architectures` each), or the `ARCHITECTURE` of a module of the user's own, `my_gla` or
`my_package.gla`, which is imported from the folder of the experiment file, from PYTHONPATH or from
what is installed.

The built-in modules name their torch parts as text, "module:Class", so that plans and accounting
load no torch; `part` resolves such a text when a model is built. A module of your own can give the
classes themselves.

Costs are those of one layer's token mixer, and of the stem: whatever sums them up goes over the
layers, and knows no architecture.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from linscale.code_search import search_also, searched
from linscale.texts import clean
from models.errors import ConfigError
from models.fields import Part, nearest_divisor

BUILT_IN: dict[str, str] = {
    name: f"models.architectures.{name}"
    for name in (
        "llama", "tnl", "hgrn2", "cosformer2", "gla", "mamba2", "gated_deltanet", "kda",
        "supra", "lolcats",
    )
}  # fmt: skip
"""Architectures of this package: name -> module with an `ARCHITECTURE`."""

Component = str | Callable[..., Any]
"""A class or function, or the text "module:name" of one."""


@dataclass(frozen=True, kw_only=True)
class Options(Part):
    """The options of an architecture; this base, and any architecture without options, has none.

    Subclass it as a frozen dataclass with a default for every field. Fields are set as
    `model.options.NAME`, and their types are checked.
    """

    _prefix = "model.options."
    softmax = False
    """Whether its mixer is softmax attention over all keys (or over LLaMA's window)."""
    of_stem = frozenset[str]()
    """Options that act on the embedded tokens: no word of a pattern can change them, since the base
    architecture's stem alone does that."""

    def check(self, model: Any, where: str = _prefix) -> None:
        """Rules that take in the rest of the model; the base has none.

        Args:
            model: the `ModelConfig`.
            where: prefix of the options' names in messages.

        Raises:
            ConfigError: model and options do not fit.
        """

    def head_dim(self, dim: int, heads: int) -> int:
        """Channels of a head: d / h.

        Raises:
            ConfigError: it is not a whole number.
        """
        if dim % heads:
            raise ConfigError(
                f"model.heads={heads} does not divide model.dim={dim}; "
                f"the nearest number that does is {nearest_divisor(dim, heads)}."
            )
        return dim // heads

    def instead(self, layer: int) -> tuple[str, Options] | None:
        """Architecture and options of the mixer that a layer has in the place of this one's; None:
        this one's."""
        return None

    def widened(self, factor: int) -> Options:
        """These options for a model with `factor` times as many heads; most are the same."""
        return self


@dataclass(frozen=True, kw_only=True)
class Softmax:
    """Keys and values that a layer reads by softmax attention."""

    query_width: int
    """Numbers of a token's queries: heads x head dimension."""
    key_width: int
    """Numbers of a token's keys, and of its values: key-value heads x head dimension."""
    seen: Callable[[int], int]
    """Keys that the query at a position (counted from 1) sees, itself included."""
    mean: Callable[[int], float]
    """Keys that a query sees on average in a sequence of a length."""
    held: Callable[[int], int]
    """Keys in the cache after so many tokens."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a layer's token mixer and the two norms keep for the backward pass, in numbers a token.

    Counted in tensors of `saved_tensors_hooks` on the eager model.
    """

    wide: float
    """float32 numbers without autocast."""
    narrow: float
    """The same under bf16 autocast, in bytes / 4 (some stay float32 there)."""
    gate: int = 0
    """Numbers in the compute dtype: inside a low-rank gate."""
    states: float = 0.0
    """float32 numbers: softmax's normaliser."""
    recurrent: float = 0.0
    """float32 numbers of a recurrent state, of which one is kept every `models.chunk_sizes.
    STATE_INTERVAL` tokens."""
    position: int = 0
    """float32 numbers for each position of a sequence, whatever the batch: angles."""
    products: int = 0
    """Results of matrix products and of the recurrence: what is kept where element-wise operations
    are computed again."""


@dataclass(frozen=True, kw_only=True)
class LayerCosts:
    """What the token mixer of one layer costs."""

    parameters: Mapping[str, int]
    """By group (`models.accounting.GROUPS`)."""
    flops: Mapping[str, float]
    """Forward FLOPs of a token by term, less those of state and softmax attention."""
    state: int = 0
    """Numbers of the recurrent state that a token updates and reads once: four FLOPs each."""
    spare: int = 0
    """Further numbers of the state."""
    softmax: Softmax | None = None
    """Keys and values beside the state, or instead of it."""
    kept: Kept | None = None
    """None: measured (`scaling.plan.kept`)."""
    paper_parameters: int = 0
    """`paper` convention: parameters of the layer beside the projections of d x d."""
    paper_flops: Callable[[int], Mapping[str, float]] | None = None
    """`paper` convention: training FLOPs of a token by term, given the sequence length, beside
    those of projections and channel mixer. None: the paper has no row for this layer, and the
    convention is the exact one without the head."""


@dataclass(frozen=True, kw_only=True)
class StemCosts:
    """What runs once a call before the blocks."""

    parameters: Mapping[str, int] = field(default_factory=dict[str, int])
    """By group."""
    flops: Mapping[str, float] = field(default_factory=dict[str, float])
    """Forward FLOPs of a token by term."""
    state: int = 0
    """Numbers of its state."""
    paper_parameters: int = 0
    """`paper` convention: its parameters."""


def no_stem(_: Any) -> StemCosts:
    """Costs of a stem without parameters."""
    return StemCosts()


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One kind of language model; a module defines one as `ARCHITECTURE`."""

    label: str
    """Its name in print."""
    mixer: Component
    """Builds the token mixer of one layer, a `models.layers.TokenMixer`, from (config, layer)."""
    norm: Component = "models.layers:RMSNorm"
    """Norm before each mixer and before the head, built from (dim, eps)."""
    activation: Literal["silu", "none"] = "none"
    """Activation of the channel mixer's gate branch; none: SGLU."""
    stem: Component = "models.layers:Stem"
    """Builds what runs once a call before the blocks, a `models.layers.Stem`, from (config)."""
    shares: Callable[..., Hashable] | None = None
    """For a stem that only prepares what its mixers get as `shared`, leaves x alone and carries no
    state: says from (config) what its work depends on. Such a stem stands in every hybrid with
    these mixers (`models.stems`), once for those to whom it gives the same. None: only models with
    this base architecture have the stem."""
    options: type[Options] = Options
    """Its options, `model.options`."""
    splits_sequences: bool = False
    """Whether consecutive parts of one sequence can be worked on by several devices
    (`parallel.sequence`): whether all that a token needs of earlier ones goes through the
    primitives of `models.kernels.api`. The mixer contract tests it."""
    costs: Callable[..., LayerCosts] | None = None
    """What a layer costs, from (config, layer). None: everything is measured on the built model
    (`models.measured`)."""
    stem_costs: Callable[..., StemCosts] = no_stem
    """What the stem costs, from (config); with `costs`."""
    weighted_norm: bool = True
    """Whether a norm has d weights; with `costs`."""
    starts_from: Literal["nothing", "itself", "attention", "surgery"] = "nothing"
    """How it takes over a transformer's weights: not at all; as they are; the projections of its
    attentions (`models.linearize.initialise`); or all of them, with new attentions
    (`models.linearize.surgery`)."""
    colour: str | None = None
    """In figures, such as `#0072B2`; None: a spare one."""
    marker: str | None = None
    """In figures, one of matplotlib's; None: a spare one."""


def part(component: Component) -> Callable[..., Any]:
    """The class or function that a component is or names."""
    if not isinstance(component, str):
        return component
    module, _, name = component.partition(":")
    return getattr(importlib.import_module(module), name)


def find(name: str) -> Architecture:
    """The architecture of a name.

    Args:
        name: one of `BUILT_IN`, or a module with an `ARCHITECTURE`.

    Raises:
        ConfigError: there is no such module (the message says where it was looked for), it cannot
            be imported, or it defines no architecture.
    """
    # Asked for some two hundred times for each run of a plan.
    known = getattr(sys.modules.get(BUILT_IN.get(name, name)), "ARCHITECTURE", None)
    if isinstance(known, Architecture):
        return known
    if not all(word.isidentifier() for word in name.split(".")):
        raise _unknown(name)
    try:
        module = importlib.import_module(BUILT_IN.get(name, name))
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise _unknown(name) from None
        raise ConfigError(
            f"model.arch={name!r}: importing the module failed with {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, "ARCHITECTURE", None)
    if not isinstance(found, Architecture):
        where = getattr(module, "__file__", None) or name
        raise ConfigError(
            f"model.arch={name!r}: {where} defines no ARCHITECTURE; add ARCHITECTURE = "
            "models.architecture.Architecture(...), or choose one of "
            f"{', '.join(BUILT_IN)}."
        )
    return found


def file_of(name: str) -> str | None:
    """The file of a user's own architecture; None for a built-in one."""
    if name in BUILT_IN:
        return None
    find(name)
    return getattr(sys.modules[name], "__file__", None)


def show_children(name: str) -> None:
    """Let processes that this one starts find an architecture where this one found it."""
    file = file_of(name)
    above = name.count(".") + (file is not None and Path(file).name == "__init__.py")
    if file is not None and above < len(Path(file).parents):
        search_also(Path(file).parents[above])


def find_recorded(name: str, file: str) -> Architecture:
    """The architecture that a record names.

    A record is data: that it names a file does not make the file's folder one whose code is run.

    Args:
        name: of the architecture.
        file: what the record says that it was imported from; for the message only.

    Raises:
        ConfigError: it is not found where this process searches, or cannot be imported.
    """
    try:
        return find(name)
    except ConfigError as error:
        if name in BUILT_IN or name in sys.modules:
            raise
        folder = clean(str(Path(file).parent))
        raise ConfigError(
            f"{error} The record says that it was {clean(file)!r}; if you trust that file, give "
            f"the command from {folder}, or put {folder} on PYTHONPATH."
        ) from error


def _unknown(name: str) -> ConfigError:
    near = difflib.get_close_matches(name, BUILT_IN, n=1)
    hint = f"did you mean {near[0]}?" if near else "no such architecture."
    paths = [*searched(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    looked = ", ".join(dict.fromkeys(paths)) or "the installed packages"
    return ConfigError(
        f"model.arch={name!r}: {hint} Choose one of {', '.join(BUILT_IN)}, or the name of a module "
        f"that defines ARCHITECTURE; looked for it in {looked}. Put its file beside the experiment "
        "file, or its folder on PYTHONPATH."
    )

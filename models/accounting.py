"""Parameters, FLOPs and state bytes as closed forms on a `ModelConfig`: no model is built.

Two conventions, never mixed silently:

`exact`
    Every matrix product of the model, two FLOPs a multiply-add, backward twice the forward.
    Softmax attention is causal: a query sees (n + 1) / 2 keys on average. Linear attention is
    counted in its recurrent form, 2 d_k d_v for the state update and 2 d_k d_v for the read per
    head and token, whatever algorithm a kernel uses. Element-wise work is not counted.
    This is what PyTorch's FlopCounterMode counts on the reference implementations: linear
    attention through `models.kernels.reference.recurrent_reference`, TPE's one-pole filter as an
    element-wise loop, softmax attention by one query at a time over the keys it sees. (On
    `scaled_dot_product_attention` the counter charges all n keys to every query, and the products
    inside custom operators it does not see.)
`paper`
    Table 1 of arXiv 2406.16690, for comparison with its laws: g = 8/3 d in the FLOPs whatever the
    real width, softmax over all n keys, chunks of d / h tokens in linear attention, no embedding
    and no head. All 24 FLOPs of its Table 7 follow to the printed digit.

    Grouped-query attention and sliding windows are not in that table, and change nothing here.
    Linearized LLaMAs are not in it either: their linear attention is counted as TNL's, on the
    features they have, plus feature maps and, for LoLCATs, softmax over the 2 w keys of a window.

Parameters in the `paper` convention are 4 l d^2 + 3 l d g with the real g (and the real width of
the projections, for LLaMA variants that the paper does not have), plus the terms of the
appendix: 2 l d t for the low-rank gates, l d for HGRN2's lower bounds, d^2 / h for cosFormer2's
TPE. The printed values of LLaMA contain 4 l d more and those of cosFormer2 7 l d more (vectors
that the paper does not itemise; the factors are read off Table 7). With them 23 of the 24 printed
parameter counts follow to the digit; cosFormer2 3B prints 2799.0 M where this gives 2799.3 M, and
no closed form found in l, d, h, g meets that cell together with the other five.

Everything is a sum over layers: what one layer's token mixer costs, its architecture says
(`models.architecture.LayerCosts`), in a hybrid each layer's own; what all share stands here. An
architecture that says nothing is counted by `models.measured`. Where the paper's table has no row
for a layer, the `paper` convention is the exact one without the head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Literal, TypedDict, TypeVar

from models import measured
from models.architecture import LayerCosts, Softmax, StemCosts
from models.config import ModelConfig, layer_configs
from models.stems import stem_parts

Number = TypeVar("Number", int, float)
Convention = Literal["exact", "paper"]
CONVENTIONS: tuple[Convention, ...] = ("exact", "paper")

SEQUENCE_LENGTH = 8192
"""Context of every run in the paper's Table 7."""
BATCH_SEQUENCES = 480
"""Sequences a step in the paper's Table 7."""

GROUPS = (
    "embedding",
    "head",  # 0 when tied
    "token_mixer",  # q, k, v, o projections
    "gate",  # low-rank output gate
    "channel_mixer",
    "norm",
    "position",  # LRPE angles, TPE
    "decay",  # lower bounds, slopes
    "feature_map",  # of linearized models, with LoLCATs' window factors
)
"""Groups of parameters."""


class Summary(TypedDict):
    """What a run record stores about its model (accounting.json)."""

    params: dict[str, int]
    n_total: int
    n_non_embedding: int
    n_paper: int
    flops_per_token: dict[str, dict[str, float]]
    sequence_length: int
    architecture: dict[str, str | None]
    """How models of its group are named and drawn."""


@lru_cache(maxsize=256)
def layer_costs(config: ModelConfig) -> tuple[LayerCosts, ...]:
    """What the token mixer of every layer costs."""
    each = enumerate(layer_configs(config))
    return tuple((own.architecture.costs or measured.layer_costs)(own, i) for i, own in each)


@lru_cache(maxsize=256)
def stem_costs(config: ModelConfig) -> tuple[StemCosts, ...]:
    """What each stem of a model costs."""
    return tuple(
        own.architecture.stem_costs(own) if own.architecture.costs else measured.stem_costs(own)
        for own in (stem.config for stem in stem_parts(config))
    )


def parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters by group (`GROUPS`), equal to those of the built model."""
    return dict(_parameters(config))


@lru_cache(maxsize=256)
def _parameters(config: ModelConfig) -> dict[str, int]:
    d, depth = config.dim, config.layers
    groups = dict[str, int](dict.fromkeys(GROUPS, 0))
    groups["embedding"] = config.vocab_size * d
    groups["head"] = 0 if config.tie_embeddings else config.vocab_size * d
    channel_bias = config.glu_bias * (2 * config.glu_dim + d)
    groups["channel_mixer"] = depth * (3 * d * config.glu_dim + channel_bias)
    kind = config.architecture
    norm = kind.weighted_norm * d if kind.costs else measured.norm_parameters(config)
    before, behind = config.norms != "post", config.norms != "pre"
    groups["norm"] = (2 * depth * before + 1) * norm + behind * 2 * depth * d
    for part in (*layer_costs(config), *stem_costs(config)):
        _add(groups, part.parameters)
    return groups


def non_embedding_parameters(config: ModelConfig, convention: Convention = "exact") -> int:
    """N without embedding and head: the N of the paper's fits."""
    if convention == "exact" or not _has_paper_rows(config):
        groups = parameters(config)
        return sum(groups.values()) - groups["embedding"] - groups["head"]
    d = config.dim
    dense = config.layers * (4 * d * d + 3 * d * config.glu_dim)
    each = (*layer_costs(config), *stem_costs(config))
    return dense + sum(part.paper_parameters for part in each)


def forward_flops_per_token(
    config: ModelConfig, keys: Callable[[Softmax], float]
) -> dict[str, float]:
    """Forward FLOPs of one token by term, `exact` convention.

    Args:
        config: model.
        keys: keys that a softmax query sees in a layer: on average (`mean_keys`) in training, at
            one position (`seen_keys`) in decoding.
    """
    terms = dict[str, float](dict.fromkeys(FLOPS, 0.0))
    terms["head"] = 2.0 * config.dim * config.vocab_size
    for part in (*(stem.flops for stem in stem_costs(config)), *layer_flops(config, keys)):
        _add(terms, part)
    return terms


def layer_flops(config: ModelConfig, keys: Callable[[Softmax], float]) -> list[dict[str, float]]:
    """Forward FLOPs of one token in each layer, by term; arguments as `forward_flops_per_token`."""
    found: list[dict[str, float]] = []
    for layer in layer_costs(config):
        terms = {"channel_mixer": 6.0 * config.dim * config.glu_dim, **layer.flops}
        terms["attention"] = terms.get("attention", 0.0) + 4.0 * layer.state
        if layer.softmax is not None:
            terms["attention"] += 4.0 * layer.softmax.query_width * keys(layer.softmax)
        found.append(terms)
    return found


FLOPS = (
    "projections",
    "gate",
    "attention",
    "feature_map",
    "channel_mixer",
    "position",
    "head",
)
"""Terms of the FLOPs."""


def mean_keys(sequence_length: int) -> Callable[[Softmax], float]:
    """Keys that a softmax query sees on average in a sequence."""
    return lambda softmax: softmax.mean(sequence_length)


def seen_keys(position: int) -> Callable[[Softmax], float]:
    """Keys that the softmax query at `position` (counted from 1) sees, itself included."""
    return lambda softmax: softmax.seen(position)


def train_flops_per_token(
    config: ModelConfig, sequence_length: int, convention: Convention = "exact"
) -> dict[str, float]:
    """Training FLOPs (forward and backward) of one token by term, with their sum as `total`.

    Args:
        config: model.
        sequence_length: tokens n in a training sequence.
        convention: `exact` or `paper` (see the module docstring).
    """
    if convention == "exact":
        terms = forward_flops_per_token(config, mean_keys(sequence_length))
        terms = {name: 3 * value for name, value in terms.items()}
    else:
        terms = _paper_flops(config, sequence_length)
    return terms | {"total": sum(terms.values())}


def _paper_flops(config: ModelConfig, n: int) -> dict[str, float]:
    """Table 1 of arXiv 2406.16690 per token: 72 l d^2 and what the mixers add to it."""
    if not _has_paper_rows(config):
        terms = forward_flops_per_token(config, mean_keys(n))
        return {name: 3 * value for name, value in terms.items() if name != "head"}
    dense = 72.0 * config.layers * config.dim**2
    terms = {"projections_and_channel_mixer": dense}
    for layer in layer_costs(config):
        assert layer.paper_flops is not None
        _add(terms, layer.paper_flops(n))
    return terms


def _has_paper_rows(config: ModelConfig) -> bool:
    """Whether the paper's table has a row for every layer."""
    return all(layer.paper_flops for layer in layer_costs(config))


def paper_pflops_per_step(config: ModelConfig) -> float:
    """PFLOPs of one step of 480 sequences of 8192 tokens: the FLOPs column of Table 7."""
    total = train_flops_per_token(config, SEQUENCE_LENGTH, "paper")["total"]
    return total * SEQUENCE_LENGTH * BATCH_SEQUENCES / 1e15


def decode_flops_per_token(config: ModelConfig, position: int) -> dict[str, float]:
    """FLOPs to decode the token at `position` (counted from 1), by term, with `total`."""
    terms = forward_flops_per_token(config, seen_keys(position))
    return terms | {"total": sum(terms.values())}


def state_bytes(config: ModelConfig, batch_size: int = 1, itemsize: int = 4) -> int:
    """Bytes of recurrent state, constant in the context length (0 for LLaMA)."""
    numbers = sum(stem.state for stem in stem_costs(config))
    numbers += sum(layer.state + layer.spare for layer in layer_costs(config))
    return batch_size * itemsize * numbers


def kv_cache_bytes(
    config: ModelConfig, context: int, batch_size: int = 1, itemsize: int = 2
) -> int:
    """Bytes of keys and values held after `context` tokens (0 for the linear models).

    Under a sliding window those in it are held. LoLCATs' layers hold two windows of their own,
    whatever the context.
    """
    caches = [layer.softmax for layer in layer_costs(config) if layer.softmax is not None]
    return sum(batch_size * itemsize * 2 * c.held(context) * c.key_width for c in caches)


def _add(totals: dict[str, Number], terms: Mapping[str, Number]) -> None:
    for name, value in terms.items():
        totals[name] = totals[name] + value if name in totals else value


def summary(config: ModelConfig, sequence_length: int) -> Summary:
    """Everything that a run record stores about its model."""
    groups = parameters(config)
    return {
        "params": groups,
        "n_total": sum(groups.values()),
        "n_non_embedding": non_embedding_parameters(config),
        "n_paper": non_embedding_parameters(config, "paper"),
        "flops_per_token": {
            c: train_flops_per_token(config, sequence_length, c) for c in CONVENTIONS
        },
        "sequence_length": sequence_length,
        "architecture": _look(config),
    }


def _look(config: ModelConfig) -> dict[str, str | None]:
    """Label, colour and marker; a hybrid has none of the colours of its architectures."""
    kind = config.architecture
    drawn = {"colour": kind.colour, "marker": kind.marker}
    return {"label": config.label} | (drawn if config.mixers is None else dict.fromkeys(drawn))

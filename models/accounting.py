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

An architecture that is in none of these papers is counted by `models.measured`; the `paper`
convention, which has no row for it, is then the exact one without the head.
"""

from __future__ import annotations

from typing import Literal, TypedDict

from models import measured
from models.config import ARCHS, LINEARIZED, Arch, ModelConfig

Convention = Literal["exact", "paper"]
CONVENTIONS: tuple[Convention, ...] = ("exact", "paper")

SEQUENCE_LENGTH = 8192
"""Context of every run in the paper's Table 7."""
BATCH_SEQUENCES = 480
"""Sequences a step in the paper's Table 7."""


class Summary(TypedDict):
    """What a run record stores about its model (accounting.json)."""

    params: dict[str, int]
    n_total: int
    n_non_embedding: int
    n_paper: int
    flops_per_token: dict[str, dict[str, float]]
    sequence_length: int


def _measured(config: ModelConfig) -> bool:
    """Whether the architecture has no closed forms here."""
    return config.arch not in (*ARCHS, *LINEARIZED)


def key_dim(config: ModelConfig, layer: int) -> int:
    """Key dimension of one head's state: twice the head dimension where LRPE rotates the keys."""
    lrpe = config.arch == "cosformer2" or (
        config.arch == "tnl"
        and (config.tnl_lrpe == "all" or (config.tnl_lrpe == "first" and layer == 0))
    )
    return 2 * config.head_dim if lrpe else config.head_dim


def parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters by group, equal to those of the built model.

    Returns:
        embedding, head (0 when tied), token_mixer (q, k, v, o projections), gate (low-rank output
        gate), channel_mixer, norm, position (LRPE angles, TPE), decay (lower bounds, slopes),
        feature_map (of linearized models, with LoLCATs' window factors).
    """
    if _measured(config):
        return measured.costs(config)[0]
    d, layers = config.dim, config.layers
    attention = config.heads * config.head_dim
    mixer_bias = config.qkv_bias * _qkv_dim(config) + config.out_bias * d
    channel_bias = config.glu_bias * (2 * config.glu_dim + d)
    lrpe_layers = sum(key_dim(config, i) > config.head_dim for i in range(layers))
    gated = config.arch in ("tnl", "cosformer2")
    return {
        "embedding": config.vocab_size * d,
        "head": 0 if config.tie_embeddings else config.vocab_size * d,
        "token_mixer": layers * (d * (_qkv_dim(config) + attention) + mixer_bias),
        "gate": 2 * layers * d * config.gate_dim if gated else 0,
        "channel_mixer": layers * (3 * d * config.glu_dim + channel_bias),
        "norm": 2 * layers * d + d if config.arch in ("llama", *LINEARIZED) else 0,
        "position": (lrpe_layers * d if config.lrpe_learned else 0) + _tpe_parameters(config),
        "decay": _decay_parameters(config),
        "feature_map": _linear_layers(config) * _feature_map_parameters(config),
    }


def _qkv_dim(config: ModelConfig) -> int:
    """Width of q, k and v together: 3 d, but for LLaMA with grouped or resized heads."""
    return (config.heads + 2 * config.key_value_heads) * config.head_dim


def _has_tpe(config: ModelConfig) -> bool:
    return config.arch == "cosformer2" and config.tpe


def _tpe_parameters(config: ModelConfig) -> int:
    """A (d/h, d/h) matrix and a pole for every head."""
    return config.dim * config.head_dim + config.heads if _has_tpe(config) else 0


def _decay_parameters(config: ModelConfig) -> int:
    if config.arch == "hgrn2":
        return config.layers * config.dim
    if config.arch in ("tnl", "supra") and config.learn_decay:
        return _linear_layers(config) * config.heads
    return 0


def _linear_layers(config: ModelConfig) -> int:
    """Layers without softmax attention over all keys."""
    return config.layers - len(config.softmax_layers)


def _feature_map_parameters(config: ModelConfig) -> int:
    """Of one layer: SUPRA's keys share the queries' map where they have as many heads."""
    options, size = config.linearized, config.head_dim
    if options is None:
        return 0
    queries = options.map_parameters(config.heads, size)
    if config.lolcats is not None:
        return 2 * queries + config.heads
    if config.key_value_heads == config.heads:
        return queries
    return queries + options.map_parameters(config.key_value_heads, size)


def _feature_map_flops(config: ModelConfig) -> int:
    """Of one layer and token, forward."""
    options, size = config.linearized, config.head_dim
    if options is None:
        return 0
    key_heads = config.heads if config.lolcats is not None else config.key_value_heads
    return options.map_flops(config.heads, size) + options.map_flops(key_heads, size)


def _state_size(config: ModelConfig, layer: int) -> int:
    """Numbers in the recurrent state of a layer of linear attention: d_k x d_v a head, with one
    more value channel in LoLCATs, the denominator's."""
    if config.lolcats is not None:
        features = config.lolcats.features(config.head_dim)
        return config.heads * features * (config.head_dim + 1)
    return config.heads * key_dim(config, layer) * config.head_dim


def non_embedding_parameters(config: ModelConfig, convention: Convention = "exact") -> int:
    """N without embedding and head: the N of the paper's fits."""
    if convention == "exact" or _measured(config):
        groups = parameters(config)
        return sum(groups.values()) - groups["embedding"] - groups["head"]
    d, layers, t = config.dim, config.layers, config.head_dim
    extra: dict[Arch, int] = {
        "llama": 4 * layers * d,
        "tnl": 2 * layers * d * t,
        "hgrn2": layers * d,
        "cosformer2": 2 * layers * d * t + d * t + 7 * layers * d,
        **{arch: 4 * layers * d + parameters(config)["feature_map"] for arch in LINEARIZED},
    }
    projections = layers * d * (_qkv_dim(config) + config.heads * config.head_dim)
    return projections + 3 * layers * d * config.glu_dim + extra[config.arch]


def forward_flops_per_token(
    config: ModelConfig, keys: float, near: float = 0.0
) -> dict[str, float]:
    """Forward FLOPs of one token by term, `exact` convention.

    Args:
        config: model.
        keys: keys a softmax query sees: `mean_keys` in training, `seen_keys` in decoding.
        near: keys in a window of LoLCATs: `LoLCATs.mean_seen` or `LoLCATs.seen`.
    """
    if _measured(config):
        return dict(measured.costs(config)[1])
    d, layers = config.dim, config.layers
    linear = [i for i in range(layers) if i not in config.softmax_layers]
    state = sum(4 * _state_size(config, i) for i in linear)
    gated = config.arch in ("tnl", "cosformer2")
    attention = config.heads * config.head_dim
    return {
        "projections": 2.0 * layers * d * (_qkv_dim(config) + attention),
        "gate": 4.0 * layers * d * config.gate_dim if gated else 0.0,
        "attention": state
        + 4.0 * attention * (len(config.softmax_layers) * keys + len(linear) * near),
        "feature_map": float(len(linear) * _feature_map_flops(config)),
        "channel_mixer": 6.0 * layers * d * config.glu_dim,
        "position": 2.0 * d * config.head_dim if _has_tpe(config) else 0.0,
        "head": 2.0 * d * config.vocab_size,
    }


def seen_keys(config: ModelConfig, position: int) -> int:
    """Keys that the softmax query at `position` (counted from 1) sees, itself included."""
    return position if config.window is None else min(position, config.window)


def mean_keys(config: ModelConfig, sequence_length: int) -> float:
    """Keys that a softmax query sees on average in a sequence: (n + 1) / 2 without a window."""
    n, w = sequence_length, seen_keys(config, sequence_length)
    return (w * (w + 1) / 2 + (n - w) * w) / n


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
        near = 0 if config.lolcats is None else config.lolcats.mean_seen(sequence_length)
        terms = forward_flops_per_token(config, mean_keys(config, sequence_length), near)
        terms = {name: 3 * value for name, value in terms.items()}
    else:
        terms = _paper_flops(config, sequence_length)
    return terms | {"total": sum(terms.values())}


def _paper_flops(config: ModelConfig, n: int) -> dict[str, float]:
    """Table 1 of arXiv 2406.16690 per token: 72 l d^2 (1 + mixer share + vector share)."""
    d, h = config.dim, config.heads
    if _measured(config):
        terms = forward_flops_per_token(config, 0)
        return {name: 3 * value for name, value in terms.items() if name != "head"}
    if config.linearized is not None:
        return _paper_flops_linearized(config, n)
    mixer, vector = {
        "llama": (n / (6 * d), 5 / (18 * d)),
        "tnl": (1 / (2 * h), 5 / (18 * d)),
        "hgrn2": (1 / (3 * h), 29 / (72 * d)),
        "cosformer2": (3 / (4 * h), 23 / (72 * d)),
    }[config.arch]
    dense = 72.0 * config.layers * d * d
    return {
        "projections_and_channel_mixer": dense,
        "attention": dense * mixer,
        "vector": dense * vector,
    }


def _paper_flops_linearized(config: ModelConfig, n: int) -> dict[str, float]:
    """The table's terms for LLaMA and TNL, mixed by layer; see the module docstring."""
    d, dense, linear = config.dim, 72.0 * config.dim**2, _linear_layers(config)
    assert config.linearized is not None
    share = config.linearized.features(config.head_dim) / config.head_dim / (2 * config.heads)
    if config.lolcats is not None:
        share += 2 * config.lolcats.window / (6 * d)
    return {
        "projections_and_channel_mixer": config.layers * dense,
        "attention": dense * (linear * share + len(config.softmax_layers) * n / (6 * d)),
        "vector": dense * config.layers * 5 / (18 * d),
        "feature_map": 3.0 * linear * _feature_map_flops(config),
    }


def paper_pflops_per_step(config: ModelConfig) -> float:
    """PFLOPs of one step of 480 sequences of 8192 tokens: the FLOPs column of Table 7."""
    total = train_flops_per_token(config, SEQUENCE_LENGTH, "paper")["total"]
    return total * SEQUENCE_LENGTH * BATCH_SEQUENCES / 1e15


def decode_flops_per_token(config: ModelConfig, position: int) -> dict[str, float]:
    """FLOPs to decode the token at `position` (counted from 1), by term, with `total`."""
    near = 0 if config.lolcats is None else config.lolcats.seen(position)
    terms = forward_flops_per_token(config, seen_keys(config, position), near)
    return terms | {"total": sum(terms.values())}


def state_bytes(config: ModelConfig, batch_size: int = 1, itemsize: int = 4) -> int:
    """Bytes of recurrent state, constant in the context length (0 for LLaMA).

    Each layer holds heads x d_k x d_v numbers, LoLCATs' two such states; cosFormer2 also holds its
    TPE state, d numbers.
    """
    if _measured(config):
        return batch_size * itemsize * measured.costs(config)[2]
    states = sum(
        _state_size(config, i) for i in range(config.layers) if i not in config.softmax_layers
    )
    copies = 2 if config.lolcats is not None else 1
    return batch_size * itemsize * (copies * states + (config.dim if _has_tpe(config) else 0))


def kv_cache_bytes(
    config: ModelConfig, context: int, batch_size: int = 1, itemsize: int = 2
) -> int:
    """Bytes of keys and values held after `context` tokens (0 for the linear models).

    Under a sliding window those in it are held. LoLCATs' layers hold two windows of their own,
    whatever the context.
    """
    held = context if config.window is None else min(context, config.window)
    slots = len(config.softmax_layers) * held
    if config.lolcats is not None:
        slots += _linear_layers(config) * 2 * config.lolcats.window
    return batch_size * itemsize * 2 * slots * config.key_value_heads * config.head_dim


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
    }

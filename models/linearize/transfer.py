"""Attention transfer, the first stage of LoLCATs (arXiv 2410.10254, section 3.1).

    loss_l = 1000 mean (Y_softmax - Y_hybrid)^2  (+ factor x cross-entropy of attention weights)
                                                 (+ factor x `far_error`)

for every layer l, over the outputs of all heads before the output projection, or (`at="residual"`)
over what attention adds to the residual stream: after the output projection and the norm behind it,
where there is one. Only feature maps and window factors learn. One pass and one set of weights
serve teacher and student:

1. The residual stream is the teacher's: each layer adds its softmax attention.
2. In every linearized layer the same q, k, v also pass through the hybrid attention, with gradients
   of the feature maps and the window factor alone, and the two outputs are compared.

The layers' losses do not share a graph. `layer_losses` yields them one by one, so that a caller who
runs `backward` on each holds one layer's activations at a time.

Published: AdamW, learning rate 0.01 reduced on plateaus, no weight decay, 2 epochs of Alpaca in
sequences of 1024, batch 8, MSE alone (`cross_entropy=0`), as in the authors' configurations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from models.config import ConfigError
from models.kv_cache import call_mask
from models.language_model import Block, LanguageModel
from models.layers import Shared, Span, make_span
from models.linearize.feature_maps import repeat_heads
from models.linearize.lolcats import HybridAttention
from models.linearize.parts import hybrid_mixers
from models.llama import SoftmaxAttention

MSE_FACTOR = 1000.0
"""Scale of the squared error in the authors' configurations."""
ErrorAt = Literal["heads", "residual"]
"""Where outputs are compared: those of the heads, or what they add to the residual stream."""


@dataclass(frozen=True)
class Trained:
    """How much of a model learns."""

    parameters: int
    """Parameters that learn."""
    total: int
    """All parameters."""

    def __str__(self) -> str:
        share = 100 * self.parameters / self.total
        return (
            f"{self.parameters:,} of {self.total:,} parameters learn ({share:.3g} %; LoLCATs "
            "publishes 0.2 % for models of 7B and 8B parameters)"
        )


def count_trained(model: nn.Module) -> Trained:
    """Count the parameters that require gradients."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return Trained(sum(n for n, learns in sizes if learns), sum(n for n, _ in sizes))


def hybrid_layers(model: LanguageModel) -> dict[int, HybridAttention]:
    """The hybrid attentions of a model by layer.

    Raises:
        ConfigError: the model has none.
    """
    hybrid = hybrid_mixers(model)
    if not hybrid:
        raise ConfigError(
            f"model.arch={model.config.arch!r}: no layer has LoLCATs' attention to transfer to; "
            "linearize a LLaMA model with LoLCATs first."
        )
    return hybrid


def freeze_for_transfer(model: LanguageModel) -> list[nn.Parameter]:
    """Let feature maps and window factors learn, and nothing else; returns those parameters.

    Raises:
        ConfigError: as `hybrid_layers`.
    """
    model.requires_grad_(False)
    return [p for mixer in hybrid_layers(model).values() for p in let_learn(mixer)]


def let_learn(mixer: HybridAttention) -> list[nn.Parameter]:
    """Let the feature maps and the window factor of one layer learn; returns their parameters."""
    parts = (mixer.query_map, mixer.key_map, mixer.factor)
    return [p for part in parts for p in part.requires_grad_(True).parameters()]


def layer_losses(
    model: LanguageModel,
    tokens: Tensor,
    cu_seqlens: Tensor | None = None,
    *,
    mse: float = MSE_FACTOR,
    cross_entropy: float = 0.0,
    far: float = 0.0,
    at: ErrorAt = "heads",
) -> Iterator[tuple[int, Tensor]]:
    """Loss of each linearized layer, in order: (layer, scalar in float32 or wider).

    Args:
        model: linearized by LoLCATs.
        tokens: (B, T) integers.
        cu_seqlens: boundaries of packed sequences, as in `LanguageModel.forward`.
        mse: factor of the mean squared error of the outputs.
        cross_entropy: factor of the cross-entropy of the student's attention weights against the
            teacher's, mean over queries and heads. Not 0: takes T x T memory.
        far: factor of `far_error`. Not 0: takes T x T memory.
        at: where outputs are compared.

    Raises:
        ConfigError: as `hybrid_layers`.
    """
    hybrid_layers(model)
    span = make_span(tokens, None, cu_seqlens, False)
    with torch.no_grad():
        x, shared, _ = model.stem(model.embedding(tokens), span, None)
    blocks = cast(list[Block], list(model.blocks))
    yield from block_losses(
        blocks, 0, x, span, shared, mse=mse, cross_entropy=cross_entropy, far=far, at=at
    )


def block_losses(
    blocks: Sequence[Block],
    first: int,
    x: Tensor,
    span: Span,
    shared: Sequence[Shared],
    *,
    mse: float = MSE_FACTOR,
    cross_entropy: float = 0.0,
    far: float = 0.0,
    at: ErrorAt = "heads",
) -> Iterator[tuple[int, Tensor]]:
    """As `layer_losses`, for some blocks in a row.

    Args:
        blocks: of a model linearized by LoLCATs.
        first: layer of the first of them.
        x: (B, T, d), the teacher's hidden states before it.
        span: positions and packing.
        shared: from the model's stem, for all layers.
        mse, cross_entropy, far, at: as in `layer_losses`.
    """
    for layer, block in enumerate(blocks, first):
        mixer = block.mixer
        if not isinstance(mixer, HybridAttention):
            with torch.no_grad():
                x, _ = block(x, span, shared[layer], None)
            continue
        with torch.no_grad():
            normed = block.mixer_norm(x)
        q, k, teacher, student = mixer.compare(normed, span, shared[layer])
        wide = torch.promote_types(student.dtype, torch.float32)
        with torch.no_grad():
            mixed = mixer.out(teacher.flatten(-2))
        if at == "residual":
            mine, theirs = block.mixer_post_norm(mixer.out(student.flatten(-2))), mixed
            with torch.no_grad():
                theirs = block.mixer_post_norm(theirs)
        else:
            mine, theirs = student, teacher
        loss = mse * (mine.to(wide) - theirs.to(wide)).square().mean()
        del mine, theirs
        if cross_entropy:
            mine, theirs = attention_weights(mixer, q, k, span)
            entropy = -(theirs * mine.clamp(min=1e-12).log()).sum(-1).mean()
            loss = loss + cross_entropy * entropy
            del mine, theirs, entropy
        if far:
            loss = loss + far * far_error(mixer, normed, span, shared[layer])
        del q, k, normed, student, teacher
        yield layer, loss
        # The caller is done with this layer's graph: nothing of it is kept meanwhile.
        del loss
        if layer + 1 < first + len(blocks):
            with torch.no_grad():
                x = block.finish(x, mixed)


def attention_transfer_loss(
    model: LanguageModel,
    tokens: Tensor,
    cu_seqlens: Tensor | None = None,
    *,
    mse: float = MSE_FACTOR,
    cross_entropy: float = 0.0,
    far: float = 0.0,
    at: ErrorAt = "heads",
) -> Tensor:
    """Losses of all linearized layers, (layers,); the published objective is their mean.

    Args: as `layer_losses`.
    """
    losses = layer_losses(
        model, tokens, cu_seqlens, mse=mse, cross_entropy=cross_entropy, far=far, at=at
    )
    return torch.stack([loss for _, loss in losses])


def attention_weights(
    mixer: HybridAttention, q: Tensor, k: Tensor, span: Span
) -> tuple[Tensor, Tensor]:
    """Attention weights of student and teacher, each (B, H, T, T), rows sum to 1.

    Args:
        mixer: linearized layer.
        q, k: rotated, (B, T, heads or key-value heads, K).
        span: positions and packing, without a state.
    """
    options = mixer.options
    with torch.no_grad():
        theirs = softmax_weights(mixer, q, k, span)
    keys = repeat_heads(k, mixer.heads)
    scores = torch.einsum("bihk,bjhk->bhij", q, keys) * mixer.head_dim**-0.5
    scores = mixer.capped(scores.to(torch.promote_types(scores.dtype, torch.float32)))
    seen, near = visible_keys(mixer, span)
    factor = mixer.factor()[:, None, None].to(scores.dtype)
    scores = scores.masked_fill(~near, -torch.inf)
    weights = factor * (scores - scores.amax(-1, keepdim=True)).exp()
    products = torch.einsum("bihf,bjhf->bhij", mixer.query_map(q), mixer.key_features(k))
    products = products.to(scores.dtype) * (seen & ~near)
    weights = weights + products * (1 - factor if options.affine else 1)
    return weights / weights.sum(-1, keepdim=True), theirs


def visible_keys(mixer: HybridAttention, span: Span) -> tuple[Tensor, Tensor]:
    """Which keys a query sees at all, and by softmax (window and sinks), both (T, T)."""
    options, positions = mixer.options, span.positions[0]
    seen = positions <= positions[:, None]  # key j is not after query i
    if span.sequence is not None:
        seen = seen & (span.sequence == span.sequence[:, None])
    if options.arrangement == "terraced":
        oldest = (positions // options.window - 1) * options.window
    else:
        oldest = positions - options.window + 1
    return seen, seen & ((positions >= oldest[:, None]) | (positions < options.sink_tokens))


def far_error(mixer: HybridAttention, x: Tensor, span: Span, shared: Shared) -> Tensor:
    """Squared error of the linear part alone against the teacher's attention to the keys that the
    student does not see by softmax; mean over the queries that have such keys, a scalar.

    Args:
        mixer: linearized layer.
        x: (B, T, d), normed.
        span: positions and packing, without a state.
        shared: from the model's stem, for this layer.
    """
    with torch.no_grad():
        q, k, v = mixer._project(x, shared)
        seen, near = visible_keys(mixer, span)
        # What the teacher sees of it: its own window may be shorter.
        beyond = seen & ~near & call_mask(span, mixer.window).view(seen.shape)  # (T, T)
        some = beyond.any(-1)  # (T,)
        scores = torch.einsum("bihk,bjhk->bhij", q, repeat_heads(k, mixer.heads))
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * mixer.head_dim**-0.5
        scores = mixer.capped(scores)
        weights = scores.masked_fill(~(beyond | ~some[:, None]), -torch.inf).softmax(-1)
        target = torch.einsum("bhij,bjhv->bihv", weights.to(v.dtype), repeat_heads(v, mixer.heads))
    before, mixer.reads = mixer.reads, "past"
    try:
        student, _ = mixer.attend(q, k, v, span)
    finally:
        mixer.reads = before
    wide = torch.promote_types(student.dtype, torch.float32)
    error = (student.to(wide) - target.to(wide)).square() * some[:, None, None]
    return error.mean() * len(some) / some.sum().clamp(min=1)


def softmax_weights(mixer: SoftmaxAttention, q: Tensor, k: Tensor, span: Span) -> Tensor:
    """Attention weights of softmax attention, (B, H, T, T), float32 or wider.

    Args: as `attention_weights`.
    """
    scores = torch.einsum("bihk,bjhk->bhij", q, repeat_heads(k, mixer.heads))
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * mixer.head_dim**-0.5
    scores = mixer.capped(scores)
    return scores.masked_fill(~call_mask(span, mixer.window), -torch.inf).softmax(-1)

"""Per-token cross-entropy of a linear head without all logits in memory.

    loss_t = logsumexp_v(h_t . w_v) - h_t . w_{y_t}

Logits are formed in float32 for a chunk of tokens at a time and formed again in the backward pass,
which costs one more head product and saves tokens x vocabulary x 4 bytes. Where all logits fit in
one chunk the plain loss runs: nothing is formed twice.

Data flow of a chunk: 1. logits = h W^T in the compute dtype, then float32; 2. logsumexp minus the
target's logit; backward: 3. (softmax - onehot) * grad, in the compute dtype; 4. grad_h = that W,
grad_W accumulated in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100
"""Targets with this value have loss 0 and no gradient."""
CHUNK_LOGITS = 2**24
"""Logits in one chunk: 64 MiB in float32."""


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of softmax(hidden weight^T) against targets, in nats, by token.

    Args:
        hidden: (..., d) final hidden states.
        weight: (V, d) head.
        targets: (...) integers in [0, V), or `IGNORE_INDEX`.

    Returns:
        (...) float32 (float64 for float64 input).
    """
    shape = targets.shape
    hidden, targets = hidden.flatten(0, -2), targets.flatten()
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    else:
        hidden = hidden.to(weight.dtype)
    if targets.numel() * weight.shape[0] <= CHUNK_LOGITS:
        logits = _widen(hidden @ weight.T)
        loss = F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORE_INDEX)
    else:
        loss, _ = _chunked(hidden, weight, targets)
    return loss.view(shape)


def _widen(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _chunk_tokens(weight: Tensor) -> int:
    return max(CHUNK_LOGITS // weight.shape[0], 1)


@torch.library.custom_op("linscale::chunked_cross_entropy", mutates_args=())
def _chunked(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and logsumexp, each (M,), of hidden (M, d), weight (V, d), targets (M,)."""
    parts: list[tuple[Tensor, Tensor]] = []
    size = _chunk_tokens(weight)
    for h, y in zip(hidden.split(size), targets.split(size), strict=True):
        logits = _widen(h @ weight.T)
        log_sum = logits.logsumexp(dim=-1)
        kept = y != IGNORE_INDEX
        target = logits.gather(1, y.where(kept, 0)[:, None])[:, 0]
        parts.append(((log_sum - target).where(kept, 0.0), log_sum))
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


@_chunked.register_fake
def _(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    loss = hidden.new_empty(targets.shape, dtype=dtype)
    return loss, torch.empty_like(loss)


@torch.library.custom_op("linscale::chunked_cross_entropy_backward", mutates_args=())
def _chunked_backward(
    grad: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor, log_sum: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of hidden (M, d) and weight (V, d) for the loss gradient grad (M,)."""
    size = _chunk_tokens(weight)
    grad_hidden = torch.empty_like(hidden)
    grad_weight = torch.zeros_like(weight, dtype=log_sum.dtype)
    for start in range(0, hidden.shape[0], size):
        rows = slice(start, start + size)
        h, y = hidden[rows], targets[rows]
        kept = y != IGNORE_INDEX
        scale = grad[rows].where(kept, 0.0)[:, None]
        delta = _widen(h @ weight.T).sub_(log_sum[rows, None]).exp_().mul_(scale)
        delta.scatter_add_(1, y.where(kept, 0)[:, None], -scale)
        delta = delta.to(hidden.dtype)
        grad_hidden[rows] = delta @ weight
        grad_weight += delta.T @ h
    return grad_hidden, grad_weight.to(weight.dtype)


@_chunked_backward.register_fake
def _(
    grad: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor, log_sum: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(hidden), torch.empty_like(weight)


def _setup(ctx, inputs, output) -> None:
    hidden, weight, targets = inputs
    ctx.save_for_backward(hidden, weight, targets, output[1])


def _backward(ctx, grad_loss: Tensor, grad_log_sum: Tensor):
    # log_sum is an internal by-product: nothing downstream reads it.
    grad_hidden, grad_weight = _chunked_backward(grad_loss, *ctx.saved_tensors)
    return grad_hidden, grad_weight, None


_chunked.register_autograd(_backward, setup_context=_setup)

"""Per-token cross-entropy of a linear head without all logits in memory.

    loss_t = logsumexp_v(h_t . w_v) - h_t . w_{y_t}

Logits are formed for a chunk of tokens at a time and formed again in the backward pass, which costs
one more head product and saves tokens x vocabulary x 4 bytes. Where all logits fit in one chunk of
`PLAIN_LOGITS` the plain loss runs: nothing is formed twice.

Data flow of a chunk: 1. logits = h W^T in the compute dtype; 2. in float32, logsumexp minus the
target's logit; backward: 3. (softmax - onehot) * grad, in the compute dtype; 4. grad_h = that W,
grad_W accumulated in float32. On a CUDA device 2 and 3 are one kernel each (`kernels.triton.
cross_entropy`), 4 accumulates within the product, and chunks are larger (`chunk_sizes`).
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.chunk_sizes import PLAIN_LOGITS, chunk_logits

IGNORE_INDEX = -100
"""Targets with this value have loss 0 and no gradient."""
ROWS = 128
"""Tokens of a chunk on a CUDA device are a multiple of this, the tile of its products."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None = None
) -> Tensor:
    """Cross-entropy of softmax(hidden weight^T) against targets, in nats, by token.

    Args:
        hidden: (..., d) final hidden states.
        weight: (V, d) head.
        targets: (...) integers in [0, V), or `IGNORE_INDEX`.
        cap: logits z become cap tanh(z / cap); None: they stay.

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
    if cap is not None:
        loss = _capped(hidden, weight, targets, cap)
    elif targets.numel() * weight.shape[0] <= PLAIN_LOGITS:
        logits = _widen(hidden @ weight.T)
        loss = F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORE_INDEX)
    else:
        loss, _ = _chunked(hidden, weight, targets)
    return loss.view(shape)


def _capped(hidden: Tensor, weight: Tensor, targets: Tensor, cap: float) -> Tensor:
    """Losses (M,) with capped logits, a chunk at a time, each computed again where gradients are
    asked for."""

    def losses(h: Tensor, y: Tensor) -> Tensor:
        logits = cap * torch.tanh(_widen(h @ weight.T) / cap)
        return F.cross_entropy(logits, y, reduction="none", ignore_index=IGNORE_INDEX)

    size = _chunk_tokens(weight)
    again = torch.is_grad_enabled() and targets.numel() > size
    parts = zip(hidden.split(size), targets.split(size), strict=True)
    return torch.cat(
        [checkpoint(losses, h, y, use_reentrant=False) if again else losses(h, y) for h, y in parts]
    )


def _widen(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _fused(x: Tensor) -> bool:
    """Whether the Triton kernels take the logits."""
    return x.device.type == "cuda" and x.dtype != torch.float64


@cache
def _device_memory(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).total_memory


def _chunk_tokens(weight: Tensor) -> int:
    words = weight.shape[0]
    if weight.device.type != "cuda":
        return max(chunk_logits() // words, 1)
    tokens = chunk_logits(_device_memory(weight.device), weight.itemsize) // words
    return max(tokens // ROWS * ROWS, ROWS)


@torch.library.custom_op("linscale::chunked_cross_entropy", mutates_args=())
def _chunked(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and logsumexp, each (M,), of hidden (M, d), weight (V, d), targets (M,)."""
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    losses = hidden.new_empty(targets.shape, dtype=dtype)
    log_sums = torch.empty_like(losses)
    size, targets = _chunk_tokens(weight), targets.contiguous()
    parts = (x.split(size) for x in (hidden, targets, losses, log_sums))
    for h, y, loss, log_sum in zip(*parts, strict=True):
        logits = h @ weight.T
        if _fused(logits):
            from models.kernels.triton import cross_entropy as kernels

            kernels.losses(logits, y, loss, log_sum, IGNORE_INDEX)
            continue
        logits = _widen(logits)
        torch.logsumexp(logits, -1, out=log_sum)
        kept = y != IGNORE_INDEX
        target = logits.gather(1, y.where(kept, 0)[:, None])[:, 0]
        loss.copy_((log_sum - target).where(kept, 0.0))
    return losses, log_sums


@_chunked.register_fake
def _(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    loss = hidden.new_empty(targets.shape, dtype=dtype)
    return loss, torch.empty_like(loss)


@torch.library.custom_op("linscale::chunked_cross_entropy_backward", mutates_args=())
def _chunked_backward(
    grad: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor, log_sum: Tensor, learns: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of hidden (M, d) and weight (V, d) for the loss gradient grad (M,); that of a
    weight that does not learn is (0, d) and costs nothing."""
    size, targets, grad = _chunk_tokens(weight), targets.contiguous(), grad.contiguous()
    grad_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format)
    grad_weight = torch.zeros_like(
        weight[: len(weight) * learns], dtype=log_sum.dtype, memory_format=torch.contiguous_format
    )
    for start in range(0, hidden.shape[0], size):
        rows = slice(start, start + size)
        h, y = hidden[rows], targets[rows]
        logits = h @ weight.T
        if _fused(logits):
            from models.kernels.triton import cross_entropy as kernels

            delta = kernels.gradients_(logits, y, log_sum[rows], grad[rows], IGNORE_INDEX)
        else:
            kept = y != IGNORE_INDEX
            scale = grad[rows].where(kept, 0.0)[:, None]
            delta = _widen(logits).sub_(log_sum[rows, None]).exp_().mul_(scale)
            delta.scatter_add_(1, y.where(kept, 0)[:, None], -scale)
            delta = delta.to(hidden.dtype)
        torch.mm(delta, weight, out=grad_hidden[rows])
        if learns:
            _add_product(grad_weight, delta.T, h)
    return grad_hidden, grad_weight.to(weight.dtype)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b, a in the compute dtype and the total in float32 or wider."""
    if a.device.type == "cpu":  # it has no product of 16-bit factors into float32
        total += a @ b
    elif a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)


@_chunked_backward.register_fake
def _(
    grad: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor, log_sum: Tensor, learns: bool
) -> tuple[Tensor, Tensor]:
    kept = torch.contiguous_format
    return torch.empty_like(hidden, memory_format=kept), torch.empty_like(
        weight[: len(weight) * learns], memory_format=kept
    )


def _setup(ctx, inputs, output) -> None:
    hidden, weight, targets = inputs
    ctx.save_for_backward(hidden, weight, targets, output[1])


def _backward(ctx, grad_loss: Tensor, grad_log_sum: Tensor):
    # log_sum is an internal by-product: nothing downstream reads it.
    learns = ctx.needs_input_grad[1]
    grad_hidden, grad_weight = _chunked_backward(grad_loss, *ctx.saved_tensors, learns)
    return grad_hidden, grad_weight if learns else None, None


_chunked.register_autograd(_backward, setup_context=_setup)

"""Rows of logits in the compute dtype: their loss, and its gradient in their place.

    loss = log sum_v exp(x_v) - x_y        dx_v = scale (exp(x_v - log_sum) - [v = y])

Each reads the logits once, with no float32 copy of them: 2 bytes a logit in bfloat16 forward, 4
backward. Used by `models.cross_entropy` on CUDA devices.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.kernels.triton.common import LOG2E

LOWEST = tl.constexpr(-1e30)
"""In the place of -inf, of which a difference would be NaN."""
LOSS_BLOCK, GRADIENT_BLOCK = 4096, 2048
"""Logits of a row that one program reads at a time."""


@triton.jit
def row_losses(
    logits, targets, losses, log_sums, stride, words, IGNORE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Loss and logsumexp of one row, (M,) float32 each; the loss of an ignored target is 0."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    at = tl.arange(0, BLOCK)
    top = tl.full([BLOCK], LOWEST, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, words, BLOCK):
        x = tl.load(logits + first + at, mask=first + at < words, other=LOWEST).to(tl.float32)
        higher = tl.maximum(top, x)
        total = total * tl.exp2((top - higher) * LOG2E) + tl.exp2((x - higher) * LOG2E)
        top = higher
    highest = tl.max(top, 0)
    log_sum = highest + tl.log(tl.sum(total * tl.exp2((top - highest) * LOG2E), 0))
    target = tl.load(targets + row)
    kept = target != IGNORE
    x = tl.load(logits + tl.where(kept, target, 0)).to(tl.float32)
    tl.store(losses + row, tl.where(kept, log_sum - x, 0.0))
    tl.store(log_sums + row, log_sum)


@triton.jit
def row_gradients(
    logits, targets, log_sums, scales, stride, words, IGNORE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The gradient of one block of one row, over the logits. Grid: (M, ceil(words / BLOCK))."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    target = tl.load(targets + row)
    scale = tl.load(scales + row).to(tl.float32)
    scale = tl.where(target == IGNORE, 0.0, scale)
    place = logits + row * stride + at
    x = tl.load(place, mask=at < words, other=LOWEST).to(tl.float32)
    p = tl.exp2((x - tl.load(log_sums + row)) * LOG2E)
    d = scale * (p - tl.where(at == target, 1.0, 0.0))
    tl.store(place, d.to(logits.dtype.element_ty), mask=at < words)


def losses(logits: Tensor, targets: Tensor, loss: Tensor, log_sum: Tensor, ignore: int) -> None:
    """Write the loss and logsumexp of logits (M, V), V contiguous, to `loss` and `log_sum`."""
    rows, words = logits.shape
    with torch.cuda.device_of(logits):
        row_losses[(rows,)](
            logits, targets, loss, log_sum, logits.stride(0), words, IGNORE=ignore,
            BLOCK=LOSS_BLOCK, num_warps=8, num_stages=1,
        )  # fmt: skip


def gradients_(
    logits: Tensor, targets: Tensor, log_sum: Tensor, scale: Tensor, ignore: int
) -> Tensor:
    """Turn logits (M, V) into the loss's gradient with respect to them, times scale (M,)."""
    rows, words = logits.shape
    with torch.cuda.device_of(logits):
        row_gradients[(rows, -(-words // GRADIENT_BLOCK))](
            logits, targets, log_sum, scale, logits.stride(0), words, IGNORE=ignore,
            BLOCK=GRADIENT_BLOCK, num_warps=4, num_stages=1,
        )  # fmt: skip
    return logits

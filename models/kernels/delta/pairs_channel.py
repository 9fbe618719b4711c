"""Pairs of tokens within a chunk under one decay factor a token, head and key channel.

    scores_ts = q_t . (W_ts * k_s)  for s <= t      overlap_ts = k_t . (W_ts * k_s)  for s < t

W_ts, the product of the factors behind s up to t, is a vector over the channels, so that no matrix
product over whole chunks can form these. As in `models.kernels.intra_channel` the chunk is halved
again and again, and every pair is split at the one boundary where t is in the upper and s in the
lower half of a block: both sides are products of factors, and stay within [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from models.kernels.intra_channel import lower, upper


class Pairs(NamedTuple):
    scores: Tensor
    """Of queries with keys, zero for s > t, (M, B, H, C, C)."""
    overlap: Tensor
    """Of keys with earlier keys, zero for s >= t, (M, B, H, C, C)."""
    before: Tensor | None
    """Product up to and including each token, broadcasts to (M, B, H, C, K); None is 1."""
    after: Tensor | None
    """Product behind each token, broadcasts to (M, B, H, C, K); None is 1."""
    carry: Tensor | None
    """Product over the chunk, broadcasts to (M, B, H, K, 1); None is 1."""


class PairGradients(NamedTuple):
    dq: Tensor
    dread: Tensor
    """Of keys as those that are corrected: of k_t in the overlap."""
    dwrite: Tensor
    """Of keys as those that are read: of k_s in scores and overlap."""


def pairs(q: Tensor, k: Tensor, factor: Tensor) -> Pairs:
    """Products of all pairs of a chunk; all arguments (M, B, H, C, K)."""
    shape = (*k.shape[:3], k.shape[-2], k.shape[-2])
    scores, overlap = k.new_zeros(shape), k.new_zeros(shape)
    scores.diagonal(dim1=-2, dim2=-1).copy_((q * k).sum(-1))
    before, after, total = _start(factor)
    for width, before_upper, after_lower in _levels(before, after, total):
        write = (lower(k, width) * after_lower).mT
        for x, result in ((q, scores), (k, overlap)):
            block = _block(result, width)
            block.copy_(torch.bmm(upper(x, width) * before_upper, write).view(block.shape))
    return Pairs(scores, overlap, before, after, _total(before, k))


def gradients(
    q: Tensor, k: Tensor, factor: Tensor, dscores: Tensor, doverlap: Tensor
) -> PairGradients:
    """Gradients through the pairs s < t; those of other pairs are left out."""
    dq, dread, dwrite = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(k)
    before, after, total = _start(factor)
    for width, before_upper, after_lower in _levels(before, after, total):
        write = lower(k, width) * after_lower
        ds = _block(dscores, width).flatten(0, 1)  # (blocks, L, L)
        do = _block(doverlap, width).flatten(0, 1)
        upper(dq, width).addcmul_(torch.bmm(ds, write), before_upper)
        upper(dread, width).addcmul_(torch.bmm(do, write), before_upper)
        dlower = torch.bmm(ds.mT, upper(q, width) * before_upper)
        dlower.baddbmm_(do.mT, upper(k, width) * before_upper)
        lower(dwrite, width).addcmul_(dlower, after_lower)
    return PairGradients(dq, dread, dwrite)


def _start(factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Products within blocks of one token: up to it, behind it, of all of it."""
    return factor.clone(), torch.ones_like(factor), factor.reshape(-1, 1, factor.shape[-1])


def _levels(before: Tensor, after: Tensor, total: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Width L of the halves, and the products within them that its pairs need, level by level; the
    products grow to those over the chunk, in place."""
    width = 1
    while width < before.shape[-2]:
        before_upper, after_lower = upper(before, width), lower(after, width)
        yield width, before_upper, after_lower
        first, second = total[0::2], total[1::2]  # (blocks, 1, K)
        before_upper.mul_(first)
        after_lower.mul_(second)
        total = first * second
        width *= 2


def _total(before: Tensor, k: Tensor) -> Tensor:
    """The product over each chunk, (M, B, H, K, 1)."""
    return before[..., -1, :, None].expand(*k.shape[:3], k.shape[-1], 1)


def _block(x: Tensor, width: int) -> Tensor:
    """Pairs of upper with lower halves of all blocks of 2 `width` tokens, a view
    (M B H, blocks, L, L) of (M, B, H, C, C)."""
    blocks = x.shape[-1] // (2 * width)
    split = x.flatten(0, 2).unflatten(1, (blocks, 2 * width)).unflatten(3, (blocks, 2 * width))
    return split.diagonal(dim1=1, dim2=3).movedim(-1, 1)[:, :, width:, :width]

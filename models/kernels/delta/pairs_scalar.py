"""Pairs of tokens within a chunk under one decay factor a token and head, or none.

With W_ts the product of the factors behind s up to t (`models.kernels.intra_scalar`),

    scores_ts = (q_t . k_s) W_ts  for s <= t        overlap_ts = (k_t . k_s) W_ts  for s < t
"""

from __future__ import annotations

from torch import Tensor

from models.kernels.delta.pairs_channel import PairGradients, Pairs
from models.kernels.intra_scalar import Weights
from models.kernels.passes import product


def pairs(q: Tensor, k: Tensor, weights: Weights) -> Pairs:
    """Products of all pairs of a chunk; q and k (M, B, H, C, K)."""
    scores = _masked(product(q, k.mT), weights, 0)
    overlap = _masked(product(k, k.mT), weights, -1)
    return Pairs(scores, overlap, weights.before, weights.after, weights.carry)


def gradients(
    q: Tensor, k: Tensor, weights: Weights, dscores: Tensor, doverlap: Tensor
) -> PairGradients:
    """Gradients through the pairs s < t; those of other pairs are left out."""
    dscores = _masked(dscores, weights, -1)
    doverlap = _masked(doverlap, weights, -1)
    dwrite = product(dscores.mT, q)
    dwrite.flatten(0, 2).baddbmm_(doverlap.mT.flatten(0, 2), k.flatten(0, 2))
    return PairGradients(product(dscores, k), product(doverlap, k), dwrite)


def _masked(x: Tensor, weights: Weights, diagonal: int) -> Tensor:
    """x times the weights, in place, and zero where s - t > diagonal."""
    if weights.pair is not None:
        x.mul_(weights.pair)
        if diagonal == weights.diagonal:
            return x
    return x.tril_(diagonal)

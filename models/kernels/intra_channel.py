"""Within a chunk: one decay factor a token, head and key channel.

The weight of a pair s < t, the product of the factors f after s up to t, is a vector over the
channels, and no matrix product over whole chunks can form it: P_t / P_s overflows. Instead every
pair is split at one boundary between s and t, where both sides are products of factors, never
quotients, and stay within [0, 1]. A chunk is halved, its halves are halved, and so on:

    level L = 1, 2, 4, ..., C/2:  t in the upper half, s in the lower half of one block of 2L tokens
    o_t += sum_s ((P^L_t * q_t) . (R^L_s * k_s)) v_s

P^L_t is the product from the start of t's half up to t, and R^L_s the product behind s up to the
end of s's half. Each pair belongs to exactly one level. From one level to the next P and R grow by
one multiplication with the other half's total, so that no logarithm, no exponential and no
difference of sums occurs: factors of exactly 0 and of any strength are exact to rounding. After
the last level P and R span the chunk, as the read and the write of the state need them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Forward(NamedTuple):
    o: Tensor
    """Part of o that comes from the tokens of its chunk, (M, B, H, C, V)."""
    read: Tensor
    """q times the product up to and including its token, (M, B, H, C, K)."""
    write: Tensor
    """k times the product behind its token, (M, B, H, C, K)."""
    carry: Tensor
    """Product over the chunk, (M, B, H, K, 1)."""


class Backward(NamedTuple):
    dq: Tensor
    dk: Tensor
    dv: Tensor
    before: Tensor
    """Product up to and including each token, (M, B, H, C, K)."""
    after: Tensor
    """Product behind each token, (M, B, H, C, K)."""
    carry: Tensor
    """Product over the chunk, (M, B, H, K, 1)."""


def forward(q: Tensor, k: Tensor, v: Tensor, factor: Tensor) -> Forward:
    """Sum over the levels of the module docstring; all arguments (M, B, H, C, ...)."""
    read, write, total = q * factor, k.clone(), factor.reshape(-1, 1, factor.shape[-1])
    o = (q * k).sum(-1, keepdim=True) * v  # pairs t = s
    width = 1
    while width < q.shape[-2]:
        read_upper, write_lower = upper(read, width), lower(write, width)
        scores = torch.bmm(read_upper, write_lower.mT)  # (blocks, L, L)
        upper(o, width).add_(_product(scores, lower(v, width)))
        total_lower, total_upper = total[0::2], total[1::2]  # (blocks, 1, K)
        read_upper.mul_(total_lower)
        write_lower.mul_(total_upper)
        total = total_lower * total_upper
        width *= 2
    return Forward(o, read, write, total.view(*q.shape[:3], q.shape[-1], 1))


def backward(q: Tensor, k: Tensor, v: Tensor, factor: Tensor, do: Tensor) -> Backward:
    """Gradients through the pairs s < t of `forward`'s o, and the products over the chunk."""
    before, after, total = factor.clone(), torch.ones_like(k), factor.reshape(-1, 1, k.shape[-1])
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    width = 1
    while width < q.shape[-2]:
        before_upper, after_lower = upper(before, width), lower(after, width)
        do_upper = upper(do, width)
        read, write = upper(q, width) * before_upper, lower(k, width) * after_lower
        scores = torch.bmm(read, write.mT)  # (blocks, L, L)
        dscores = torch.bmm(do_upper, lower(v, width).mT)
        upper(dq, width).addcmul_(_product(dscores, write), before_upper)
        lower(dk, width).addcmul_(_product(dscores.mT, read), after_lower)
        lower(dv, width).add_(_product(scores.mT, do_upper))
        total_lower, total_upper = total[0::2], total[1::2]  # (blocks, 1, K)
        before_upper.mul_(total_lower)
        after_lower.mul_(total_upper)
        total = total_lower * total_upper
        width *= 2
    return Backward(dq, dk, dv, before, after, total.view(*q.shape[:3], q.shape[-1], 1))


def _product(scores: Tensor, rows: Tensor) -> Tensor:
    """(blocks, L, L) @ (blocks, L, D). Batched products of tiny matrices cost more in calls than
    in arithmetic, so the two lowest levels are sums of scaled rows."""
    if scores.shape[-1] > 2:
        return torch.bmm(scores, rows)
    result = scores[..., :1] * rows[:, :1]
    return result.addcmul_(scores[..., 1:], rows[:, 1:]) if scores.shape[-1] == 2 else result


def upper(x: Tensor, width: int) -> Tensor:
    """Later halves of all blocks of 2 `width` tokens, (blocks, width, D), a view."""
    return x.view(-1, 2, width, x.shape[-1])[:, 1]


def lower(x: Tensor, width: int) -> Tensor:
    """Earlier halves of all blocks of 2 `width` tokens, (blocks, width, D), a view."""
    return x.view(-1, 2, width, x.shape[-1])[:, 0]

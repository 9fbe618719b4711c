"""Within a chunk: one decay factor a token and head, a constant a head, or none.

With G_t the sum of the log decays of the chunk up to t, the pairs s <= t weigh

    W_ts = exp(G_t - G_s)        o_t += sum_{s <= t} (q_t . k_s) W_ts v_s

(the 1-semiseparable mask of arXiv 2405.21060). G is accumulated in float64: a difference of
float32 sums would lose what matters after a strong decay. The exponents of pairs s > t, which
are positive, are cut to 0 before exp, and the pairs are dropped after it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from models.kernels.layout import Layout

FLOOR = -1e3
"""Nats a step below which a factor is 0 in every floating-point format; -inf would make
differences of sums undefined."""
EXACT_SPAN = 64.0
"""Nats in a chunk up to which differences of float32 sums are good to 4e-6, half a unit in 64."""


class Weights(NamedTuple):
    """Products of decay factors, all at most 1. None stands for 1, where there is no decay."""

    pair: Tensor | None
    """W, zero above the diagonal `diagonal`: broadcasts to (M, B, H, C, C)."""
    before: Tensor | None
    """Product up to and including the token: broadcasts to (M, B, H, C, 1)."""
    after: Tensor | None
    """Product from behind the token to the chunk's end: broadcasts to (M, B, H, C, 1)."""
    carry: Tensor | None
    """Product over the chunk: broadcasts to (M, B, H, 1, 1)."""
    diagonal: int
    """0: pairs s <= t count; -1: pairs s < t."""


def weights(cut: Layout, decay: Tensor | None, dtype: torch.dtype, diagonal: int = 0) -> Weights:
    """Weights for `decay`: None, (H,) or (B, T, H)."""
    if decay is None:
        return Weights(None, None, None, None, diagonal)
    decay = decay.double().clamp(min=FLOOR)
    if decay.ndim == 1:
        rate = decay.view(-1, 1)  # (H, 1)
        steps = torch.arange(1, cut.chunk + 1, dtype=torch.float64)
        sizes = torch.tensor([cut.chunk] if cut.full else cut.sizes, dtype=torch.float64)
        sizes = sizes.view(-1, 1, 1, 1)  # (1 or M, 1, 1, 1)
        up_to = (rate * steps)[None, None]  # (1, 1, H, C)
        behind = rate * (sizes - steps).clamp(min=0)  # (1 or M, 1, H, C)
        total = rate * sizes  # (1 or M, 1, H, 1)
    else:
        up_to = cut.fold(decay[..., None], torch.float64).squeeze(-1).cumsum(-1)  # (M, B, H, C)
        total = up_to[..., -1:]  # (M, B, H, 1)
        behind = total - up_to
    if dtype == torch.float32 and up_to.numel() and up_to.min() > -EXACT_SPAN:
        up_to = up_to.float()
    pair = (up_to[..., :, None] - up_to[..., None, :]).clamp_(max=0).to(dtype).exp_()
    return Weights(
        pair=pair.tril_(diagonal),
        before=up_to.exp().to(dtype)[..., None],
        after=behind.exp().to(dtype)[..., None],
        carry=total.exp().to(dtype)[..., None],
        diagonal=diagonal,
    )


def forward(q: Tensor, k: Tensor, v: Tensor, weights: Weights) -> Tensor:
    """The part of o that comes from the tokens of its chunk, (M, B, H, C, V)."""
    return _product(_masked(q, k, weights), v)


def backward(
    q: Tensor, k: Tensor, v: Tensor, weights: Weights, do: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `forward`: dq, dk, dv."""
    dscores = _masked(do, v, weights)
    dq, dk = _product(dscores, k), _product(dscores.mT, q)
    return dq, dk, _product(_masked(q, k, weights).mT, do)


def _masked(a: Tensor, b: Tensor, weights: Weights) -> Tensor:
    scores = _product(a, b.mT)
    return scores.tril_(weights.diagonal) if weights.pair is None else scores.mul_(weights.pair)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix products over all chunks: one batched call, whatever the strides of the matrices."""
    return torch.bmm(a.flatten(0, 2), b.flatten(0, 2)).unflatten(0, a.shape[:3])

"""Linear attention with decay over chunks of tokens: forward, and backward by hand.

Within a chunk let P_t be the product of the decay factors of its tokens up to and including t,
and R_s the product of those after s, up to its end. With S the state before the chunk,

    o_t = S^T (P_t * q_t) + sum_{s <= t} (q_t . (P_t / P_s) * k_s) v_s          read
    S'  = diag(P_C) S + sum_s (R_s * k_s) v_s^T                                 write

so that all work is matrix products over chunks, except the short loop that carries S. The ratio
P_t / P_s is never a quotient and never exceeds 1: `intra_scalar` and `intra_channel` form it for
one factor a head and for one factor a channel. (GLA, arXiv 2312.06635, section 4; Mamba-2, arXiv
2405.21060, section 6 for the scalar case.)

Backward runs the same loop from the end for dS. The decay's gradient needs no pass of its own: the
factor at token j scales every pair s < j <= t of its chunk, reads of S from t >= j, writes from
s < j and S itself, hence

    d decay_j = sum_{t >= j} (q_t * dq_t - k_t * dk_t) + sum_{s < j} k_s * dk'_s + P_C S . dS'

where dk' is the part of dk that comes through dS', and dq and dk leave out that part and the
pairs t = s, which no factor scales. What is left out would cancel, and leave its rounding, where
a strong decay makes the rest small.

All tensors are folded (`layout`) and in the working dtype. A decay is a tensor of factors, one a
channel, (M, B, H, C, K), or the `Weights` of one a head or none.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.kernels import intra_channel, intra_scalar
from models.kernels.intra_scalar import Weights
from models.kernels.layout import Layout

Step = Callable[[int, Tensor, Tensor], None]
"""Writes a state after a chunk into its third argument (see `scan`)."""


def forward_pass(
    cut: Layout,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | Weights,
    initial_state: Tensor | None,
    slots: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """o (M, B, H, C, V), final state (N, H, K, V), state before each chunk (slots, B, H, K, V).

    Slots behind the last chunk are zero.
    """
    if isinstance(decay, Weights):
        o = intra_scalar.forward(q, k, v, decay)
        read, write, carry = times(q, decay.before), times(k, decay.after), decay.carry
    else:
        o, read, write, carry = intra_channel.forward(q, k, v, decay)
    update = product(write.mT, v)  # (M, B, H, K, V)
    states = update.new_empty((slots, *update.shape[1:]))
    states[cut.chunks :].zero_()
    final_state = scan(cut, _carried(update, carry), initial_state, states)
    add_product(o, read, states[: cut.chunks])
    return o, final_state, states


def backward_pass(
    cut: Layout,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | Weights,
    states: Tensor,
    do: Tensor,
    dfinal_state: Tensor | None,
    decay_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """dq, dk, dv, the gradient of the log decay of each token and dinitial_state (N, H, K, V).

    Args:
        cut, q, k, v, decay: as in `forward_pass`; weights have diagonal -1 if their gradient is
            wanted, else 0.
        states: of `forward_pass`.
        do: (M, B, H, C, V).
        dfinal_state: (N, H, K, V); None is zero.
        decay_gradient: compute the log decay's gradient, (M, B, H, C, K), summed over channels to
            (M, B, H, C, 1) in float64 for `Weights`; else None is returned for it.
    """
    states = states[: cut.chunks]
    if isinstance(decay, Weights):
        dq, dk, dv = intra_scalar.backward(q, k, v, decay, do)
        before, after, carry, apart = decay.before, decay.after, decay.carry, decay.diagonal < 0
    else:
        dq, dk, dv, before, after, carry = intra_channel.backward(q, k, v, decay, do)
        apart = True
    update = product(times(q, before).mT, do)  # (M, B, H, K, V)
    dstates = torch.empty_like(update)
    dinitial_state = scan(cut, _carried(update, carry), dfinal_state, dstates, reverse=True)
    add_product(dv, times(k, after), dstates)
    dwrite = times(product(v, dstates.mT), after)  # (M, B, H, C, K)
    dq.add_(times(product(do, states.mT), before))
    ddecay = None
    if decay_gradient and carry is not None:
        ddecay = (q * dq).sub_(k * dk)  # (M, B, H, C, K)
        through = k * dwrite  # (M, B, H, C, K)
        over = (carry * states).mul_(dstates).sum(-1)[..., None, :]  # (M, B, H, 1, K)
        if isinstance(decay, Weights):
            ddecay, through, over = (x.sum(-1, True).double() for x in (ddecay, through, over))
        ddecay = sum_from(ddecay).add_(sum_before(through)).add_(over)
    dk.add_(dwrite)
    if apart:
        dscores = (do * v).sum(-1, keepdim=True)  # (M, B, H, C, 1)
        dq.addcmul_(dscores, k)
        dk.addcmul_(dscores, q)
        dv.addcmul_((q * k).sum(-1, keepdim=True), do)
    return dq, dk, dv, ddecay, dinitial_state


def _carried(update: Tensor, carry: Tensor | None) -> Step:
    """The step X <- carry * X + update of each chunk; update (M, B, H, K, V), carry broadcasts to
    (M, B, H, K, 1), None is 1."""

    def step(chunk: int, x: Tensor, after: Tensor) -> None:
        if carry is None:
            torch.add(update[chunk], x, out=after)
        else:
            torch.addcmul(update[chunk], x, carry[chunk if len(carry) > 1 else 0], out=after)

    return step


def scan(
    cut: Layout, step: Step, first: Tensor | None, before: Tensor, reverse: bool = False
) -> Tensor:
    """Carry states X across the chunks of each sequence.

    Args:
        cut: the chunks.
        step: writes X after a chunk, given the chunk's number and X before it, (rows, H, K, V).
        first: X before the first chunk (after the last one in reverse), (N, H, K, V); None is 0.
        before: receives X before each chunk in the order of the walk, (M or more, B, H, K, V).
        reverse: go from the last chunk to the first.

    Returns:
        X at the end of the walk, (N, H, K, V).
    """
    packed = cut.places is not None
    last = before.new_empty((len(cut.segments) if packed else before.shape[1], *before.shape[2:]))
    for i, (start, end) in enumerate(cut.segments):
        rows = slice(i, i + 1) if packed else slice(None)
        walk = range(end - 1, start - 1, -1) if reverse else range(start, end)
        targets = [before[c] for c in walk] + [last[rows]]
        if first is None:
            targets[0].zero_()
        else:
            targets[0].copy_(first[rows])
        for c, x, target in zip(walk, targets[:-1], targets[1:], strict=True):
            step(c, x, target)
    return last


def times(x: Tensor, weight: Tensor | None) -> Tensor:
    """x * weight; a weight of None is 1."""
    return x if weight is None else x * weight


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b over all chunks, (M, B, H, ., .): one batched call."""
    return torch.bmm(a.flatten(0, 2), b.flatten(0, 2)).unflatten(0, a.shape[:3])


def add_product(x: Tensor, a: Tensor, b: Tensor, sign: float = 1.0) -> None:
    """x += sign * a @ b, in place."""
    x.flatten(0, 2).baddbmm_(a.flatten(0, 2), b.flatten(0, 2), alpha=sign)


def sum_from(x: Tensor) -> Tensor:
    """Sums over each token and those behind it in its chunk, (M, B, H, C, D), in place: block by
    block, doubling, as `intra_channel` does with products."""
    width = 1
    while width < x.shape[-2]:
        halves = x.view(-1, 2, width, x.shape[-1])
        halves[:, 0].add_(halves[:, 1, :1])
        width *= 2
    return x


def sum_before(x: Tensor) -> Tensor:
    """Sums over the tokens before each one in its chunk, (M, B, H, C, D)."""
    sums, total = torch.zeros_like(x), x.reshape(-1, 1, x.shape[-1])
    width = 1
    while width < x.shape[-2]:
        sums.view(-1, 2, width, x.shape[-1])[:, 1].add_(total[0::2])
        total = total[0::2] + total[1::2]
        width *= 2
    return sums

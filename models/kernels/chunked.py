"""Linear attention with decay in chunks of tokens: the CPU form, with its backward by hand.

Within a chunk let P_t be the product of the factors exp(decay) of its tokens up to and including
t, and R_s the product of those after s, up to its end. With S the state before the chunk,

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

Work is in float32 (float64 for float64 input), whatever the dtype of the tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.kernels import intra_channel, intra_scalar
from models.kernels.layout import Layout, chunk_bound, layout

CHUNK = 64
"""Tokens in a chunk. Fastest of 32, 64, 128 for head dimensions 32 to 128 on two cores."""


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor, Tensor]:
    """The recurrence of `models.kernels.reference`, with its arguments.

    Returns:
        o, (B, T, H, V) in v's dtype; the final state, (N, H, K, V); and for `backward` the state
        before each chunk, of `states_shape`. States are in the working dtype.

    Raises:
        ValueError: a decay above 0, or cu_seqlens that do not rise from 0 to T.
    """
    if decay is not None and decay.numel() and decay.max() > 0:
        raise ValueError(
            f"decay={decay.max().item():.4g} at its largest: log decays are at most 0, where "
            "nothing is forgotten; pass -abs(slope) or logsigmoid(x)."
        )
    dtype = torch.promote_types(q.dtype, torch.float32)
    cut = layout(q.shape[1], cu_seqlens, chunk)
    queries, keys, values = (cut.fold(x, dtype) for x in (q, k, v))  # (M, B, H, C, K or V)
    if decay is not None and decay.ndim == 4:
        factor = cut.fold(decay, dtype).exp_()
        o, read, write, carry = intra_channel.forward(queries, keys, values, factor)
    else:
        weights = intra_scalar.weights(cut, decay, dtype)
        o = intra_scalar.forward(queries, keys, values, weights)
        read, write, carry = (
            _times(queries, weights.before),
            _times(keys, weights.after),
            weights.carry,
        )
    update = _product(write.mT, values)  # (M, B, H, K, V)
    sequences = None if cu_seqlens is None else len(cut.segments)
    states = update.new_empty(states_shape(q, v, sequences, chunk))
    states[cut.chunks :].zero_()
    final_state = _scan(cut, update, carry, initial_state, states)
    _add_product(o, read, states[: cut.chunks])
    return cut.unfold(o, v.dtype), final_state, states


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    states: Tensor,
    do: Tensor,
    dfinal_state: Tensor | None,
    decay_gradient: bool = True,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients from those of o and of the final state.

    Args:
        q, k, v, decay, initial_state, cu_seqlens, chunk: as in `forward`.
        states: what `forward` returned.
        do: (B, T, H, V).
        dfinal_state: (N, H, K, V); None is zero.
        decay_gradient: compute the decay's gradient.

    Returns:
        dq, dk, dv, ddecay (None without a decay, or when not asked for) and dinitial_state (None
        without an initial state), each of its input's shape and dtype.
    """
    dtype = states.dtype
    cut = layout(q.shape[1], cu_seqlens, chunk)
    states = states[: cut.chunks]
    queries, keys, values, dout = (cut.fold(x, dtype) for x in (q, k, v, do))
    # Whether pairs t = s are left out at first (see the module docstring).
    apart = decay is not None and (decay.ndim == 4 or decay_gradient)
    if decay is not None and decay.ndim == 4:
        factor = cut.fold(decay, dtype).exp_()
        dq, dk, dv, before, after, carry = intra_channel.backward(
            queries, keys, values, factor, dout
        )
    else:
        weights = intra_scalar.weights(cut, decay, dtype, diagonal=-1 if apart else 0)
        dq, dk, dv = intra_scalar.backward(queries, keys, values, weights, dout)
        before, after, carry = weights.before, weights.after, weights.carry
    update = _product(_times(queries, before).mT, dout)  # (M, B, H, K, V)
    dstates = torch.empty_like(update)
    dinitial_state = _scan(cut, update, carry, dfinal_state, dstates, reverse=True)
    _add_product(dv, _times(keys, after), dstates)
    dwrite = _times(_product(values, dstates.mT), after)  # (M, B, H, C, K)
    dq.add_(_times(_product(dout, states.mT), before))
    ddecay = None
    if decay_gradient and decay is not None and carry is not None:
        rate = queries * dq - keys * dk  # (M, B, H, C, K)
        through = keys * dwrite  # (M, B, H, C, K)
        over = (carry * states * dstates).sum(-1)[..., None, :]  # (M, B, H, 1, K)
        if decay.ndim < 4:
            rate, through, over = (x.sum(-1, keepdim=True).double() for x in (rate, through, over))
        rate = _sum_from(rate).add_(_sum_before(through)).add_(over)  # (M, B, H, C, K or 1)
        ddecay = _decay_gradient(cut, decay, rate)
    dk.add_(dwrite)
    if apart:
        dscores = (dout * values).sum(-1, keepdim=True)  # (M, B, H, C, 1)
        dq.addcmul_(dscores, keys)
        dk.addcmul_(dscores, queries)
        dv.addcmul_((queries * keys).sum(-1, keepdim=True), dout)
    dinitial = None if initial_state is None else dinitial_state.to(initial_state.dtype)
    return (
        cut.unfold(dq, q.dtype),
        cut.unfold(dk, k.dtype),
        cut.unfold(dv, v.dtype),
        ddecay,
        dinitial,
    )


def _sum_from(x: Tensor) -> Tensor:
    """Sums over each token and those behind it in its chunk, (M, B, H, C, D), in place: block by
    block, doubling, as `intra_channel` does with products."""
    width = 1
    while width < x.shape[-2]:
        halves = x.view(-1, 2, width, x.shape[-1])
        halves[:, 0].add_(halves[:, 1, :1])
        width *= 2
    return x


def _sum_before(x: Tensor) -> Tensor:
    """Sums over the tokens before each one in its chunk, (M, B, H, C, D)."""
    sums, total = torch.zeros_like(x), x.reshape(-1, 1, x.shape[-1])
    width = 1
    while width < x.shape[-2]:
        sums.view(-1, 2, width, x.shape[-1])[:, 1].add_(total[0::2])
        total = total[0::2] + total[1::2]
        width *= 2
    return sums


def _decay_gradient(cut: Layout, decay: Tensor, rate: Tensor) -> Tensor:
    """The gradient of a decay of any shape from that of each token, (M, B, H, C, K or 1). Where
    the decay is -inf the factor is 0 and so is its derivative."""
    ddecay = cut.unfold(rate, rate.dtype)  # (B, T, H, K or 1)
    if decay.ndim < 4:
        ddecay = ddecay.squeeze(-1)
    if decay.ndim == 1:
        ddecay = ddecay.sum((0, 1))
    if decay.numel() and decay.min() == -torch.inf:
        ddecay.masked_fill_(decay == -torch.inf, 0.0)
    return ddecay.to(decay.dtype)


def states_shape(q: Tensor, v: Tensor, sequences: int | None, chunk: int = CHUNK) -> list[int]:
    """Shape of the states that `forward` saves; packed, the last few may be unused
    and are zero.

    Args:
        q, v, chunk: as in `forward`; only the shapes of q and v are read.
        sequences: number of packed sequences, or None.
    """
    batch, length, heads, key_dim = q.shape
    return [chunk_bound(length, chunk, sequences), batch, heads, key_dim, v.shape[-1]]


def _scan(
    cut: Layout,
    update: Tensor,
    carry: Tensor | None,
    first: Tensor | None,
    before: Tensor,
    reverse: bool = False,
) -> Tensor:
    """Carry states across the chunks of each sequence: X <- carry * X + update.

    Args:
        cut: the chunks.
        update: (M, B, H, K, V).
        carry: broadcasts to (M, B, H, K, 1); None is 1.
        first: X before the first chunk (after the last one in reverse), (N, H, K, V); None is 0.
        before: receives X before each chunk in the order of the walk, (M or more, B, H, K, V).
        reverse: go from the last chunk to the first.

    Returns:
        X at the end of the walk, (N, H, K, V).
    """
    packed = cut.places is not None
    last = update.new_empty((len(cut.segments) if packed else update.shape[1], *update.shape[2:]))
    for i, (start, end) in enumerate(cut.segments):
        rows = slice(i, i + 1) if packed else slice(None)
        walk = range(end - 1, start - 1, -1) if reverse else range(start, end)
        targets = [before[c] for c in walk] + [last[rows]]
        if first is None:
            targets[0].zero_()
        else:
            targets[0].copy_(first[rows])
        for c, x, target in zip(walk, targets[:-1], targets[1:], strict=True):
            if carry is None:
                torch.add(update[c], x, out=target)
            else:
                torch.addcmul(update[c], x, carry[c if len(carry) > 1 else 0], out=target)
    return last


def _times(x: Tensor, weight: Tensor | None) -> Tensor:
    return x if weight is None else x * weight


def _product(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a.flatten(0, 2), b.flatten(0, 2)).unflatten(0, a.shape[:3])


def _add_product(x: Tensor, a: Tensor, b: Tensor) -> None:
    x.flatten(0, 2).baddbmm_(a.flatten(0, 2), b.flatten(0, 2))

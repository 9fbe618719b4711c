"""Linear attention with decay in chunks of tokens: the CPU form, with its backward by hand.

Within a chunk let P_t be the product of the factors exp(decay) of its tokens up to and including
t, and R_s the product of those after s, up to its end. With S the state before the chunk,

    o_t = S^T (P_t * q_t) + sum_{s <= t} (q_t . (P_t / P_s) * k_s) v_s          read
    S'  = diag(P_C) S + sum_s (R_s * k_s) v_s^T                                 write

so that all work is matrix products over chunks, except the short loop that carries S. The ratio
P_t / P_s is never a quotient and never exceeds 1: `intra_scalar` and `intra_channel` form it for
one factor a head and for one factor a channel. (GLA, arXiv 2312.06635, section 4; Mamba-2, arXiv
2405.21060, section 6 for the scalar case.)

Backward runs the same loop from the end for dS. The decay's gradient needs no pass of its own: a
factor at token j scales every pair s < j <= t, hence

    d decay_j = sum_{t >= j} (q_t * dq_t - k_t * dk_t) + (the gradient through the chunk's end)

with dq and dk taken before the pairs t = s are added, which no factor scales; the two sums would
otherwise cancel against rounding where the decay is strong.

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
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    cut = layout(q.shape[1], cu_seqlens, chunk)
    queries, keys, values = (cut.fold(x, dtype) for x in (q, k, v))  # (M, B, H, C, K or V)
    if decay is not None and decay.ndim == 4:
        factor = cut.fold(decay, dtype).exp_()
        o, read, write, carry = intra_channel.forward(queries, keys, values, factor)
    else:
        weights = intra_scalar.weights(cut, decay, dtype)
        o = intra_scalar.forward(queries, keys, values, weights.pair)
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
    o.addcmul_((queries * keys).sum(-1, keepdim=True), values)
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
    if decay is not None and decay.ndim == 4:
        factor = cut.fold(decay, dtype).exp_()
        dq, dk, dv, before, after, carry = intra_channel.backward(
            queries, keys, values, factor, dout
        )
    else:
        pair, before, after, carry = intra_scalar.weights(cut, decay, dtype)
        dq, dk, dv = intra_scalar.backward(queries, keys, values, pair, dout)
    update = _product(_times(queries, before).mT, dout)  # (M, B, H, K, V)
    dstates = torch.empty_like(update)
    dinitial_state = _scan(cut, update, carry, dfinal_state, dstates, reverse=True)
    _add_product(dv, _times(keys, after), dstates)
    dwrite = _times(_product(values, dstates.mT), after)  # (M, B, H, C, K)
    dk.add_(dwrite)
    dq.add_(_times(_product(dout, states.mT), before))
    ddecay = None
    if decay_gradient and decay is not None and carry is not None:
        end = (keys * dwrite).sum(-2) + (carry * states * dstates).sum(-1)  # (M, B, H, K)
        rate = queries * dq - keys * dk  # (M, B, H, C, K)
        if decay.ndim < 4:
            end, rate = end.sum(-1, keepdim=True), rate.sum(-1, keepdim=True)
        rate = rate.flip(-2).cumsum(-2).flip(-2).add_(end[..., None, :])
        ddecay = cut.unfold(rate, decay.dtype if decay.ndim > 1 else dtype)  # (B, T, H, 1 or K)
        ddecay = ddecay if decay.ndim == 4 else ddecay.squeeze(-1)
        if decay.ndim == 1:
            ddecay = ddecay.sum((0, 1)).to(decay.dtype)
        ddecay.masked_fill_(decay == -torch.inf, 0.0)
    same = (dout * values).sum(-1, keepdim=True)  # pairs t = s
    dq.addcmul_(same, keys)
    dk.addcmul_(same, queries)
    dv.addcmul_((queries * keys).sum(-1, keepdim=True), dout)
    dinitial = None if initial_state is None else dinitial_state.to(initial_state.dtype)
    return (
        cut.unfold(dq, q.dtype),
        cut.unfold(dk, k.dtype),
        cut.unfold(dv, v.dtype),
        ddecay,
        dinitial,
    )


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

"""The delta rule over chunks of tokens: forward, and backward by hand.

Within a chunk let P_t be the product of the decay factors of its tokens up to and including t,
R_s that of those behind s up to its end, and W_ts = P_t / P_s, which is never a quotient
(`pairs_scalar`, `pairs_channel`) and never exceeds 1. What token s writes is k_s u_s^T, with u_s
its share of what the state misses:

    e_t = v_t - S^T (P_t * k_t) - sum_{s < t} overlap_ts u_s        u_t = beta_t e_t
    o_t = S^T (P_t * q_t) + sum_{s <= t} scores_ts u_s
    S'  = diag(P_C) S + sum_s (R_s * k_s) u_s^T

S is the state before the chunk. The e_t of a chunk are the solution of a triangular system, of
which the inverse J = (I + diag(beta) overlap)^-1 (C, C) is formed by substitution in the working
precision: U = J diag(beta) (V - (P * K) S). (The WY representation of arXiv 2406.06484, section
3.2; with decays arXiv 2412.06464, section 3.3, and 2510.26692, section 3.)

S' is then linear in S, and all that depends on neither is done for all chunks at once:

    S' = M S + N        Y = J^T (R * K)
    M = diag(P_C) - Y^T diag(beta) (P * K)        N = Y^T diag(beta) V

Backward runs dS = M^T dS' + (P * Q)^T dO - (P * K)^T diag(beta) Z0 from the last chunk to the
first, with Z0 = J^T scores^T dO the gradients of U that dO alone causes, and Z = Z0 + Y dS' all of
them. The gradient of V is F = diag(beta) Z, of beta E * Z, of the pairs dO U^T and -F U^T; keys
are read as queries are, with gradients -F in the place of dO. A decay's gradient is that of
`models.kernels.passes`, with both kinds of reads.

All tensors are folded (`models.kernels.layout`) and in the working dtype. A decay is a tensor of
factors, one a channel, (M, B, H, C, K), or the `Weights` of one a head or none.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from models.kernels.delta import pairs_channel, pairs_scalar
from models.kernels.delta.pairs_channel import PairGradients, Pairs
from models.kernels.intra_scalar import Weights
from models.kernels.layout import Layout
from models.kernels.passes import Step, add_product, product, scan, sum_before, sum_from, times


class _Chunks(NamedTuple):
    """What forward and backward need of the pairs of all chunks."""

    pairs: Pairs
    inverse: Tensor
    """J, (M, B, H, C, C)."""
    shared: Tensor
    """beta * P * k, (M, B, H, C, K)."""
    onward: Tensor
    """Y, (M, B, H, C, K)."""
    carry: Tensor
    """M, (M, B, H, K, K)."""


def forward_pass(
    cut: Layout,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    decay: Tensor | Weights,
    initial_state: Tensor | None,
    slots: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """o (M, B, H, C, V), final state (N, H, K, V), state before each chunk (slots, B, H, K, V).

    beta is (M, B, H, C, 1). Slots behind the last chunk are zero.
    """
    chunks = _prepare(q, k, beta, decay)
    shares = beta * v
    update = product(chunks.onward.mT, shares)  # (M, B, H, K, V)
    states = update.new_empty((slots, *update.shape[1:]))
    states[cut.chunks :].zero_()
    final_state = scan(cut, _through(chunks.carry, update), initial_state, states)
    before = states[: cut.chunks]
    add_product(shares, chunks.shared, before, sign=-1.0)
    writes = product(chunks.inverse, shares)  # U
    o = product(times(q, chunks.pairs.before), before)
    add_product(o, chunks.pairs.scores, writes)
    return o, final_state, states


class Backward(NamedTuple):
    dq: Tensor
    dk: Tensor
    dv: Tensor
    dbeta: Tensor
    """(M, B, H, C, 1)."""
    ddecay: Tensor | None
    """Of each token's log decay, (M, B, H, C, K), for `Weights` summed over channels to
    (M, B, H, C, 1) in float64; None without a decay or where it is not wanted."""
    dinitial_state: Tensor
    """(N, H, K, V)."""


def backward_pass(
    cut: Layout,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    decay: Tensor | Weights,
    states: Tensor,
    do: Tensor,
    dfinal_state: Tensor | None,
    decay_gradient: bool,
) -> Backward:
    """Gradients of `forward_pass`, from do (M, B, H, C, V) and dfinal_state (N, H, K, V), None for
    zero; other arguments as there, `states` its third result."""
    states = states[: cut.chunks]
    chunks = _prepare(q, k, beta, decay)
    scores, overlap, before, after, carry = chunks.pairs
    dwrites = product(chunks.inverse.mT, product(scores.mT, do))  # Z0
    update = product(times(q, before).mT, do)  # (M, B, H, K, V)
    add_product(update, chunks.shared.mT, dwrites, sign=-1.0)
    dstates = torch.empty_like(update)
    through = _through(chunks.carry.mT, update)
    dinitial_state = scan(cut, through, dfinal_state, dstates, reverse=True)
    add_product(dwrites, chunks.onward, dstates)  # Z

    missing = v.clone()
    add_product(missing, times(k, before), states, sign=-1.0)
    writes = product(chunks.inverse, beta * missing)  # U
    add_product(missing, overlap, writes, sign=-1.0)  # E
    dbeta = (missing * dwrites).sum(-1, keepdim=True)
    dv = beta * dwrites  # F

    dq, dread, dwrite = _pair_gradients(q, k, decay, do, dv, writes)
    dq.add_(times(product(do, states.mT), before))
    dread.sub_(times(product(dv, states.mT), before))
    donward = times(product(writes, dstates.mT), after)  # (M, B, H, C, K)
    ddecay = None
    if decay_gradient and carry is not None:
        ddecay = (q * dq).addcmul_(k, dread).addcmul_(k, dwrite, value=-1.0)  # (M, B, H, C, K)
        behind = k * donward
        over = (carry * states).mul_(dstates).sum(-1)[..., None, :]  # (M, B, H, 1, K)
        if isinstance(decay, Weights):
            ddecay, behind, over = (x.sum(-1, True).double() for x in (ddecay, behind, over))
        ddecay = sum_from(ddecay).add_(sum_before(behind)).add_(over)
    dself = (do * writes).sum(-1, keepdim=True)  # of scores_tt, (M, B, H, C, 1)
    dk = dread.add_(dwrite).add_(donward).addcmul_(dself, q)
    dq.addcmul_(dself, k)
    return Backward(dq, dk, dv, dbeta, ddecay, dinitial_state)


def _prepare(q: Tensor, k: Tensor, beta: Tensor, decay: Tensor | Weights) -> _Chunks:
    """What does not depend on values and states."""
    if isinstance(decay, Weights):
        pairs = pairs_scalar.pairs(q, k, decay)
    else:
        pairs = pairs_channel.pairs(q, k, decay)
    identity = torch.eye(k.shape[-2], dtype=k.dtype, device=k.device)
    inverse = torch.linalg.solve_triangular(
        (beta * pairs.overlap).flatten(0, 2), identity, upper=False, unitriangular=True
    ).view_as(pairs.overlap)
    shared = beta * times(k, pairs.before)
    onward = product(inverse.mT, times(k, pairs.after))
    carry = product(onward.mT, shared).neg_()
    diagonal = carry.diagonal(dim1=-2, dim2=-1)
    diagonal.add_(1.0 if pairs.carry is None else pairs.carry.squeeze(-1))
    return _Chunks(pairs, inverse, shared, onward, carry)


def _pair_gradients(
    q: Tensor, k: Tensor, decay: Tensor | Weights, do: Tensor, dv: Tensor, writes: Tensor
) -> PairGradients:
    """Through scores and overlap."""
    dscores, doverlap = product(do, writes.mT), product(dv, writes.mT).neg_()
    if isinstance(decay, Weights):
        return pairs_scalar.gradients(q, k, decay, dscores, doverlap)
    return pairs_channel.gradients(q, k, decay, dscores, doverlap)


def _through(carry: Tensor, update: Tensor) -> Step:
    """The step X <- M X + N of each chunk."""

    def step(chunk: int, x: Tensor, after: Tensor) -> None:
        flat = (t.flatten(0, 1) for t in (update[chunk], carry[chunk], x))
        torch.baddbmm(*flat, out=after.view(-1, *after.shape[2:]))

    return step

"""The delta rule inside one tile of tokens: the device functions of its kernels.

With P_t the product of the tile's decay factors up to and including t, R_s that of those behind s,
and W_ts that of those behind s up to t, for tokens t, s of one tile

    scores_ts = q_t . (W_ts * k_s)  for s <= t      overlap_ts = k_t . (W_ts * k_s)  for s < t

What token t finds missing, e_t, depends on what earlier tokens wrote, u_s = beta_s e_s. With S the
state before the tile, M_t = v_t - S^T (P_t * k_t) and beta for the diagonal matrix of its values,

    E = M - overlap beta E = M - Q (beta M)         Q = (I + overlap beta)^-1 overlap

and the gradients Z of what beta E is written with are those of U, dU, in the same way:

    Z = dU - overlap^T beta Z = dU - Q^T (beta dU)

So one strictly lower triangular matrix, the resolvent Q, serves both passes: there is no division
by beta, and the identity is never rounded. (In the WY representation of arXiv 2406.06484, section
3.2, the inverse itself is formed.) MODE is 0 without decays, 1 for one a head, 2 for one a channel.
No exponent is positive (`common`, `vector_tiles`). Tiles are (tokens, channels), float32; DOT is
the operand type of products, SOLVE their precision where Q is formed, in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from models.kernels.triton.common import log2_decay


@triton.jit
def head_sums(decay, row, decay_t, length):
    """Running sums of one decay a token, in bits, as (hi, lo); rows from length on add nothing."""
    hi, lo = log2_decay(tl.load(decay + row.to(tl.int64) * decay_t, mask=row < length, other=0.0))
    return tl.cumsum(hi, 0), tl.cumsum(lo, 0), tl.sum(hi, 0), tl.sum(lo, 0)


@triton.jit
def head_factors(decay, row, decay_t, length, MODE: tl.constexpr):
    """P and R, (BT, 1), and the tile's product, (1, 1), of one decay a token, or of none."""
    if MODE == 1:
        hi, lo, total_hi, total_lo = head_sums(decay, row, decay_t, length)
        before = tl.exp2(hi + lo)[:, None]
        behind = tl.exp2((total_hi - hi) + (total_lo - lo))[:, None]
        return before, behind, tl.full([1, 1], 0.0, tl.float32) + tl.exp2(total_hi + total_lo)
    else:
        one = tl.full([row.shape[0], 1], 1.0, tl.float32)
        return one, one, tl.full([1, 1], 1.0, tl.float32)


@triton.jit
def head_weights(decay, row, decay_t, length, BT: tl.constexpr, UPPER: tl.constexpr):
    """W (BT, BT) of one decay a token, zero above the diagonal; UPPER: its transpose."""
    t = tl.arange(0, BT)
    hi, lo, _, _ = head_sums(decay, row, decay_t, length)
    span = (hi[:, None] - hi[None, :]) + (lo[:, None] - lo[None, :])
    if UPPER:
        return tl.exp2(tl.where(t[:, None] <= t[None, :], -span, float("-inf")))
    else:
        return tl.exp2(tl.where(t[:, None] >= t[None, :], span, float("-inf")))


@triton.jit
def resolvent(overlap, share, BT: tl.constexpr, LEVELS: tl.constexpr, SOLVE: tl.constexpr):
    """Q = (I + overlap beta)^-1 overlap, strictly lower triangular, from `overlap` of that form.

    Diagonal blocks of 16 rows by substitution, all of them at once,

        Q_t = overlap_t - sum_{s < t} overlap_ts beta_s Q_s

    and blocks of twice as many rows from two halves and what lies between them, m:

        Q <- Q + (I - Q beta) m (I - beta Q)

    Numbers stay of the size of Q's own: nothing is raised to a power.
    """
    N: tl.constexpr = BT // 16
    b = tl.arange(0, N)
    same = b[:, None, None, None] == b[None, None, :, None]
    blocks = tl.where(same, tl.reshape(overlap, [N, 16, N, 16]), 0.0)
    found = tl.sum(blocks, 2)  # (N, 16, 16)
    step = found * tl.reshape(share, [N, 16])[:, None, :]
    i = tl.arange(0, 16)[None, :, None]
    for row in tl.range(1, 16):
        weights = tl.sum(tl.where(i == row, step, 0.0), 1)  # (N, 16)
        change = tl.sum(weights[:, :, None] * found, 1)
        found = tl.where(i == row, found - change[:, None, :], found)
    q = tl.reshape(tl.where(same, found[:, :, None, :], 0.0), [BT, BT])
    t = tl.arange(0, BT)
    differ = t[:, None] ^ t[None, :]
    for level in tl.static_range(4, LEVELS):
        m = tl.where((differ >> level) == 1, overlap, 0.0)
        m -= tl.dot(q, share[:, None] * m, input_precision=SOLVE)
        q += m - tl.dot(m * share[None, :], q, input_precision=SOLVE)
    return q

"""Per-channel decay inside one tile of tokens: the device functions of the vector kernels.

A decay enters as the factor f = exp(decay) in [0, 1] and stays a product of factors: no logarithm
is ever subtracted from another, so no exponent is positive, -inf (f = 0) needs no special case,
and products that underflow are the zeros they should be. With P(s, t) = f_{s+1} ... f_t the scores
of a tile are A_ts = sum_c q_tc k_sc P_c(s, t) for s < t, and q_t . k_t on the diagonal.

**Doubling.** Pairs s < t of a tile of 2^n tokens are sorted by the highest bit in which s and t
differ. Those that differ in bit p lie in one block of 2^(p+1) tokens, s in its first half and t in
its second, and the block's middle m splits the decay: P(s, t) = P(s, m) P(m, t). One matrix

    x_t = q_t F_t  (t in a second half),      x_s = k_s R_s  (s in a first half),

with F the product from the half's start up to and including t, and R the product after s up to the
half's end, therefore gives all these scores at once, as entries of x x^T: one tensor-core product
a level, of one operand, with every factor at most 1. The next level's F and R are this one's times
the total F R of the sibling half: one exchange of rows t and t ^ 2^p, no exponential.

x x^T is symmetric, so the transposed scores that dv wants are the same numbers, and the gradient
of a level needs one product as well: y = D x with D the symmetric matrix of dA_ts at the level's
pairs holds dq_t = F_t y_t in second halves and dk_s = R_s y_s in first halves.

**Gate (HGRN2, arXiv 2404.07904).** With GATE the factor comes from a logit x and a lower bound b:
f = b + (1 - b) sigmoid(x), and the key is k = 1 - f = (1 - b) sigmoid(-x), without cancellation.

Tiles are (tokens, channels). Arithmetic is float32; DOT is the operand type of products: bfloat16
for 16-bit inputs (float16 has too little range for scores and states), float32 otherwise.
"""

from __future__ import annotations

import triton
import triton.language as tl

from models.kernels.triton.common import LOG2E


@triton.jit
def load_tile(base, row, column, row_stride, column_stride, length, WIDTH: tl.constexpr):
    """Rows `row` and columns `column` of a matrix at `base`; zero from length and WIDTH on."""
    inside = row < length
    at = row[:, None].to(tl.int64) * row_stride + column[None, :] * column_stride
    return tl.load(base + at, mask=inside[:, None] & (column < WIDTH)[None, :], other=0.0)


@triton.jit
def store_tile(base, value, row, column, row_stride, length, WIDTH: tl.constexpr):
    """Inverse of `load_tile` for outputs, whose last dimension is contiguous."""
    at = row[:, None].to(tl.int64) * row_stride + column[None, :]
    inside = (row < length)[:, None] & (column < WIDTH)[None, :]
    tl.store(base + at, value.to(base.dtype.element_ty), mask=inside)


@triton.jit
def sigmoids(x):
    """sigmoid(x) and sigmoid(-x), each to full relative precision, from one exponential."""
    small = tl.exp2(-tl.abs(x) * LOG2E)
    large = 1.0 / (1.0 + small)
    small = small * large
    return tl.where(x > 0, large, small), tl.where(x > 0, small, large)


@triton.jit
def load_key(
    k, gate, low, row, column, k_row, k_column, gate_row, gate_column, length, K: tl.constexpr,
    GATE: tl.constexpr,
):  # fmt: skip
    """Keys and factors f of rows `row`, float32; 0 and 1 outside the sequence.

    With GATE both come from the logits at `gate` and the lower bounds `low` (BK,); `k` is not read.
    """
    x = load_tile(gate, row, column, gate_row, gate_column, length, K).to(tl.float32)
    if GATE:
        inside = (row < length)[:, None] & (column < K)[None, :]
        keep, write = sigmoids(x)
        free = 1.0 - low[None, :]
        key = tl.where(inside, free * write, 0.0)
        f = tl.where(inside, low[None, :] + free * keep, 1.0)
    else:
        key = load_tile(k, row, column, k_row, k_column, length, K).to(tl.float32)
        f = tl.exp2(x * LOG2E)
    return key, f


@triton.jit
def _append_sum(before1, all1, before2, all2):
    return all1 + before2, all1 + all2


@triton.jit
def _append_product(before1, all1, before2, all2):
    return all1 * before2, all1 * all2


@triton.jit
def running_sum(x, REVERSE: tl.constexpr):
    """Sums of the rows before each row, and of those up to it (REVERSE: after it, from it on).

    Scans pairs (all rows of a run but its last, all rows), so that no row is subtracted again.
    """
    return tl.associative_scan((tl.zeros_like(x), x), 0, _append_sum, reverse=REVERSE)


@triton.jit
def tile_update(
    q, k, gate, low, row0, column, q_row, q_column, k_row, k_column, gate_row, gate_column, length,
    K: tl.constexpr, BT: tl.constexpr, GATE: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """How tokens row0 ... row0 + BT - 1 change a state: S <- total * S + weights^T @ values.

    Forward: weights k_s P(s, end of tile). REVERSE, for the gradient of the state: q_t P(start, t).
    Decays given in nats are summed before one exponential, gated factors multiplied up.

    Returns:
        weights (BT, BK) and total (BK,), the product of the tile's factors, float32.
    """
    t = tl.arange(0, BT)
    last = (t == (BT - 1 if REVERSE else 0))[:, None]
    if GATE:
        key, f = load_key(
            k, gate, low, row0 + t, column, k_row, k_column, gate_row, gate_column, length, K, True
        )
        before, upto = tl.associative_scan(
            (tl.full(f.shape, 1.0, tl.float32), f), 0, _append_product, reverse=not REVERSE
        )
        total = tl.sum(tl.where(last, upto, 0.0), 0)
    else:
        key = load_tile(k, row0 + t, column, k_row, k_column, length, K).to(tl.float32)
        g = load_tile(gate, row0 + t, column, gate_row, gate_column, length, K).to(tl.float32)
        before, upto = running_sum(g * LOG2E, not REVERSE)
        total = tl.exp2(tl.sum(tl.where(last, upto, 0.0), 0))
        before = tl.exp2(before)
        upto = tl.exp2(upto)
    if REVERSE:
        query = load_tile(q, row0 + t, column, q_row, q_column, length, K).to(tl.float32)
        return query * upto, total
    else:
        return key * before, total


@triton.jit
def swap_halves(x, HALF: tl.constexpr):
    """Row t of the result is row t ^ HALF of x, bit for bit."""
    ROWS: tl.constexpr = x.shape[0]
    COLUMNS: tl.constexpr = x.shape[1]
    pairs = tl.reshape(x.to(tl.int32, bitcast=True), [ROWS // (2 * HALF), 2, HALF * COLUMNS])
    pairs = pairs ^ tl.xor_sum(pairs, 1, keep_dims=True)
    return tl.reshape(pairs, [ROWS, COLUMNS]).to(tl.float32, bitcast=True)


@triton.jit
def double(prefix, suffix, second, HALF: tl.constexpr):
    """F and R of blocks of HALF tokens become those of blocks of 2 HALF tokens."""
    sibling = swap_halves(prefix * suffix, HALF)
    return prefix * tl.where(second, sibling, 1.0), suffix * tl.where(second, 1.0, sibling)


@triton.jit
def add_scores(scores, q, k, f, LEVELS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """Add to `scores` the off-diagonal scores A_ts of a tile of 2^LEVELS tokens, at (t, s), (s, t).

    Returns:
        scores (BT, BT); prefix (BT, BK), products from the tile's start up to and including each
        token; suffix (BT, BK), products after each token up to the tile's end.
    """
    t = tl.arange(0, 1 << LEVELS)
    differ = t[:, None] ^ t[None, :]
    prefix = f
    suffix = tl.full(f.shape, 1.0, tl.float32)
    for level in tl.static_range(LEVELS):
        second = ((t >> level) & 1 == 1)[:, None]
        x = tl.where(second, q * prefix, k * suffix).to(DOT)
        gram = tl.dot(x, tl.trans(x), input_precision=PRECISION)
        scores += tl.where((differ >> level) == 1, gram, 0.0)
        prefix, suffix = double(prefix, suffix, second, 1 << level)
    return scores, prefix, suffix

"""Linear attention over a sequence split across processes (LASP-2, arXiv 2502.07563).

Rank r of a process group holds the r-th run of consecutive tokens of every row of the batch. What
it needs of the tokens before them is one state, and a state passes through a rank as

    S_r = D_r S_{r-1} + U_r

with U_r the state that rank r's tokens write into an empty one and D_r the product of all its
decay factors (one a head, or one a head and key channel). So

1. each rank runs its own tokens on an empty state: o and U_r;
2. ONE all-gather of (U_r, D_r), whose size does not depend on the number of tokens;
3. each rank combines the states before it, S_{r-1} = U_{r-1} + D_{r-1} (U_{r-2} + ...), and adds
   S_{r-1}^T (P_t * q_t) to o, P_t the product of the factors of its tokens up to t.

Backward is the mirror image: ONE all-gather of the gradients of S_{r-1}, combined from the last
rank down. Everything else is autograd on each rank's own tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from models.kernels import operators
from models.kernels.call import Call, check
from models.kernels.lrpe import lrpe


def linear_attention_parallel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None = None,
    initial_state: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """`linear_attention` of one sequence a row, split over the ranks of `group` in their order.

    Args:
        q, k, v, decay: this rank's tokens, as in `linear_attention`; ranks may hold different
            numbers of them. A decay (H,) is the same on all ranks; each gets the gradient of its
            own tokens, to be summed over the group.
        initial_state: state before the whole sequence, (B, H, K, V); read on the first rank.
        group: processes; None is the default group.

    Returns:
        o for this rank's tokens, (B, T, H, V), and the state after them, (B, H, K, V): the whole
        sequence's final state on the last rank.

    Raises:
        RuntimeError: torch.distributed is not initialised.
        ValueError: as `linear_attention`.
    """
    if not dist.is_initialized():
        raise RuntimeError(
            "linear_attention_parallel needs process groups: call "
            "torch.distributed.init_process_group first, or linear_attention on one process."
        )
    call = Call(q, k, v, decay, initial_state if dist.get_rank(group) == 0 else None)
    check(call)
    o, state, _ = operators.linear_attention(*call)
    factors, total = _products(q, decay, state.dtype)
    before = _StateBefore.apply(state, total, group)
    assert isinstance(before, Tensor)
    read = q.to(state.dtype) if factors is None else q.to(state.dtype) * factors
    carried = torch.einsum("bthk,bhkv->bthv", read, before)
    state = state + (before if total is None else total * before)
    return o + carried.to(o.dtype), state


def cosine_attention_parallel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    initial_state: Tensor | None = None,
    position_offset: int = 0,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """`cosine_attention` of one sequence a row, split over the ranks of `group` in their order.

    Every rank must hold the same number of tokens T, since rank r rotates by the positions from
    `position_offset` + r T; states carry absolute phases and combine as they are. Other arguments
    and the results are as in `linear_attention_parallel`.
    """
    start = position_offset + (dist.get_rank(group) if dist.is_initialized() else 0) * q.shape[1]
    positions = torch.arange(q.shape[1], device=q.device) + start
    q, k = lrpe(q, theta, positions), lrpe(k, theta, positions)
    return linear_attention_parallel(q, k, v, None, initial_state, group)


def _products(
    q: Tensor, decay: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """Products of the factors up to each token, (1 or B, T, H, K or 1), and of all of them,
    (1 or B, H, K or 1, 1); None without decay. Exponents are sums of numbers <= 0."""
    if decay is None:
        return None, None
    if decay.ndim == 1:
        steps = torch.arange(1, q.shape[1] + 1, device=q.device, dtype=dtype)
        # A floor, because -inf times 0 steps of nothing is undefined; exp of it is 0 anyway.
        rate = decay.to(dtype).clamp(min=-1e4)
        up_to = (steps[:, None] * rate)[None, :, :, None]  # (1, T, H, 1)
        total = (q.shape[1] * rate)[None, :, None, None]  # (1, H, 1, 1)
        return up_to.exp(), total.exp()
    rates = decay.to(dtype) if decay.ndim == 4 else decay.to(dtype)[..., None]
    return rates.cumsum(1).exp(), rates.sum(1).exp()[..., None]


class _StateBefore(torch.autograd.Function):
    """The state before this rank's tokens from what every rank writes and how much it keeps."""

    @staticmethod
    def forward(
        ctx: Any, written: Tensor, total: Tensor | None, group: dist.ProcessGroup | None
    ) -> Tensor:
        """written: U_r, (B, H, K, V); total: D_r, broadcasts to it, or None for 1."""
        rank = dist.get_rank(group)
        parts = [written] if total is None else [written, total]
        gathered = _all_gather(torch.cat([x.reshape(-1) for x in parts]), group)
        states = gathered[:, : written.numel()].view(-1, *written.shape)
        totals = None
        if total is not None:
            totals = gathered[:, written.numel() :].reshape(-1, *total.shape)
        before = torch.zeros_like(written)
        for r in range(rank):
            before = states[r] + (before if totals is None else totals[r] * before)
        ctx.group, ctx.rank = group, rank
        ctx.save_for_backward(totals, before)
        return before

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """One all-gather of dS_{r-1}; dU_r sums what later ranks make of it."""
        totals, before = ctx.saved_tensors
        gathered = _all_gather(grads[0].reshape(-1), ctx.group).view(-1, *before.shape)
        dwritten = torch.zeros_like(before)
        for r in range(len(gathered) - 1, ctx.rank, -1):
            dwritten = gathered[r] + (dwritten if totals is None else totals[r] * dwritten)
        dtotal = None
        if totals is not None:
            dtotal = (dwritten * before).sum_to_size(totals.shape[1:])
        return dwritten, dtotal, None


def _all_gather(flat: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """(n,) on every rank to (ranks, n)."""
    ranks = dist.get_world_size(group)
    gathered = flat.new_empty(ranks * flat.numel())
    dist.all_gather_into_tensor(gathered, flat.contiguous(), group=group)
    return gathered.view(ranks, -1)

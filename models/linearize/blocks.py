"""Blocks of w tokens, aligned to positions that are multiples of w, for windowed attention.

Sequences may be rows of a batch, lie packed in one row, and continue from states at any positions.
All of it becomes one buffer (R, L) whose slots hold the tokens so that every block of w slots is
one block of positions of one sequence:

    row:    [ cached tokens of the block before and of the begun block | new tokens ... | empty ]
    slot:     position - base,   base = (position of the first new token // w - 1) w,  0 if no state

Packed sequences follow one another at whole blocks. L depends on shapes alone, so that nothing here
waits for the device or breaks a compiled graph.

The window cache of a state is a ring of 2 w slots: position p is in slot p mod 2w.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers import Span


class Blocks(NamedTuple):
    """Where the tokens of a call are in the buffer. N sequences, R rows, n blocks a row."""

    window: int
    """Tokens w of a block."""
    blocks: int
    """Blocks n of a row."""
    slots: Tensor | None
    """Slot of each token, (R, T); None: token t is in slot t."""
    base: Tensor
    """Position of each sequence's first slot, (N,)."""
    end: Tensor
    """Position after each sequence's last token, (N,)."""
    start: Tensor
    """Block of its row where each sequence begins, (N,)."""
    row: Tensor
    """Row of each sequence, (N,)."""
    sequence: Tensor | None
    """Packed: sequence of each block, (n,)."""
    position: Tensor
    """Position of each slot, (R or 1, n, w)."""
    held: Tensor
    """Whether a slot holds a token, (R or 1, n, w)."""
    preceded: Tensor
    """Whether the block before is of the same sequence and holds tokens, (R or 1, n)."""


def make_blocks(span: Span, batch: int, length: int, window: int) -> Blocks:
    """The blocks of a call of `length` tokens in each of `batch` rows."""
    device, carried = span.positions.device, span.offset is not None
    if span.cu_seqlens is None:
        end = torch.full((batch,), length, device=device)
    else:
        end = span.cu_seqlens.to(torch.int64).diff()
    base = torch.zeros_like(end)
    if span.offset is not None:
        end = end + span.offset
        base = (span.offset // window - 1) * window
    if span.cu_seqlens is None:
        count = -(-length // window) + (2 if carried else 0)
        start, row, sequence = torch.zeros_like(base), torch.arange(batch, device=device), None
        slots = span.positions - base[:, None] if carried else None
        inside = torch.arange(count, device=device)[None]
        first, last = base[:, None] + inside * window, end[:, None]  # (N, n), (N, 1)
        if not carried:  # all rows are alike
            first, last = first[:1], last[:1]
    else:
        # A sequence of m tokens takes at most m // w + 1 blocks, with a cache two more.
        count = length // window + len(end) * (3 if carried else 1)
        blocks = (end - base + window - 1) // window
        after = blocks.clamp(min=2 if carried else 0).cumsum(0)  # (N,)
        start, row = F.pad(after[:-1], (1, 0)), torch.zeros_like(base)
        index = torch.arange(count, device=device)
        sequence = torch.searchsorted(after, index, right=True).clamp(max=len(end) - 1)  # (n,)
        assert span.sequence is not None
        slots = span.positions + (start * window - base)[span.sequence]
        inside = index - start[sequence]
        first, last = (base[sequence] + inside * window)[None], end[sequence][None]  # (1, n)
    position = first[..., None] + torch.arange(window, device=device)
    return Blocks(
        window=window,
        blocks=count,
        slots=slots,
        base=base,
        end=end,
        start=start,
        row=row,
        sequence=sequence,
        position=position,
        held=(position >= 0) & (position < last[..., None]),
        preceded=(first >= window) & (inside >= 1),
    )


def lay_out(x: Tensor, blocks: Blocks, ring: Tensor | None = None) -> Tensor:
    """The buffer (R, n, w, ...) of tokens x (R, T, ...) and of those cached in `ring` (N, 2w, ...).

    Slots that hold no token (`Blocks.held`) have any finite value.
    """
    length = blocks.blocks * blocks.window
    if blocks.slots is None:
        buffer = _pad_tokens(x, length - x.shape[1])
    else:
        rows = torch.arange(x.shape[0], device=x.device)[:, None]
        buffer = x.new_zeros(x.shape[0], length, *x.shape[2:])
        if ring is not None:
            index = torch.arange(ring.shape[1], device=x.device)
            old = _take(ring.to(x.dtype), (blocks.base[:, None] + index) % ring.shape[1])
            where = (blocks.start * blocks.window)[:, None] + index  # (N, 2w)
            buffer = buffer.index_put((blocks.row[:, None], where), old)
        buffer = buffer.index_put((rows, blocks.slots), x)
    return buffer.unflatten(1, (blocks.blocks, blocks.window))


def first_tokens(
    x: Tensor, count: int, span: Span, blocks: Blocks, old: Tensor | None = None
) -> Tensor:
    """The first `count` tokens of every sequence, (N, count, ...).

    Those of the call are in x (R, T, ...), earlier ones in `old` (N, count, ...); zeros where a
    sequence is shorter.
    """
    wanted = torch.arange(count, device=x.device)
    offset = torch.zeros_like(blocks.end) if span.offset is None else span.offset
    index = wanted - offset[:, None]  # (N, count): place among the sequence's tokens of the call
    new = (index >= 0) & (wanted < blocks.end[:, None])
    if span.cu_seqlens is not None:
        index = index + span.cu_seqlens[:-1, None]
    taken = x[blocks.row[:, None], index.clamp(0, x.shape[1] - 1)]
    new = new.view(*new.shape, *(1,) * (x.ndim - 2))
    return torch.where(new, taken, 0 if old is None else old.to(x.dtype))


def of_blocks(x: Tensor, blocks: Blocks) -> Tensor:
    """x (N, ...) of each block's sequence, (R, n or 1, ...)."""
    return x[:, None] if blocks.sequence is None else x[blocks.sequence][None]


def collect(buffer: Tensor, blocks: Blocks, length: int) -> Tensor:
    """Values of the call's tokens, (R, T, ...), from the buffer (R, n, w, ...)."""
    buffer = buffer.flatten(1, 2)
    if blocks.slots is None:
        return buffer[:, :length]
    rows = torch.arange(buffer.shape[0], device=buffer.device)[:, None]
    return buffer[rows, blocks.slots]


def last_block(blocks: Blocks) -> Tensor:
    """Block of its row with each sequence's last token, (N,)."""
    return blocks.start + (blocks.end - 1 - blocks.base) // blocks.window


def new_ring(buffer: Tensor, blocks: Blocks) -> Tensor:
    """The cache after the call, (N, 2w, ...), from the buffer (R, n, w, ...)."""
    size = 2 * blocks.window
    position = ring_positions(blocks.end - 1, blocks.window)  # (N, 2w)
    oldest = blocks.base.clamp(min=0)[:, None]
    slot = (position - blocks.base[:, None]).clamp(min=0) + (blocks.start * blocks.window)[:, None]
    values = buffer.flatten(1, 2)[blocks.row[:, None], slot]
    held = (position >= oldest).view(-1, size, *(1,) * (values.ndim - 2))
    return torch.where(held, values, 0)


def ring_positions(last: Tensor, window: int) -> Tensor:
    """Position in each slot of a ring that `last` (N,) was written to last, (N, 2w).

    Negative in slots not yet written.
    """
    slot = torch.arange(2 * window, device=last.device)
    return last[:, None] - (last[:, None] - slot) % (2 * window)


def before(x: Tensor, shift: int = 1) -> Tensor:
    """Block m - shift in the place of block m of x (R, n, ...); zeros where there is none."""
    return _pad_tokens(x[:, : max(x.shape[1] - shift, 0)], min(shift, x.shape[1]), front=True)


def sum_before(x: Tensor, sequence: Tensor | None, shift: int) -> Tensor:
    """Sum of blocks 0 .. m - shift of the same sequence in the place of block m of x (R, n, ...).

    Rows are summed one block after another; packed rows by doubling, log2 n passes, so that no
    sequence's sum is a difference of larger ones.
    """
    if sequence is None:
        return before(x.cumsum(1), shift)
    total, reach = x, 1
    while reach < x.shape[1]:
        total = total + _same(sequence, reach, x) * before(total, reach)
        reach *= 2
    return _same(sequence, shift, x) * before(total, shift)


def _same(sequence: Tensor, shift: int, x: Tensor) -> Tensor:
    """1 where block m - shift is of block m's sequence, else 0; broadcastable to x."""
    index = torch.arange(len(sequence), device=sequence.device)
    same = (sequence == sequence[(index - shift).clamp(min=0)]) & (index >= shift)
    return same.to(x.dtype).view(1, -1, *(1,) * (x.ndim - 2))


def _take(x: Tensor, index: Tensor) -> Tensor:
    """x (N, S, ...) at index (N, M) of its second dimension."""
    return x[torch.arange(x.shape[0], device=x.device)[:, None], index]


def _pad_tokens(x: Tensor, more: int, front: bool = False) -> Tensor:
    """x (R, S, ...) with `more` zeros after (or before) its second dimension."""
    widths = (more, 0) if front else (0, more)
    return F.pad(x, (0, 0) * (x.ndim - 2) + widths)

"""The key-value cache of softmax attention, and which of its keys a token sees.

A cache is {"k", "v"}, each (N, S, key-value heads, K): S slots for each of N sequences. The token
at position p stands in slot p; under a sliding window of w keys (arXiv 2310.06825) in slot p mod w,
so that there are never more than w slots and a token takes the place of one that nothing sees
again. After n tokens, slot s holds position

    n - 1 - (n - 1 - s) mod w,   and nothing where that is negative
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers import LayerState, Span


def held(lengths: Tensor, slots: int, window: int | None) -> Tensor:
    """Position in each slot (N, S) after `lengths` (N,) tokens; negative where there is none."""
    slot, last = torch.arange(slots, device=lengths.device), lengths[:, None] - 1
    if window is None:
        return torch.where(slot <= last, slot, -1)
    return last - (last - slot) % window


def visible(positions: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Whether a query at a position sees the key of another: there, not later, in the window."""
    seen = (keys >= 0) & (keys <= positions)
    return seen if window is None else seen & (keys > positions - window)


def causal(span: Span, window: int | None) -> bool:
    """Whether a token sees all tokens of its call that come before it, and no others."""
    plain = span.visible is None and span.sequence is None
    return plain and (window is None or window >= span.positions.shape[1])


def blocks(span: Span, window: int | None, most: int) -> Iterator[tuple[slice, slice]]:
    """The queries of a call, at most so many at a time, with the keys of it that they may see."""
    length = span.positions.shape[1]
    if span.visible is not None:  # a tree is short, and in any order
        most = length
    begins = _begins(span, range(0, length, most))
    for begin, first in zip(begins, range(0, length, most), strict=True):
        last = min(first + most, length)
        if window is not None and span.visible is None:
            begin = max(begin, first - window + 1)
        yield slice(first, last), slice(begin, last)


def _begins(span: Span, tokens: range) -> list[int]:
    """A token of the call before which these see none: of packed sequences each one's first.

    Reading it waits for the device, which the work that it saves is worth for long calls; compiled
    code cannot depend on it.
    """
    packed = span.sequence is not None and span.cu_seqlens is not None and span.visible is None
    if not packed or len(tokens) < 2 or torch.compiler.is_compiling():
        return [0] * len(tokens)
    assert span.sequence is not None
    assert span.cu_seqlens is not None
    owners = span.sequence[torch.tensor(tokens, device=span.sequence.device)]
    return span.cu_seqlens[owners].tolist()


def side_by_side(span: Span) -> tuple[Tensor, Tensor]:
    """Row and column of every packed token where the sequences stand in rows, (T,) each."""
    assert span.cu_seqlens is not None
    assert span.sequence is not None
    index = torch.arange(len(span.sequence), device=span.sequence.device)
    return span.sequence, index - span.cu_seqlens.to(torch.int64)[span.sequence]


def call_mask(
    span: Span, window: int | None, queries: slice = slice(None), keys: slice = slice(None)
) -> Tensor:
    """Which tokens of its call a token sees, (queries, keys) or of a tree (B, 1, queries, keys).

    Packed trees are not read like this (`side_by_side`).
    """
    if span.visible is not None:
        return span.visible[:, None, queries, keys]
    # All rows have consecutive positions, so that one mask of differences serves them.
    positions = span.positions[0]
    seen = visible(positions[queries, None], positions[keys], window)
    if span.sequence is None:
        return seen
    return seen & (span.sequence[queries, None] == span.sequence[keys])


def past_mask(span: Span, slots: int, window: int | None, queries: slice) -> Tensor:
    """Which slots of the cache a token sees: (N, 1, queries, S), or packed (queries, N S)."""
    assert span.offset is not None
    keys = held(span.offset, slots, window)  # (N, S)
    positions = span.positions[:, queries]
    if span.sequence is None:
        return visible(positions[..., None], keys[:, None], window)[:, None]
    number = torch.arange(len(keys), device=keys.device)[:, None]
    same = span.sequence[queries, None, None] == number
    return (same & visible(positions[0][:, None, None], keys, window)).flatten(1)


def prepend(cache: Tensor, new: Tensor, span: Span) -> Tensor:
    """Keys (or values) of the cache before those of the call: (B, S + T, ., K)."""
    past = cache if span.sequence is None else cache.flatten(0, 1)[None]
    return torch.cat((past.to(new.dtype), new), dim=1)


def extended(
    state: LayerState | None, new: LayerState, span: Span, window: int | None
) -> LayerState:
    """The cache after a call.

    Args:
        state: before the call; None: empty.
        new: keys and values of the call, each (B, T, ., K).
        span: positions and packing.
        window: keys that a query sees; None: all.
    """
    length = new["k"].shape[1]
    if state is None and span.sequence is None and (window is None or length <= window):
        return new  # every token stands in the slot of its position already
    if span.cu_seqlens is None:
        sequences, longest = new["k"].shape[0], length
    else:
        lengths = span.cu_seqlens.diff()
        sequences, longest = len(lengths), int(lengths.max())
    slots = longest if state is None else state["k"].shape[1] + longest
    slots = slots if window is None else min(slots, window)
    row, slot, token = _places(span, sequences, window)
    written = {}
    for name, values in new.items():
        size = values.shape[2:]
        old = values.new_zeros(sequences, 0, *size) if state is None else state[name]
        cache = F.pad(old.to(values.dtype), (0, 0, 0, 0, 0, slots - old.shape[1]))
        written[name] = cache.index_put((row, slot), values.flatten(0, 1)[token])
    return written


def _places(span: Span, sequences: int, window: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Row and slot of every token that stays, and its number among all tokens of the call."""
    positions = span.positions
    if span.sequence is None:
        positions = positions.expand(sequences, -1)  # (B, T)
        row = torch.arange(sequences, device=positions.device)[:, None].expand_as(positions)
        end = positions[:, -1:]
    else:
        row = span.sequence[None]  # (1, T)
        assert span.cu_seqlens is not None
        end = positions[:, span.cu_seqlens[1:].to(torch.int64) - 1][:, span.sequence]
    token = torch.arange(positions.numel(), device=positions.device)
    row, slot = row.flatten(), positions.flatten()
    if window is None:
        return row, slot, token
    stays = (positions > end - window).flatten()  # of tokens with one slot the last
    return row[stays], slot[stays] % window, token[stays]

"""Tokens in chunks: how the CPU kernels see a batch, or a row of packed sequences.

A chunk is a fixed number C of consecutive tokens of one sequence. Every sequence is cut into
chunks from its first token, and its last chunk is padded: with zeros in q, k and v, and with no
decay, so that padding neither reads, writes nor forgets. Chunks never straddle sequences; the M
chunks of all sequences lie behind one another, outermost, so that a state is one block of memory:

    (B, T, H, D)  --fold-->  (M, B, H, C, D)  --unfold-->  (B, T, H, D)
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The chunks of one call."""

    length: int
    """Tokens T in a row."""
    chunk: int
    """Tokens C in a chunk, a power of two."""
    segments: tuple[tuple[int, int], ...]
    """First chunk and end (exclusive) of each packed sequence; one segment of all chunks when
    nothing is packed. An empty sequence has an empty range."""
    sizes: tuple[int, ...]
    """Tokens in each chunk, without padding."""
    places: tuple[Tensor, Tensor] | None
    """Packed sequences: chunk of each token and its place there, (T,) each. None: token t is at
    place t % C of chunk t // C."""

    @property
    def chunks(self) -> int:
        """Chunks M of all sequences."""
        return len(self.sizes)

    @property
    def full(self) -> bool:
        """Whether no chunk is padded."""
        return self.chunks * self.chunk == self.length

    def fold(self, x: Tensor, dtype: torch.dtype, pad: float = 0.0) -> Tensor:
        """(B, T, H, D) to a new contiguous (M, B, H, C, D), padded with `pad`."""
        batch, _, heads, dim = x.shape
        shape = (self.chunks, batch, heads, self.chunk, dim)
        out = torch.empty(shape, dtype=dtype, device=x.device)
        if not self.full:
            out.fill_(pad)
        for target, source in self._views(out, x):
            target.copy_(source)
        if self.places is not None:
            chunk, place = self.places
            out[chunk, :, :, place] = x.transpose(0, 1).to(dtype)  # (T, B, H, D)
        return out

    def unfold(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """(M, B, H, C, D) to a new contiguous (B, T, H, D), padding dropped."""
        _, batch, heads, _, dim = x.shape
        if self.places is not None:
            chunk, place = self.places
            return x[chunk, :, :, place].transpose(0, 1).to(dtype).contiguous()
        out = torch.empty((batch, self.length, heads, dim), dtype=dtype, device=x.device)
        for source, target in self._views(x, out):
            target.copy_(source)
        return out

    def _views(self, folded: Tensor, flat: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Pairs of views of the same tokens, (m, B, H, c, D): full chunks, then the rest."""
        if self.places is not None:
            return []
        whole = self.length // self.chunk
        body = flat[:, : whole * self.chunk].unflatten(1, (whole, self.chunk))  # (B, m, C, H, D)
        pairs = [(folded[:whole], body.permute(1, 0, 3, 2, 4))]
        if rest := self.length % self.chunk:
            tail = flat[:, -rest:].transpose(1, 2)  # (B, H, rest, D)
            pairs.append((folded[whole, :, :, :rest], tail))
        return pairs


def chunk_length(length: int, chunk: int) -> int:
    """The power of two, at most `chunk`, that a row of `length` tokens is cut by."""
    result = 1
    while result < chunk and result < length:
        result *= 2
    return result


def chunk_bound(length: int, chunk: int, sequences: int | None) -> int:
    """Chunks of a row of `length` tokens, or the most that N packed sequences of it can have."""
    chunk = chunk_length(length, chunk)
    if sequences is None:
        return (length + chunk - 1) // chunk
    return length // chunk + sequences


def layout(length: int, cu_seqlens: Tensor | None, chunk: int) -> Layout:
    """Cut a row of `length` tokens into chunks of at most `chunk`, sequence by sequence.

    Raises:
        ValueError: cu_seqlens does not rise from 0 to `length`.
    """
    chunk = chunk_length(length, chunk)
    bounds: list[int] = [0, length] if cu_seqlens is None else cu_seqlens.tolist()
    check_bounds(bounds, length)
    lengths = [end - start for start, end in pairwise(bounds)]
    segments: list[tuple[int, int]] = []
    sizes: list[int] = []
    for n in lengths:
        first = len(sizes)
        sizes += [min(chunk, n - start) for start in range(0, n, chunk)]
        segments.append((first, len(sizes)))
    places = None
    if cu_seqlens is not None:
        counts = torch.tensor(lengths, dtype=torch.long)
        local = torch.arange(length) - torch.tensor(bounds[:-1]).repeat_interleave(counts)
        first = torch.tensor([start for start, _ in segments]).repeat_interleave(counts)
        places = (first + local // chunk, local % chunk)
    return Layout(
        length=length, chunk=chunk, segments=tuple(segments), sizes=tuple(sizes), places=places
    )


def check_bounds(bounds: list[int], length: int) -> None:
    """Raise ValueError unless the offsets of packed sequences rise from 0 to `length`."""
    falls = any(end < start for start, end in pairwise(bounds))
    if bounds[0] != 0 or bounds[-1] != length or falls:
        raise ValueError(
            f"cu_seqlens={bounds}: must start at 0, never fall, and end at the number of tokens, "
            f"{length}. Build it as the cumulative sum of the sequence lengths with a 0 in front."
        )

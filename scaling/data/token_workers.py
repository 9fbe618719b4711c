"""Tokenising batches of documents on every core, with the results in their order.

    batches -> [worker: hash, split, tokenise] x n -> tokens of each batch, in the same order

Twice as many batches as workers are under way, so that memory does not grow with the corpus, and no
worker waits for the slowest. Workers end with the process that started them.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from linscale.errors import LinscaleError
from scaling.data.tokenizers import Tokenizer, load_tokenizer
from scaling.system.orphans import die_with_parent

Results = Iterator[tuple["Batch", "Encoded"]]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A document with text, or a part of a long one."""

    raw: bytes
    """Its text in UTF-8, or its tokens as the file holds them, the end of the document included."""
    text_bytes: int
    """Of its text."""
    known: bool = False
    """Whether `raw` are tokens, which an earlier preparation had."""
    digest: bytes | None = None
    """SHA-256 of the text of the whole document; None: of this, which is all of it."""
    ends: bool = True
    """Whether the document ends with it."""


@dataclass(kw_only=True)
class Batch:
    """Consecutive pieces of one chunk."""

    pieces: list[Piece] = field(default_factory=list)
    read: int = 0
    """Documents taken from the corpus, the empty ones included."""
    ends_chunk: bool = False


@dataclass(frozen=True, kw_only=True)
class Part:
    """Pieces of one split, tokenised."""

    raw: bytes
    """Their tokens as the file holds them."""
    ends: NDArray[np.int64]
    """Tokens up to the end of each document that ends here."""
    digests: bytes
    """SHA-256 of each of these, one after another."""
    text_bytes: int


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A batch, tokenised."""

    train: Part
    validation: Part
    digests: bytes
    """SHA-256 of each document that ends in it, one after another."""


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Hashes, splits and tokenises batches, here or in a worker."""

    tokenizer: Tokenizer
    limit: int
    """First 64 bits of a digest from which on a document is for training."""
    dtype: str

    def __call__(self, pieces: list[Piece]) -> Encoded:
        little = np.dtype(self.dtype).newbyteorder("<")
        new = [piece.raw.decode() for piece in pieces if not piece.known]
        tokens = iter(self.tokenizer.encode_batch(new))
        end = np.array([self.tokenizer.eos_id])
        digests = [piece.digest or hashlib.sha256(piece.raw).digest() for piece in pieces]

        def written(piece: Piece) -> bytes:
            if piece.known:
                return piece.raw
            found = next(tokens)
            return (np.concatenate((found, end)) if piece.ends else found).astype(little).tobytes()

        raw = [written(piece) for piece in pieces]

        def part(held: bool) -> Part:
            chosen = [i for i, d in enumerate(digests) if held_out(d, self.limit) == held]
            sizes = np.cumsum([len(raw[i]) // little.itemsize for i in chosen], dtype=np.int64)
            ends = [pieces[i].ends for i in chosen]
            return Part(
                raw=b"".join(raw[i] for i in chosen),
                ends=sizes[np.array(ends, dtype=bool)],
                digests=b"".join(digests[i] for i in chosen if pieces[i].ends),
                text_bytes=sum(pieces[i].text_bytes for i in chosen),
            )

        ended = [d for d, piece in zip(digests, pieces, strict=True) if piece.ends]
        return Encoded(train=part(False), validation=part(True), digests=b"".join(ended))


def held_out(digest: bytes, limit: int) -> bool:
    """Whether a document with this SHA-256 is for validation."""
    return int.from_bytes(digest[:8], "big") < limit


@contextmanager
def encoded(
    batches: Iterator[Batch], encoder: Encoder, trained: Path, workers: int
) -> Iterator[Results]:
    """The batches with their tokens, in their order.

    Args:
        batches: of pieces of documents.
        encoder: what to do with them.
        trained: the `tokenizer.json` of a `bpe:` tokenizer, for the workers.
        workers: processes; 1: this one.

    Raises:
        LinscaleError: a worker was killed.
    """
    if workers == 1:
        yield ((batch, encoder(batch.pieces)) for batch in batches)
        return
    start = (os.getpid(), encoder.tokenizer.name, trained, encoder.limit, encoder.dtype)
    # A fork would copy the locks of this process's threads in whatever state they are.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start, start) as pool:
        try:
            yield _in_order(batches, pool, workers)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _in_order(batches: Iterator[Batch], pool: ProcessPoolExecutor, workers: int) -> Results:
    waiting: deque[tuple[Batch, Future[Encoded]]] = deque()
    try:
        for batch in batches:
            waiting.append((batch, pool.submit(_work, batch.pieces)))
            if len(waiting) > 2 * workers:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()
    except BrokenProcessPool:
        raise LinscaleError(
            "tokenising: a worker process was killed, as it happens when memory runs out. "
            "Everything up to the last finished chunk is kept; run the same command again, or "
            f"`linscale data prepare` with less than {workers} --workers."
        ) from None


_encode: Encoder | None = None
"""Of a worker process."""


def _start(parent: int, name: str, trained: Path, limit: int, dtype: str) -> None:
    global _encode
    die_with_parent(parent, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core for each worker
    _encode = Encoder(tokenizer=load_tokenizer(name, trained), limit=limit, dtype=dtype)


def _work(pieces: list[Piece]) -> Encoded:
    assert _encode is not None
    return _encode(pieces)

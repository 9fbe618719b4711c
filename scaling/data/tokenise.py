"""Tokenising a corpus into shards: the slow part of `scaling.data.tokenised`, made to be
killed.

1. A tokenizer that must be trained is trained first, on the training documents.
2. This process reads the documents and deals them out in batches of 4 MiB of text. Worker processes
   hash the documents, which decides the split, and tokenise them; this one writes what comes back,
   in the order of the corpus. A corpus of less than one chunk is not worth workers.
3. After each chunk of 256 MiB of text the shards get their names and the index is replaced. A
   process that goes on reads the corpus from the first document that the index does not count.

What a chunk holds is a function of the corpus alone, so that any number of workers and any sequence
of kills end with the same files. (Datasets are read through `datasets`. Its `map(num_proc=...)`
would do the work of step 2, but writes all tokens a second time, starts from nothing when it is
killed, and leaves processes that hold the lock: see `experiments/benchmarks/tokenising.py`.)

Reading takes a hundredth of the time of BPE, so that some forty workers share one reader.

A document of more than 131,072 characters passes in pieces (`scaling.data.text_pieces`), so
that memory holds its text once and the tokens of a few batches. One that an earlier preparation of
the cache knows is copied from there (`scaling.data.earlier`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from linscale.errors import LinscaleError
from scaling.data import tokenizers
from scaling.data.documents import Documents
from scaling.data.earlier import Earlier, Table
from scaling.data.reading_bar import ReadingBar, reading_bar
from scaling.data.settings import DataSettings, Work
from scaling.data.text_pieces import ANYWHERE, PIECE, cut
from scaling.data.token_store import TRAINED, Contents, Index, Shard, damage_error, dtype_for
from scaling.data.token_workers import (
    Batch,
    Encoded,
    Encoder,
    Part,
    Piece,
    encoded,
    held_out,
)
from scaling.data.tokenizers import Tokenizer, load_tokenizer
from scaling.system.devices import cores
from scaling.system.files import replacing

CHUNK_BYTES = 256 * 2**20
"""Text of the documents that become one shard of each split. Part of the format: another value is
another `token_store.FORMAT`."""
BATCH_BYTES = 4 * 2**20
"""Text that is tokenised at once."""

_Advance = Callable[[int], object]


class _Output:
    """The shard that is being written for one split; no file where no document comes."""

    def __init__(
        self, folder: Path, contents: Contents, split: str, dtype: str, table: Table | None
    ) -> None:
        self._contents = contents
        self._path = folder / f"{split}-{len(contents.shards):05d}.bin"
        self._partial = self._path.with_suffix(".bin.tmp")
        self._width = np.dtype(dtype).itemsize
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self._table = table
        self._tokens = self._documents = self._text_bytes = 0

    def write(self, part: Part) -> None:
        """Append tokenised documents."""
        if not part.raw:
            return
        if self._file is None:
            self._file = self._partial.open("wb")
        self._file.write(part.raw)
        self._digest.update(part.raw)
        if self._table is not None:
            self._table.add(part.digests, part.ends + self._tokens)
        self._tokens += len(part.raw) // self._width
        self._documents += len(part.ends)
        self._text_bytes += part.text_bytes

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        """Give the finished file its name and list it, or discard what was begun."""
        if self._file is None:
            return
        try:
            with self._file:
                if failed:
                    return
                self._file.flush()
                os.fsync(self._file.fileno())
            self._partial.replace(self._path)
            if self._table is not None:
                self._table.save(self._path)
        finally:
            self._partial.unlink(missing_ok=True)  # on a full disk this is what makes room
        self._contents.documents += self._documents
        self._contents.text_bytes += self._text_bytes
        self._contents.shards.append(
            Shard(file=self._path.name, tokens=self._tokens, sha256=self._digest.hexdigest())
        )


def _is_blank(text: str) -> bool:
    return not text or text.isspace()


def _known_pieces(
    tokens: NDArray[np.unsignedinteger], digest: bytes, text_bytes: int
) -> Iterator[Piece]:
    """A document by its tokens, in parts no longer than a batch."""
    step = BATCH_BYTES // tokens.itemsize
    for start in range(0, len(tokens), step):
        ends = start + step >= len(tokens)
        yield Piece(
            raw=tokens[start : start + step].tobytes(),
            text_bytes=text_bytes if ends else 0,
            known=True,
            digest=digest,
            ends=ends,
        )


class ShardWriter:
    """Tokenises a corpus into a folder, from where the index says the last process stopped."""

    def __init__(
        self,
        folder: Path,
        documents: Documents,
        data: DataSettings,
        source: dict[str, Any],
        index: Index | None,
        work: Work,
    ) -> None:
        """
        Args:
            folder: where to write; the caller holds its lock.
            documents: of the corpus.
            data: the settings.
            source: what the index says it was made from.
            index: the index that an earlier process left, not complete; None for a new folder.
            work: how; one process where there is no more than a chunk of text.
        """
        self._folder, self._corpus, self._data = folder, documents, data
        self._progress = work.progress
        self._limit = round(data.validation_fraction * 2**64)
        size = documents.total_bytes
        small = size is not None and size <= CHUNK_BYTES
        self._workers = work.workers or (1 if small else cores())
        for leftover in folder.glob("*.tmp"):
            leftover.unlink()
        self._tokenizer = self._load_tokenizer()
        self._index = index or Index(
            source=source,
            vocab_size=self._tokenizer.vocab_size,
            eos_id=self._tokenizer.eos_id,
            tokenizer_sha256=self._tokenizer.fingerprint,
            dtype=dtype_for(self._tokenizer.vocab_size),
        )
        if self._tokenizer.fingerprint != self._index.tokenizer_sha256:
            raise damage_error(folder, f"it was begun with another tokenizer {data.tokenizer}")
        self._earlier = Earlier(folder, self._index) if self._tokenizer.costly else None

    def _load_tokenizer(self) -> Tokenizer:
        """The tokenizer, trained first if it must be."""
        path = self._folder / TRAINED
        if self._data.tokenizer.startswith("bpe:") and not path.exists():
            with self._bar("reading for the tokenizer", 0) as bar:
                tokenizer = tokenizers.train_bpe(
                    self._data.tokenizer,
                    self._train_texts(bar.advance),
                    lambda: bar.goes_on(f"training {self._data.tokenizer}"),
                )
            with replacing(path) as file:
                file.write(tokenizer.to_json().encode())
        return load_tokenizer(self._data.tokenizer, path)

    def _train_texts(self, advance: _Advance) -> Iterator[str]:
        for number, text in enumerate(self._corpus.read(0)):
            digest, size = self._hash(text, number)
            advance(size)
            if not _is_blank(text) and not held_out(digest, self._limit):
                yield text

    def _hash(self, text: str, number: int) -> tuple[bytes, int]:
        """SHA-256 and bytes of a document's UTF-8, which is not made as a whole."""
        digest, size, start = hashlib.sha256(), 0, 0
        for part in cut(text, ANYWHERE):
            raw = self._encode(part, number, start)
            digest.update(raw)
            size += len(raw)
            start += len(part)
        return digest.digest(), size

    def _encode(self, text: str, number: int, start: int = 0) -> bytes:
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            raise LinscaleError(
                f"corpus {self._corpus.name}: document {number} holds a lone surrogate "
                f"({error.object[error.start]!a} at character {start + error.start}), which is not "
                "text; remove it or leave the document out."
            ) from None

    def run(self) -> Index:
        """Write every chunk that is missing; returns the complete index."""
        index = self._index
        batches = self._batches(self._corpus.read(index.documents_read), index.documents_read)
        seen = index.train.text_bytes + index.validation.text_bytes
        encoder = Encoder(tokenizer=self._tokenizer, limit=self._limit, dtype=index.dtype)
        with (
            self._bar("tokenising", seen) as bar,
            encoded(batches, encoder, self._folder / TRAINED, self._workers) as results,
        ):
            while self._write_chunk(results, bar.advance):
                index.save(self._folder)
        if index.train.documents + index.validation.documents == 0:
            empty = f", all {index.documents_read} without text" if index.documents_read else ""
            raise LinscaleError(
                f"corpus {self._corpus.name}: it holds no documents{empty}; check data.corpus."
            )
        index.bad_records = self._corpus.bad.count
        index.complete = True
        index.save(self._folder)
        return index

    def _batches(self, documents: Iterator[str], number: int) -> Iterator[Batch]:
        """All documents from `number` on; the last batch of a chunk says so."""
        batch, pending, size = Batch(), 0, 0
        for text in documents:
            batch.read += 1
            length = 0
            for piece in () if _is_blank(text) else self._pieces(text, number):
                batch.pieces.append(piece)
                pending += len(piece.raw)
                size += piece.text_bytes
                length += piece.text_bytes
                batch.ends_chunk = piece.ends and size >= CHUNK_BYTES
                if batch.ends_chunk or pending >= BATCH_BYTES:
                    yield batch
                    size = 0 if batch.ends_chunk else size
                    batch, pending = Batch(), 0
            number += 1
            self._index.longest_document = max(self._index.longest_document, length)
        if batch.read or batch.pieces:
            yield batch

    def _pieces(self, text: str, number: int) -> Iterator[Piece]:
        """A document with text: its tokens where they are known, else text; in parts if long."""
        long = len(text) >= 2 * PIECE
        digest = None
        if self._earlier or long:
            digest, size = self._hash(text, number)
            known = self._earlier.find(digest) if self._earlier else None
            if known is not None:
                yield from _known_pieces(known, digest, size)
                return
        start = 0
        for part in cut(text, self._tokenizer.cut_rule):
            raw = self._encode(part, number, start)
            start += len(part)
            ends = start == len(text)
            yield Piece(raw=raw, text_bytes=len(raw), digest=digest, ends=ends)

    def _write_chunk(self, results: Iterator[tuple[Batch, Encoded]], advance: _Advance) -> bool:
        """Write the next chunk; False when there is none left."""
        index, chain = self._index, bytes.fromhex(self._index.corpus_sha256)
        read = with_text = 0
        with (
            self._output("train") as train,
            self._output("validation") as validation,
        ):
            for batch, encoded in results:
                train.write(encoded.train)
                validation.write(encoded.validation)
                for start in range(0, len(encoded.digests), 32):
                    chain = hashlib.sha256(chain + encoded.digests[start : start + 32]).digest()
                read += batch.read
                with_text += len(encoded.digests) // 32
                advance(encoded.train.text_bytes + encoded.validation.text_bytes)
                if batch.ends_chunk:
                    break
        index.corpus_sha256 = chain.hex()
        index.documents_read += read
        index.empty_documents += read - with_text
        return read > 0

    def _output(self, split: str) -> _Output:
        table = Table() if self._tokenizer.costly else None
        contents = getattr(self._index, split)
        return _Output(self._folder, contents, split, self._index.dtype, table)

    def _bar(self, label: str, done: int) -> AbstractContextManager[ReadingBar]:
        if not self._progress:
            return nullcontext(ReadingBar())
        return reading_bar(self._corpus.name, label, self._corpus.total_bytes, done)

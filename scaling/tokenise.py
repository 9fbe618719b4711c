"""Tokenising a corpus into shards: the slow part of `scaling.shards.prepare`, made to be killed.

1. A tokenizer that must be trained is trained first, on the training documents.
2. Documents are hashed, which decides the split, and tokenised in batches of 4 MiB of text.
3. After each chunk of 256 MiB of text the shards get their names and the index is replaced. A
   process that goes on reads the corpus from the first document that the index does not count.

What a chunk holds is a function of the corpus alone, so that any sequence of kills ends with the
same files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from scaling import tokenizers
from scaling.config import DataConfig
from scaling.corpora import Corpus
from scaling.errors import LinscaleError
from scaling.files import replacing
from scaling.token_store import TRAINED, Contents, Index, Shard, damaged
from scaling.tokenizers import Tokenizer, load_tokenizer

CHUNK_BYTES = 256 * 2**20
"""Text of the documents that become one shard of each split. Part of the format: another value is
another `token_store.FORMAT`."""
BATCH_BYTES = 4 * 2**20
"""Text that is tokenised at once."""

_Advance = Callable[[int], object]
"""Moves a progress bar on by a number of bytes."""


class _Output:
    """The shard that is being written for one split; no file where no document comes."""

    def __init__(self, folder: Path, contents: Contents, split: str, dtype: str) -> None:
        self._contents = contents
        self._path = folder / f"{split}-{len(contents.shards):05d}.bin"
        self._partial = self._path.with_suffix(".bin.tmp")
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self._tokens = self._documents = self._text_bytes = 0

    def write(self, tokens: list[NDArray[np.int64]], documents: int, size: int) -> None:
        """Append documents of `size` bytes of text."""
        if not tokens:
            return
        if self._file is None:
            self._file = self._partial.open("wb")
        raw = np.concatenate(tokens).astype(self._dtype).tobytes()
        self._file.write(raw)
        self._digest.update(raw)
        self._tokens += len(raw) // self._dtype.itemsize
        self._documents += documents
        self._text_bytes += size

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
        finally:
            self._partial.unlink(missing_ok=True)  # on a full disk this is what makes room
        self._contents.documents += self._documents
        self._contents.text_bytes += self._text_bytes
        self._contents.shards.append(
            Shard(file=self._path.name, tokens=self._tokens, sha256=self._digest.hexdigest())
        )


class ShardWriter:
    """Tokenises a corpus into a folder, from where the index says the last process stopped."""

    def __init__(
        self,
        folder: Path,
        corpus: Corpus,
        data: DataConfig,
        source: dict[str, Any],
        index: Index | None,
        progress: bool,
    ) -> None:
        """
        Args:
            folder: where to write; the caller holds its lock.
            corpus: the documents.
            data: the settings.
            source: what the index says it was made from.
            index: the index that an earlier process left, not complete; None for a new folder.
            progress: show a progress bar on standard error.
        """
        self._folder, self._corpus, self._data, self._progress = folder, corpus, data, progress
        self._limit = round(data.validation_fraction * 2**64)
        for leftover in folder.glob("*.tmp"):
            leftover.unlink()
        self._tokenizer = self._load_tokenizer()
        self._index = index or Index(
            source=source,
            vocab_size=self._tokenizer.vocab_size,
            eos_id=self._tokenizer.eos_id,
            tokenizer_sha256=self._tokenizer.fingerprint,
            dtype="uint16" if self._tokenizer.vocab_size <= 2**16 else "uint32",
        )
        if self._tokenizer.fingerprint != self._index.tokenizer_sha256:
            raise damaged(folder, f"it was begun with another tokenizer {data.tokenizer}")

    def _load_tokenizer(self) -> Tokenizer:
        """The tokenizer, trained first if it must be."""
        path = self._folder / TRAINED
        if self._data.tokenizer.startswith("bpe:") and not path.exists():
            with self._bar("training the tokenizer", 0) as advance:
                tokenizer = tokenizers.train_bpe(self._data.tokenizer, self._train_texts(advance))
            with replacing(path) as file:
                file.write(tokenizer.to_json().encode())
        return load_tokenizer(self._data.tokenizer, path)

    def _train_texts(self, advance: _Advance) -> Iterator[str]:
        for number, text in enumerate(self._corpus.read(0)):
            raw = self._encode(text, number)
            advance(len(raw))
            if text.strip() and not self._held_out(hashlib.sha256(raw).digest()):
                yield text

    def _held_out(self, digest: bytes) -> bool:
        return int.from_bytes(digest[:8], "big") < self._limit

    def _encode(self, text: str, number: int) -> bytes:
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            raise LinscaleError(
                f"corpus {self._corpus.name}: document {number} holds a lone surrogate "
                f"({error.object[error.start]!a} at character {error.start}), which is not text; "
                "remove it or leave the document out."
            ) from None

    def run(self) -> Index:
        """Write every chunk that is missing; returns the complete index."""
        index = self._index
        documents = self._corpus.read(index.documents_read)
        seen = index.train.text_bytes + index.validation.text_bytes
        with self._bar("tokenising", seen) as advance:
            while self._write_chunk(documents, advance):
                index.save(self._folder)
        if index.train.documents + index.validation.documents == 0:
            empty = f", all {index.documents_read} without text" if index.documents_read else ""
            raise LinscaleError(
                f"corpus {self._corpus.name}: it holds no documents{empty}; check data.corpus."
            )
        index.complete = True
        index.save(self._folder)
        return index

    def _write_chunk(self, documents: Iterator[str], advance: _Advance) -> bool:
        """Tokenise the next documents, up to a chunk of text; False when there are none left."""
        index, chain = self._index, self._index.corpus_sha256
        read = size = empty = pending = 0
        batch: list[tuple[bool, str, int]] = []
        with (
            _Output(self._folder, index.train, "train", index.dtype) as train,
            _Output(self._folder, index.validation, "validation", index.dtype) as validation,
        ):
            for text in documents:
                raw = self._encode(text, index.documents_read + read)
                read += 1
                advance(len(raw))
                if not text.strip():
                    empty += 1
                    continue
                digest = hashlib.sha256(raw).digest()
                chain = hashlib.sha256(bytes.fromhex(chain) + digest).hexdigest()
                batch.append((self._held_out(digest), text, len(raw)))
                pending += len(raw)
                size += len(raw)
                if pending >= BATCH_BYTES:
                    self._tokenise(batch, train, validation)
                    batch, pending = [], 0
                if size >= CHUNK_BYTES:
                    break
            self._tokenise(batch, train, validation)
        index.corpus_sha256 = chain
        index.documents_read += read
        index.empty_documents += empty
        return read > 0

    def _tokenise(
        self, batch: list[tuple[bool, str, int]], train: _Output, validation: _Output
    ) -> None:
        encoded = self._tokenizer.encode_batch([text for _, text, _ in batch])
        end = np.array([self._tokenizer.eos_id])
        for held_out, output in ((False, train), (True, validation)):
            chosen = [i for i, (side, _, _) in enumerate(batch) if side == held_out]
            tokens = [part for i in chosen for part in (encoded[i], end)]
            output.write(tokens, documents=len(chosen), size=sum(batch[i][2] for i in chosen))

    @contextmanager
    def _bar(self, label: str, done: int) -> Iterator[_Advance]:
        """A progress bar in bytes of text, on standard error."""
        if not self._progress:
            yield lambda size: None
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        with Progress(
            TextColumn(f"{self._corpus.name}: {label}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        ) as bar:
            task = bar.add_task(label, total=self._corpus.total_bytes, completed=done)
            yield lambda size: bar.update(task, advance=size)

"""From a corpus to token shards on disk: once, restartably, by any number of processes.

1. The settings and the signature of the corpus name a folder under the cache. If its index is
   complete, that is all: nothing is read again.
2. Otherwise one process holds the folder's lock and tokenises; others wait for it.
3. A document is held out if the first 64 bits of its SHA-256, as a fraction, fall below
   `validation_fraction`: no matter where it stands or what else there is, and equal documents land
   on the same side.
4. A trained tokenizer sees the training documents only.
5. Every 256 MiB of text the shards are closed and the index is replaced. A process killed at any
   moment loses at most what came after; the next one ends with the same bytes.

The cache is `data_cache/` in the working directory, beside `runs/`; LINSCALE_CACHE names another.
The formats are described in `scaling.token_store`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from scaling import tokenizers
from scaling.config import DataConfig
from scaling.corpora import Corpus, open_corpus
from scaling.errors import LinscaleError
from scaling.files import replacing, write_json
from scaling.token_store import FORMAT, Contents, Index, Shard, Split, damaged, verify
from scaling.tokenizers import Tokenizer, load_tokenizer

CHUNK_BYTES = 256 * 2**20
"""Text between two points that a killed preparation continues from."""
BATCH_BYTES = 4 * 2**20
"""Text that is tokenised at once."""

TRAINED = "tokenizer.json"

_Advance = Callable[[int], object]
"""Moves a progress bar on by a number of bytes."""


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """A tokenised corpus, seen through blocks of one sequence length."""

    folder: Path
    """Where it lies."""
    data: DataConfig
    """The settings it was prepared for."""
    index: Index
    """What the folder holds."""
    train: Split
    """Training blocks, memory-mapped."""
    validation: NDArray[np.int64]
    """The fixed validation blocks, in their order: (n, T + 1)."""
    validation_sha256: str
    """Hash of their tokens."""

    @property
    def vocab_size(self) -> int:
        """Entries of the tokenizer's vocabulary."""
        return self.index.vocab_size

    @property
    def train_tokens(self) -> int:
        """Tokens of the training split, document ends included."""
        return self.index.train.tokens

    @property
    def validation_tokens(self) -> int:
        """Tokens of the validation split, document ends included."""
        return self.index.validation.tokens

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text for each token of the validation split: loss in bits per byte is
        loss / (ln 2 x bytes per token)."""
        return self.index.validation.text_bytes / self.validation_tokens

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the shards.

        Raises:
            LinscaleError: what is found under that name now is another tokenizer.
        """
        tokenizer = load_tokenizer(self.data.tokenizer, self.folder / TRAINED)
        if tokenizer.fingerprint != self.index.tokenizer_sha256:
            raise damaged(
                self.folder, f"tokenizer {self.data.tokenizer} is not the one it was made with"
            )
        return tokenizer

    def verify(self) -> None:
        """Read all shards and compare hashes; raises LinscaleError where one differs."""
        verify(self.folder, self.index)

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the data in a run record, as plain JSON."""
        index = self.index
        return {
            "corpus": self.data.corpus,
            "corpus_sha256": index.corpus_sha256,
            "tokenizer": self.data.tokenizer,
            "tokenizer_sha256": index.tokenizer_sha256,
            "vocab_size": index.vocab_size,
            "train_documents": index.train.documents,
            "validation_documents": index.validation.documents,
            "empty_documents": index.empty_documents,
            "train_tokens": self.train_tokens,
            "validation_tokens": self.validation_tokens,
            "validation_blocks": len(self.validation),
            "validation_sha256": self.validation_sha256,
            "bytes_per_token": self.bytes_per_token,
        }


def default_cache() -> Path:
    """LINSCALE_CACHE, or `data_cache` in the working directory."""
    return Path(os.environ.get("LINSCALE_CACHE") or "data_cache")


def prepare(
    data: DataConfig, cache_dir: Path | None = None, progress: bool = False
) -> PreparedData:
    """Tokenise the corpus of `data`, or open what was tokenised before.

    Args:
        data: corpus, tokenizer, split and sequence length.
        cache_dir: where prepared corpora lie; None for `default_cache()`.
        progress: show a progress bar on standard error.

    Raises:
        LinscaleError: the corpus or tokenizer is missing or unreadable, there is too little text
            for one training or validation block, the disk is full, or shards are damaged.
        ConfigError: a tokenizer that cannot exist.
    """
    if data.tokenizer.startswith("bpe:"):
        tokenizers.bpe_vocabulary(data.tokenizer)
    corpus = open_corpus(data)
    source = {
        "corpus": data.corpus,
        "text_field": data.text_field,
        "signature": corpus.signature,
        "tokenizer": data.tokenizer,
        "tokenizer_signature": tokenizers.signature(data.tokenizer),
        "validation_fraction": data.validation_fraction,
        "format": FORMAT,
    }
    folder = (cache_dir or default_cache()) / _folder_name(source)
    index = Index.load(folder)
    try:
        if index is None or not index.complete:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder, progress):
                index = Index.load(folder)  # another process may have written it meanwhile
                if index is None or not index.complete:
                    index = _Writer(folder, corpus, data, source, index, progress).run()
        return _open(folder, data, index)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise LinscaleError(
            f"prepared corpus {folder}: the disk is full ({error.strerror}). Everything up to the "
            "last finished chunk is kept; free some space, or set LINSCALE_CACHE to a folder on "
            "another disk, and run the same command again."
        ) from error


def _folder_name(source: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()
    label = f"{source['corpus']}-{source['tokenizer']}"
    return f"{re.sub(r'[^A-Za-z0-9._]+', '-', label)[:60].strip('-')}-{digest[:12]}"


@contextmanager
def _locked(folder: Path, progress: bool = False) -> Iterator[None]:
    """Hold the folder's lock; the kernel frees it when the process ends, however it ends."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress:
                print(f"{folder.name}: waiting for another process to tokenise", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _open(folder: Path, data: DataConfig, index: Index) -> PreparedData:
    length = data.sequence_length
    counts = (
        f"{index.train.documents} training and {index.validation.documents} validation documents"
    )
    if data.tokenizer != "bytes":
        counts += f", tokenizer {data.tokenizer}"
    train = Split(folder, index.train, index.dtype, length)
    if train.n_blocks == 0:
        raise LinscaleError(
            f"corpus {data.corpus}: its training split has {index.train.tokens} tokens ({counts}), "
            f"less than one sequence of data.sequence_length={length} and its target; shorten "
            "data.sequence_length or add text."
        )
    held_out = Split(folder, index.validation, index.dtype, length)
    if held_out.n_blocks == 0:
        raise LinscaleError(
            f"corpus {data.corpus}: its validation split has {index.validation.tokens} tokens "
            f"({counts}), less than one block of data.sequence_length={length} and its target; "
            f"raise data.validation_fraction (now {data.validation_fraction}), shorten "
            "data.sequence_length or add text."
        )
    validation = held_out.gather(_validation_blocks(folder, held_out, data.validation_blocks))
    return PreparedData(
        folder=folder,
        data=data,
        index=index,
        train=train,
        validation=validation,
        validation_sha256=hashlib.sha256(validation.astype("<i8").tobytes()).hexdigest(),
    )


def _validation_blocks(folder: Path, split: Split, most: int) -> list[int]:
    """The stored list of validation blocks; where there is none yet, evenly spread and stored."""
    path = folder / f"blocks-{split.sequence_length}-{most}.json"
    if not path.exists():
        count = min(most, split.n_blocks)
        with _locked(folder):
            write_json(path, {"blocks": [i * split.n_blocks // count for i in range(count)]})
    try:
        blocks = [int(b) for b in json.loads(path.read_text(encoding="utf-8"))["blocks"]]
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(folder, f"{path.name} cannot be read ({error})") from None
    if not blocks or not 0 <= min(blocks) <= max(blocks) < split.n_blocks:
        raise damaged(folder, f"{path.name} names blocks that do not exist")
    return blocks


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

    def close(self) -> None:
        """Give the finished file its name, and list it."""
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._partial.replace(self._path)
        self._contents.documents += self._documents
        self._contents.text_bytes += self._text_bytes
        self._contents.shards.append(
            Shard(file=self._path.name, tokens=self._tokens, sha256=self._digest.hexdigest())
        )


class _Writer:
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
        self._folder, self._corpus, self._data, self._progress = folder, corpus, data, progress
        self._limit = round(data.validation_fraction * 2**64)
        self._discard_partial()
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

    def _discard_partial(self) -> None:
        for path in self._folder.glob("*.tmp"):
            path.unlink()

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
            try:
                while self._write_chunk(documents, advance):
                    index.save(self._folder)
            except BaseException:
                self._discard_partial()  # on a full disk this is what makes room
                raise
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
        read = size = empty = 0
        outputs = {
            held_out: _Output(self._folder, contents, prefix, index.dtype)
            for held_out, contents, prefix in (
                (False, index.train, "train"),
                (True, index.validation, "validation"),
            )
        }
        batch: list[tuple[bool, str, int]] = []
        pending = 0
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
                self._tokenise(batch, outputs)
                batch, pending = [], 0
            if size >= CHUNK_BYTES:
                break
        self._tokenise(batch, outputs)
        for output in outputs.values():
            output.close()
        index.corpus_sha256 = chain
        index.documents_read += read
        index.empty_documents += empty
        return read > 0

    def _tokenise(self, batch: list[tuple[bool, str, int]], outputs: dict[bool, _Output]) -> None:
        encoded = self._tokenizer.encode_batch([text for _, text, _ in batch])
        end = np.array([self._tokenizer.eos_id])
        for held_out, output in outputs.items():
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

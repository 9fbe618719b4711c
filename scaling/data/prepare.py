"""From a corpus to token shards on disk: once, restartably, by any number of processes.

1. The settings and the signature of the corpus name a folder under the cache. If its index is
   complete, that is all: nothing is read again.
2. Otherwise one process holds the folder's lock and tokenises; others wait for it.
3. A document is held out if the first 64 bits of its SHA-256, as a fraction, fall below
   `validation_fraction`: no matter where it stands or what else there is, and equal documents land
   on the same side.
4. A trained tokenizer sees the training documents only.
5. `scaling.data.tokenise` does the work. Killed at any moment, it goes on from the last 256 MiB of
   text and ends with the same bytes.

The cache is `data_cache/` in the working directory, beside `runs/`; LINSCALE_CACHE names another.
With LINSCALE_REMOTE machines share what one of them has tokenised (`scaling.data.remote`).
The formats are described in `scaling.data.token_store`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.config import ConfigError
from scaling.config.run import DataConfig
from scaling.data import remote, tokenizers
from scaling.data.corpora import open_corpus
from scaling.data.mixture import is_mixture
from scaling.data.recall_tasks import is_task
from scaling.data.sampler import BlockOrder, Order
from scaling.data.token_store import FORMAT, TRAINED, Index, Source, Split, damaged, verify
from scaling.data.tokenise import ShardWriter
from scaling.data.tokenizers import Tokenizer, load_tokenizer
from scaling.system.claims import exclusive
from scaling.system.errors import LinscaleError
from scaling.system.files import write_json

LOCK = "lock"


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """A tokenised corpus, seen through blocks of one sequence length."""

    folder: Path
    """Where it lies."""
    data: DataConfig
    """The settings it was prepared for."""
    index: Index
    """What the folder holds."""
    train: Source
    """Training blocks, memory-mapped."""
    validation: NDArray[np.int64]
    """The fixed validation blocks, in their order: (n, T + 1), or (n, 2, T) of a task."""
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
        loss / (ln 2 x bytes per token).

        One constant of the data for all runs, however many blocks they are validated on. The blocks
        themselves may have a little more or less: of 64 blocks of 256 tokens of `kjv`, 0.4 % less
        with bpe:1024, 0.3 % more with bpe:8192, 0.002 % more in bytes. Comparisons of models and
        exponents of laws do not depend on it."""
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

    def check_rows(self, vocab_size: int) -> None:
        """Raises ConfigError when a model's embedding has fewer rows than there are tokens."""
        if vocab_size < self.vocab_size:
            raise ConfigError(
                f"model.vocab_size={vocab_size}: the tokenizer {self.data.tokenizer} has "
                f"{self.vocab_size} tokens; set model.vocab_size={self.vocab_size} or more."
            )

    def order(self, seed: int) -> Order:
        """The order in which a run of this seed reads the training blocks."""
        return BlockOrder(n_blocks=self.train.n_blocks, seed=seed)

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
    data: DataConfig,
    cache_dir: Path | None = None,
    progress: bool = False,
    workers: int | None = None,
) -> PreparedData:
    """Tokenise the corpus of `data`, or open what was tokenised before; of a task, nothing.

    Args:
        data: corpus, tokenizer, split and sequence length.
        cache_dir: where prepared corpora lie; None for `default_cache()`.
        progress: show a progress bar on standard error.
        workers: processes that tokenise; None for one on each core where it is worth it.

    Raises:
        LinscaleError: the corpus or tokenizer is missing or unreadable, there is too little text
            for one training or validation block, the disk is full, or shards are damaged.
        ConfigError: a tokenizer that cannot exist.
    """
    if is_task(data.corpus):
        from scaling.data.recall_data import prepare_task  # which builds on this module

        return prepare_task(data, cache_dir or default_cache())
    if is_mixture(data.corpus):
        from scaling.data.mixture_data import prepare_mixture

        return prepare_mixture(data, cache_dir or default_cache(), progress, workers)
    if data.corpus.startswith("instructions:"):
        from scaling.data.instructions import prepare_instructions

        return prepare_instructions(data, cache_dir or default_cache())
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
            wait = f"{folder.name}: waiting for another process to tokenise" if progress else ""
            with exclusive(folder / LOCK, wait):
                index = Index.load(folder)  # another process may have written it meanwhile
                if index is None or not index.complete:
                    index = remote.fetch(folder) or index
                if index is None or not index.complete:
                    index = ShardWriter(
                        folder, corpus, data, source, index, progress, workers
                    ).run()
        if remote.unpublished(folder):
            with exclusive(folder / LOCK):
                remote.publish(folder, index)
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
        with exclusive(folder / LOCK):
            write_json(path, {"blocks": [i * split.n_blocks // count for i in range(count)]})
    try:
        blocks = [int(b) for b in json.loads(path.read_text(encoding="utf-8"))["blocks"]]
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(folder, f"{path.name} cannot be read ({error})") from None
    if not blocks or not 0 <= min(blocks) <= max(blocks) < split.n_blocks:
        raise damaged(folder, f"{path.name} names blocks that do not exist")
    return blocks

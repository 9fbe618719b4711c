"""The data of a run: training blocks by number, the fixed validation blocks, and what they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import ConfigError
from scaling.data.sampler import BlockOrder, Order
from scaling.data.settings import DataSettings
from scaling.data.token_store import TRAINED, Index, Source, damage_error, verify, verify_changed
from scaling.data.tokenizers import Tokenizer, load_tokenizer


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """A corpus as tokens, seen through blocks of one sequence length."""

    folder: Path
    """Where it lies."""
    data: DataSettings
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

    @property
    def boundary(self) -> int | None:
        """Token at which a sequence falls into documents that do not see each other; None where it
        is read as one (`data.document_mask`)."""
        return self.index.eos_id if self.data.document_mask else None

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the shards.

        Raises:
            LinscaleError: what is found under that name now is another tokenizer.
        """
        tokenizer = load_tokenizer(self.data.tokenizer, self.folder / TRAINED)
        if tokenizer.fingerprint != self.index.tokenizer_sha256:
            raise damage_error(
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

    def verify_changed(self) -> None:
        """As `verify`, but only for shards that changed since they were last found right."""
        verify_changed(self.folder, self.index)

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the data in a run record, as plain JSON."""
        index = self.index
        revision = [s for s in index.source.get("signature", []) if isinstance(s, dict)]
        return {
            "corpus": self.data.corpus,
            "corpus_sha256": index.corpus_sha256,
            "tokenizer": self.data.tokenizer,
            "tokenizer_sha256": index.tokenizer_sha256,
            "vocab_size": index.vocab_size,
            "train_documents": index.train.documents,
            "validation_documents": index.validation.documents,
            "empty_documents": index.empty_documents,
            **({"bad_records": index.bad_records} if index.bad_records else {}),
            "train_tokens": self.train_tokens,
            "validation_tokens": self.validation_tokens,
            "validation_blocks": len(self.validation),
            "validation_sha256": self.validation_sha256,
            "bytes_per_token": self.bytes_per_token,
            **(revision[0] if revision else {}),
        }

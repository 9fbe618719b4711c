"""What every tokenizer can do."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class Tokenizer(ABC):
    """Text to token numbers in [0, vocab_size) and back."""

    name: str
    """The `data.tokenizer` it was made from."""
    vocab_size: int
    """Smallest size of an embedding table that has a row for each token."""
    eos_id: int
    """Token that ends a document."""
    fingerprint: str
    """SHA-256 of everything that decides an encoding."""
    cut_rule: re.Pattern[str] | None = None
    """Where a long text may be cut without changing its tokens (`scaling.data.text_pieces`); None:
    nowhere that is known."""
    costly: bool = True
    """Whether encoding costs more than finding a text among those that were encoded before."""
    prefix: tuple[int, ...] = ()
    """Tokens that a foreign model expects before every text (its beginning-of-sequence token)."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Token numbers of each text, without the end-of-document token."""

    @abstractmethod
    def decode(self, tokens: Sequence[int] | NDArray[np.integer]) -> str:
        """Text of the tokens, without document ends; bytes that are not UTF-8 become U+FFFD."""

    def encode(self, text: str) -> NDArray[np.int64]:
        """Token numbers of one text, without the end-of-document token."""
        return self.encode_batch([text])[0]

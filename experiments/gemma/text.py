"""Text for a real teacher: whole documents, some for scoring, the others for training.

    JSON-lines files (one {"text": ...} a line, as `experiments.corpora build` writes them)
    -> documents that fill a block, in the order of their hashes
    -> the first `SCORED`: one block each, from the document's beginning, for scoring alone
    -> the others: their first blocks, then their second blocks, and so on, for training

Every block begins with the token that begins a text, as this model needs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from linscale.errors import LinscaleError
from scaling.data.tokenizers import Tokenizer

SCORED = 64
"""Documents that are kept for scoring, however many are scored."""
CHARACTERS = 12
"""A document is tokenised so many characters a token far; a block that lacks tokens then is left
out."""


class Text:
    """Blocks of documents, (length + 1,) token ids each."""

    def __init__(self, files: Sequence[Path], tokenizer: Tokenizer, length: int) -> None:
        """Reads the files.

        Args:
            files: JSON lines.
            tokenizer: of the teacher.
            length: predicted tokens of a block.

        Raises:
            LinscaleError: fewer documents fill a block than scoring and training need.
        """
        self.tokenizer, self.length = tokenizer, length
        found: dict[str, str] = {}
        for file in files:
            for line in file.read_text(encoding="utf-8").splitlines():
                text = json.loads(line)["text"]
                if len(text) >= 3 * length:  # shorter ones cannot fill a block of English
                    found[hashlib.sha256(text.encode()).hexdigest()] = text
        self.hashes = sorted(found)
        self._texts = [found[key] for key in self.hashes]
        whole = (i for i in range(len(self._texts)) if self._block(i, 0) is not None)
        self.scored = [index for index, _ in zip(whole, range(SCORED), strict=False)]
        if len(self.scored) < SCORED:
            raise LinscaleError(
                f"--text: {len(self.scored)} documents fill a block of {length} tokens; scoring "
                f"takes {SCORED} and training more; give more text or a smaller --length."
            )

    @property
    def sha256(self) -> str:
        """Of the documents' hashes, in order."""
        return hashlib.sha256("".join(self.hashes).encode()).hexdigest()

    def scoring(self, number: int) -> Tensor:
        """A block that is for scoring alone, (length + 1,)."""
        block = self._block(self.scored[number], 0)
        assert block is not None
        return block

    def training(self) -> Iterator[Tensor]:
        """Blocks for training, (length + 1,), always in the same order.

        Raises:
            LinscaleError: there are no more.
        """
        rest, turn = range(self.scored[-1] + 1, len(self._texts)), 0
        while rest:
            full: list[int] = []
            for index in rest:
                if (block := self._block(index, turn)) is not None:
                    full.append(index)
                    yield block
            rest, turn = full, turn + 1
        raise LinscaleError("--text: all of it has been trained on once; give more text.")

    def _block(self, document: int, number: int) -> Tensor | None:
        """A document's block of that number; None where it does not reach so far."""
        prefix = list(self.tokenizer.prefix)
        size = self.length + 1 - len(prefix)
        text = self._texts[document][: CHARACTERS * size * (number + 1)]
        if len(text) < size * number:
            return None
        ids = self.tokenizer.encode(text)[number * size : (number + 1) * size]
        return None if len(ids) < size else torch.tensor([*prefix, *ids.tolist()])

"""The texts of a corpus that has been opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Documents:
    """The documents of a corpus, in a fixed order."""

    name: str
    """The `data.corpus` they were opened from."""
    signature: list[Any]
    """Plain JSON that changes when the files do."""
    total_bytes: int | None
    """Size of the sources, for progress displays; None when unknown."""
    read: Callable[[int], Iterator[str]]
    """`read(skip)` iterates over the documents after the first `skip`."""

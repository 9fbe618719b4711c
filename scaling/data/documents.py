"""The texts of a corpus that has been opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from linscale.errors import LinscaleError


class BadRecords:
    """Counts the records of a corpus that could not be read and were passed over."""

    def __init__(self, most: int) -> None:
        """
        Args:
            most: how many may be, `data.max_bad_records`.
        """
        self.most = most
        self.count = 0

    def skip(self, error: LinscaleError) -> None:
        """Pass one over; raises what is wrong with it where there are too many."""
        if self.count < self.most:
            self.count += 1
        elif self.most:
            raise LinscaleError(
                f"{error} {self.count} bad records before it were passed over; "
                f"data.max_bad_records={self.most} allows no more."
            )
        else:
            raise error


@dataclass(frozen=True, kw_only=True)
class Documents:
    """The documents of a corpus, in a fixed order."""

    name: str
    """The `data.corpus` they were opened from."""
    signature: list[Any]
    """Plain JSON that changes when the files do."""
    total_bytes: int | None
    """About how much text there is, for progress displays; None when unknown."""
    read: Callable[[int], Iterator[str]]
    """`read(skip)` iterates over the documents after the first `skip`."""
    bad: BadRecords = field(default_factory=lambda: BadRecords(0))
    """Of the last time that they were read."""

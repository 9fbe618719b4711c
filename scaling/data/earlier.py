"""Documents that were tokenised before: what an edited corpus still has in common with its past.

Beside each shard, `SPLIT-00000.documents` says which documents it holds: for each the SHA-256 of
its text and the token at which it ends, and at the end of the file the SHA-256 of all that. A
corpus of which some lines were mended has another signature, and so a folder of its own; the tokens
of every document that is known from another folder of the cache, made with the same tokenizer, are
copied from there. What comes out is what tokenising would give, byte for byte.

A table that is damaged, or a shard that does not have the hash of its index, is not used.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from linscale.errors import LinscaleError
from scaling.data.token_store import INDEX, Index, Shard, shard_problem
from scaling.system.files import replacing

TABLE = ".documents"
"""Ending of tables; the rest of the name is the shard's."""
MOST = 2**25
"""Documents that are looked for among, the newest folders first. Each takes 56 bytes of memory, all
together 1.9 GB."""
_ROW = np.dtype([("digest", "<u8", 4), ("end", "<u8")])


class Table:
    """The documents of a shard while it is written."""

    def __init__(self) -> None:
        self._digests = bytearray()
        self._ends: list[NDArray[np.int64]] = []

    def add(self, digests: bytes, ends: NDArray[np.int64]) -> None:
        """Documents by their SHA-256, one after another, and the tokens of the shard up to the end
        of each."""
        self._digests += digests
        self._ends.append(ends)

    def save(self, shard: Path) -> None:
        """Write the table of a shard that has been written."""
        rows = np.empty(len(self._digests) // 32, dtype=_ROW)
        rows["digest"] = np.frombuffer(bytes(self._digests), dtype="<u8").reshape(-1, 4)
        rows["end"] = np.concatenate(self._ends)
        content = rows.tobytes()
        with replacing(shard.with_suffix(TABLE)) as file:
            file.write(content)
            file.write(hashlib.sha256(content).digest())


def read_table(shard: Path) -> NDArray[np.void] | None:
    """The rows of a shard's table; None where there is none, or it is damaged."""
    try:
        content = shard.with_suffix(TABLE).read_bytes()
    except OSError:
        return None
    if (
        len(content) % _ROW.itemsize != 32
        or hashlib.sha256(content[:-32]).digest() != (content[-32:])
    ):
        return None
    return np.frombuffer(content[:-32], dtype=_ROW)


@dataclass(kw_only=True)
class _Known:
    """A shard of another folder."""

    folder: Path
    shard: Shard
    rows: NDArray[np.void]
    tokens: NDArray[np.unsignedinteger] | None = None
    """Once it has been looked at."""
    damaged: bool = False


class Earlier:
    """Tokens of documents by the SHA-256 of their text."""

    def __init__(self, folder: Path, index: Index) -> None:
        """
        Args:
            folder: that is being made; its neighbours are searched.
            index: of it: which tokenizer, and how wide tokens are.
        """
        self._dtype = np.dtype(index.dtype).newbyteorder("<")
        self._shards: list[_Known] = []
        count = 0
        for path, found in _neighbours(folder, index):
            for shard in (*found.train.shards, *found.validation.shards):
                rows = read_table(path / shard.file) if count < MOST else None
                if rows is not None and len(rows):
                    self._shards.append(_Known(folder=path, shard=shard, rows=rows))
                    count += len(rows)
        self._starts = np.cumsum([0, *(len(known.rows) for known in self._shards)])
        first = [known.rows["digest"][:, 0] for known in self._shards]
        keys = np.concatenate(first) if first else np.empty(0, dtype="<u8")
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def __bool__(self) -> bool:
        return bool(self._shards)

    def find(self, digest: bytes) -> NDArray[np.unsignedinteger] | None:
        """The tokens of a document with its end, as the files hold them; None: not known."""
        wanted = np.frombuffer(digest, dtype="<u8")
        place = int(np.searchsorted(self._keys, wanted[0]))
        while place < len(self._keys) and self._keys[place] == wanted[0]:
            number = int(self._order[place])
            owner = int(np.searchsorted(self._starts, number, side="right")) - 1
            known, row = self._shards[owner], number - int(self._starts[owner])
            if np.array_equal(known.rows["digest"][row], wanted):
                tokens = self._tokens(known)
                if tokens is not None:
                    start = int(known.rows["end"][row - 1]) if row else 0
                    return tokens[start : int(known.rows["end"][row])]
            place += 1
        return None

    def _tokens(self, known: _Known) -> NDArray[np.unsignedinteger] | None:
        """All tokens of a shard, mapped; it is read once to see that it is whole."""
        if known.tokens is None and not known.damaged:
            path = known.folder / known.shard.file
            try:
                wrong = shard_problem(known.folder, known.shard, self._dtype.name, content=True)
                known.damaged = wrong is not None
                if not known.damaged:
                    known.tokens = np.memmap(path, dtype=self._dtype, mode="r")
            except OSError:  # its folder was removed meanwhile
                known.damaged = True
        return known.tokens


def _neighbours(folder: Path, index: Index) -> list[tuple[Path, Index]]:
    """Other folders of the cache with tokens of the same tokenizer, the newest first."""
    found: list[tuple[float, Path, Index]] = []
    for path in folder.parent.glob(f"*/{INDEX}"):
        if path.parent == folder:
            continue
        try:
            other = Index.load(path.parent)
            changed = path.stat().st_mtime
        except (LinscaleError, OSError):
            continue  # damaged, or removed meanwhile
        same = other is not None and (other.tokenizer_sha256, other.eos_id, other.dtype) == (
            index.tokenizer_sha256,
            index.eos_id,
            index.dtype,
        )
        if other is not None and same:
            found.append((changed, path.parent, other))
    return [(path, other) for _, path, other in sorted(found, key=lambda one: -one[0])]

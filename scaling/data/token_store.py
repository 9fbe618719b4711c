"""The files that hold tokens: written by `scaling.data.tokenised`, read by everything else.

A prepared corpus is a folder:

    index.json            what is in it (`Index`); replaced atomically after every chunk of text
    train-00000.bin ...   token numbers, little-endian uint16 or uint32 as the vocabulary needs
    train-00000.documents which documents the shard holds (`scaling.data.earlier`)
    validation-00000.bin  the documents that are held out
    tokenizer.json        where the tokenizer was trained on this corpus
    blocks-T-n.json       the fixed validation blocks of sequence length T, at most n
    verified.json         size and time of the shards when their hashes were last found right

index.json and the lists of blocks hold a hash of themselves.

Each document is followed by the end-of-document token. Block b of a split is T + 1 consecutive
tokens: T inputs and the same shifted by one as targets. Neighbouring blocks share one token, blocks
do not cross shards, and the fewer than T + 1 tokens at the end of a shard belong to no block.
"""

from __future__ import annotations

import json
import mmap
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from linscale.errors import LinscaleError
from linscale.file_names import find_inside
from linscale.sealed import SEAL, is_whole, sealed
from scaling.system.files import DiskError, read_json, sha256_of, write_json

FORMAT = 1
INDEX = "index.json"
TRAINED = "tokenizer.json"
STAMP = "verified.json"
STAMP_EVERY = 64
"""Shards after which what was read so far is stamped."""
OPEN_SHARDS = 256
"""Shards of a split that are mapped at once: each map keeps a file open, and a process has about a
thousand. 300 B tokens are 5000 shards."""


def dtype_for(vocab_size: int) -> str:
    """The narrower of `uint16` and `uint32` that holds every token of a vocabulary."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of tokens."""

    file: str
    """Its name in the folder."""
    tokens: int
    """How many it holds."""
    sha256: str
    """Hash of its bytes."""


@dataclass(kw_only=True)
class Contents:
    """What one split holds."""

    shards: list[Shard] = field(default_factory=list)
    documents: int = 0
    text_bytes: int = 0
    """UTF-8 bytes of its documents."""

    @property
    def tokens(self) -> int:
        """Tokens over all shards, document ends included."""
        return sum(shard.tokens for shard in self.shards)


@dataclass(kw_only=True)
class Index:
    """Everything about a prepared corpus but the tokens. Mutable only while it is being written."""

    source: dict[str, Any]
    """The settings and the signature that it was made from."""
    vocab_size: int
    eos_id: int
    tokenizer_sha256: str
    dtype: str
    """`uint16` or `uint32`."""
    corpus_sha256: str = ""
    """Chain over the documents: h <- SHA-256(h, SHA-256(document)), as hex digits."""
    documents_read: int = 0
    """Documents taken from the corpus, the empty ones included."""
    empty_documents: int = 0
    """Documents without a visible character; they are skipped."""
    bad_records: int = 0
    """Records that could not be read; they are skipped (`data.max_bad_records`)."""
    longest_document: int = 0
    """UTF-8 bytes of the longest document."""
    complete: bool = False
    """False while the corpus is still being tokenised."""
    train: Contents = field(default_factory=Contents)
    validation: Contents = field(default_factory=Contents)
    format: int = FORMAT

    @property
    def width(self) -> int:
        """Bytes of a token."""
        return np.dtype(self.dtype).itemsize

    def save(self, folder: Path) -> None:
        """Replace the folder's index in one step."""
        write_json(folder / INDEX, sealed(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> Index | None:
        """The index of a folder, None where there is none.

        Raises:
            LinscaleError: it cannot be read as one, or names files outside of the folder.
        """
        try:
            values = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            raise damage_error(folder, f"{INDEX} cannot be read ({error})") from None
        try:
            intact = is_whole(values)
            values.pop(SEAL, None)
            for split in ("train", "validation"):
                shards = [Shard(**shard) for shard in values[split].pop("shards")]
                values[split] = Contents(shards=shards, **values[split])
            index = cls(**values)
        except (TypeError, KeyError, AttributeError) as error:
            raise damage_error(
                folder, f"{INDEX} is not an index of this version ({error})"
            ) from None
        if index.format != FORMAT:
            raise damage_error(folder, f"{INDEX} has format {index.format}, not {FORMAT}")
        for shard in (*index.train.shards, *index.validation.shards):
            find_inside(folder, shard.file)
        if not intact:
            raise damage_error(folder, f"{INDEX} does not have the content that was written")
        return index


class Source(Protocol):
    """Training blocks by number."""

    @property
    def n_blocks(self) -> int:
        """How many there are."""
        ...

    def gather(self, blocks: NDArray[np.int64] | list[int]) -> NDArray[np.int64]:
        """The blocks of the given numbers: (n, T + 1), or (n, 2, T) with targets of their own."""
        ...

    def will_need(self, blocks: NDArray[np.int64] | list[int]) -> None:
        """These blocks will be gathered soon: fetch them meanwhile, if they are not in memory."""
        ...


class Split:
    """The blocks of a split, memory-mapped. Pickles as paths, so loader workers map it anew.

    A block that is not in the page cache costs whoever gathers it the time of the disk. `will_need`
    asks the kernel to read it in the background (`MADV_WILLNEED`).
    """

    def __init__(self, folder: Path, contents: Contents, dtype: str, sequence_length: int) -> None:
        """Raises LinscaleError: a shard is missing or does not have the size of the index."""
        self.sequence_length = sequence_length
        self.tokens = contents.tokens
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._paths: list[Path] = []
        counts: list[int] = []
        for shard in contents.shards:
            if (what := shard_problem(folder, shard, dtype)) is not None:
                raise damage_error(folder, what)
            if blocks := (shard.tokens - 1) // sequence_length:
                self._paths.append(folder / shard.file)
                counts.append(blocks)
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()

    @property
    def n_blocks(self) -> int:
        """Blocks of T + 1 tokens."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def gather(self, blocks: NDArray[np.int64] | list[int]) -> NDArray[np.int64]:
        """The blocks of the given numbers, in their order: (n, T + 1).

        Raises:
            LinscaleError: a shard has lost its end since it was opened.
        """
        out = np.empty((len(blocks), self.sequence_length + 1), dtype=np.int64)
        for shard, rows, numbers in self._by_shard(blocks):
            windows = self._windows(self._map(shard))
            if numbers.max() >= len(windows):  # it was whole when the split was opened
                path = self._paths[shard]
                raise damage_error(path.parent, f"{path.name} has become shorter")
            out[rows] = windows[numbers]
        return out

    def will_need(self, blocks: NDArray[np.int64] | list[int]) -> None:
        """Start reading these blocks; returns at once."""
        size = self._dtype.itemsize
        for shard, _, numbers in self._by_shard(blocks):
            file = self._map(shard)
            for start in (numbers * self.sequence_length * size).tolist():
                page = start - start % mmap.PAGESIZE
                end = start + (self.sequence_length + 1) * size
                file.madvise(mmap.MADV_WILLNEED, page, end - page)

    def _by_shard(
        self, blocks: NDArray[np.int64] | list[int]
    ) -> Iterator[tuple[int, NDArray[np.intp], NDArray[np.int64]]]:
        """For each shard that holds some of the blocks: their places among them, and their numbers
        in the shard."""
        wanted = np.asarray(blocks, dtype=np.int64)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < self.n_blocks:
            raise IndexError(f"block {wanted.min()}..{wanted.max()} of {self.n_blocks}")
        shards = np.searchsorted(self._ends, wanted, side="right")
        for shard in np.unique(shards).tolist():
            rows = np.flatnonzero(shards == shard)
            first = self._ends[shard - 1] if shard else 0
            yield shard, rows, wanted[rows] - first

    def _map(self, shard: int) -> mmap.mmap:
        """A shard's file; the least recently used of `OPEN_SHARDS` makes room for it."""
        if shard in self._maps:
            self._maps.move_to_end(shard)
        else:
            if len(self._maps) >= OPEN_SHARDS:
                self._maps.popitem(last=False)
            with self._paths[shard].open("rb") as file:
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[shard]

    def _windows(self, file: mmap.mmap) -> NDArray[np.unsignedinteger]:
        """All blocks of a shard, as overlapping views of its file: (blocks, T + 1)."""
        flat = np.frombuffer(file, dtype=self._dtype)
        length, stride = self.sequence_length, flat.strides[0]
        shape = ((len(flat) - 1) // length, length + 1)
        return as_strided(flat, shape, (length * stride, stride), writeable=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": OrderedDict()}


def read_blocks(path: Path) -> list[int]:
    """A list of validation blocks.

    Raises:
        LinscaleError: it cannot be read, or was changed.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        intact = is_whole(values)
        blocks = [int(b) for b in values["blocks"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damage_error(path.parent, f"{path.name} cannot be read ({error})") from None
    if not intact:
        raise damage_error(path.parent, f"{path.name} does not have the content that was written")
    return blocks


def shard_problem(folder: Path, shard: Shard, dtype: str, *, content: bool = False) -> str | None:
    """What is wrong with a shard, None if nothing: its size, and with `content` its hash."""
    path = folder / shard.file
    expected = shard.tokens * np.dtype(dtype).itemsize
    size = path.stat().st_size if path.is_file() else None
    if size != expected:
        found = "missing" if size is None else f"{size} bytes long"
        return f"{shard.file} is {found}, the index says {expected} bytes"
    if content and sha256_of(path) != shard.sha256:
        return f"{shard.file} does not have the content that was written"
    return None


def verify(folder: Path, index: Index) -> None:
    """Read every shard and compare its hash.

    Raises:
        LinscaleError: a shard is missing or holds other bytes than were written.
    """
    for shard in [*index.train.shards, *index.validation.shards]:
        if (what := shard_problem(folder, shard, index.dtype, content=True)) is not None:
            raise damage_error(folder, what)


def verify_changed(folder: Path, index: Index) -> None:
    """Read the shards that are not as they were when they were last found to be right.

    What has been read is stamped with size and time of change, in `verified.json`. A folder that
    cannot be written is read each time.

    Raises:
        LinscaleError: a shard is missing or holds other bytes than were written.
    """
    stamps = read_json(folder / STAMP)
    right: dict[str, Any] = {}
    for shard in [*index.train.shards, *index.validation.shards]:
        stamp = [*_stamp(folder / shard.file), shard.sha256]
        if stamps.get(shard.file) != stamp and (
            what := shard_problem(folder, shard, index.dtype, content=True)
        ):
            raise damage_error(folder, what)
        right[shard.file] = stamp
        if len(right) % STAMP_EVERY == 0:  # the process may be killed before it is through
            _write_stamps(folder, stamps, right)
    _write_stamps(folder, stamps, right)


def _write_stamps(folder: Path, before: dict[str, Any], right: dict[str, Any]) -> None:
    """Add to the stamps what was found right."""
    if (stamps := before | right) != before:
        with suppress(DiskError):
            write_json(folder / STAMP, stamps)


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of change; of a file that is missing, what no file has."""
    try:
        stat = path.stat()
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def damage_error(folder: Path, what: str) -> LinscaleError:
    """The error for a prepared corpus that cannot be trusted."""
    return LinscaleError(
        f"prepared corpus {folder}: {what}. It was truncated, or written by something else. "
        "`linscale data verify` names all damage. Delete that folder and run the same command "
        "again; it is made anew from the corpus."
    )

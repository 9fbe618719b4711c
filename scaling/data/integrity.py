"""Whether the prepared corpora of a cache hold what was written: `linscale data verify`.

A folder is checked from the outside in: the index and its version, the width of its tokens, the
size and SHA-256 of every shard, the trained tokenizer, the lists of validation blocks. All of it is
read once, with several files at a time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from linscale.errors import LinscaleError
from linscale.file_names import find_inside
from linscale.texts import clean
from scaling.data.token_store import (
    INDEX,
    TRAINED,
    Index,
    Shard,
    dtype_for,
    read_blocks,
    shard_problem,
)
from scaling.data.tokenizers import load_json_tokenizer
from scaling.system.claims import exclusive
from scaling.system.devices import cores


@dataclass(frozen=True, kw_only=True)
class Check:
    """What was found in one prepared corpus."""

    folder: str
    state: str
    """`whole`, `unfinished` (the command that began it goes on with it) or `damaged`."""
    problems: list[str]
    """What is wrong, one line each."""
    tokens: int = 0
    shards: int = 0
    size: int = 0
    """Bytes of all shards by the index."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def prepared_folders(cache: Path) -> list[Path]:
    """The prepared corpora of a cache, in order.

    Raises:
        LinscaleError: there is none.
    """
    found = sorted(path.parent for path in cache.glob(f"*/{INDEX}"))
    if not found:
        raise LinscaleError(
            f"data cache {cache}: it holds no prepared corpus; name the folders, or set "
            "LINSCALE_CACHE to the cache that was used."
        )
    return found


def check(folder: Path, advance: Callable[[int], object] = lambda size: None) -> Check:
    """Read a prepared corpus as a whole and compare it with its index.

    Args:
        folder: where it lies.
        advance: called with the bytes of each shard that has been read.
    """
    try:
        index = Index.load(folder)
    except LinscaleError as error:
        return Check(folder=folder.name, state="damaged", problems=[str(error)])
    if index is None:
        return Check(folder=folder.name, state="damaged", problems=[f"there is no {INDEX}"])
    shards = [*index.train.shards, *index.validation.shards]
    problems = list(_outside(folder, index))
    if not problems:

        def of(shard: Shard) -> str | None:
            found = shard_problem(folder, shard, index.dtype, content=True)
            advance(shard.tokens * index.width)
            return found

        with ThreadPoolExecutor(cores()) as pool:
            problems += [what for what in pool.map(of, shards) if what is not None]
        problems += _tokenizer(folder, index) + _block_lists(folder, index)
    tokens = sum(shard.tokens for shard in shards)
    state = "damaged" if problems else "whole" if index.complete else "unfinished"
    return Check(
        folder=folder.name,
        state=state,
        problems=problems,
        tokens=tokens,
        shards=len(shards),
        size=tokens * index.width,
    )


def _outside(folder: Path, index: Index) -> list[str]:
    """What the index itself tells of."""
    expected = dtype_for(index.vocab_size)
    if index.dtype == expected:
        return []
    return [f"{INDEX} says {index.dtype!r}; {index.vocab_size} tokens are written as {expected}"]


def _tokenizer(folder: Path, index: Index) -> list[str]:
    """A tokenizer that was trained on the corpus must be the one that made the shards."""
    name = str(index.source.get("tokenizer", ""))
    if not name.startswith("bpe:"):
        return []
    if not (folder / TRAINED).is_file():
        return [f"{TRAINED} is missing"]
    try:
        found = load_json_tokenizer(name, folder / TRAINED).fingerprint
    except LinscaleError as error:
        return [str(error)]
    return [] if found == index.tokenizer_sha256 else [f"{TRAINED} is another tokenizer"]


def _block_lists(folder: Path, index: Index) -> list[str]:
    """Every list of validation blocks names blocks that exist."""
    problems: list[str] = []
    for path in sorted(folder.glob("blocks-*.json")):
        try:
            length = int(path.stem.split("-")[1])
            blocks = read_blocks(path)
            most = sum((shard.tokens - 1) // length for shard in index.validation.shards)
            if not blocks or not 0 <= min(blocks) <= max(blocks) < most:
                problems.append(f"{path.name} names blocks that do not exist")
        except LinscaleError as error:
            problems.append(str(error))
        except (ValueError, IndexError, ZeroDivisionError) as error:
            problems.append(f"{path.name} cannot be read ({error})")
    return problems


@dataclass(frozen=True, kw_only=True)
class Listed:
    """What lies in one folder of a cache."""

    folder: str
    corpus: str
    tokenizer: str
    state: str
    """`complete`, `unfinished` or `damaged`."""
    tokens: int
    size: int
    """Bytes of all its files."""
    used: float
    """When it was last opened or written, in seconds of the epoch."""
    orphan: bool
    """Whether a complete one of the same settings, made later from other content, is there."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def listing(cache: Path) -> list[Listed]:
    """The prepared corpora of a cache, by their indexes alone; no shard is read.

    Raises:
        LinscaleError: there is none.
    """
    found = [_listed(folder) for folder in prepared_folders(cache)]
    newest: dict[str, float] = {}
    for one, settings in found:
        if settings and one.state == "complete":
            newest[settings] = max(one.used, newest.get(settings, 0.0))
    return [
        replace(one, orphan=bool(settings) and one.used < newest.get(settings, 0.0))
        for one, settings in found
    ]


def _listed(folder: Path) -> tuple[Listed, str]:
    """A folder, and the settings that it was made for, without the content of the corpus."""
    files = [path for path in folder.iterdir() if path.is_file()]
    used = max((path.stat().st_mtime for path in files), default=0.0)
    index: Index | None = None
    with suppress(LinscaleError):
        index = Index.load(folder)
    source = index.source if index else {}
    plain = {k: v for k, v in source.items() if not k.endswith("signature")}
    one = Listed(
        folder=folder.name,
        corpus=clean(str(source.get("corpus", ""))),
        tokenizer=clean(str(source.get("tokenizer", ""))),
        state="damaged" if index is None else "complete" if index.complete else "unfinished",
        tokens=index.train.tokens + index.validation.tokens if index else 0,
        size=sum(path.stat().st_size for path in files),
        used=used,
        orphan=False,
    )
    return one, json.dumps(plain, sort_keys=True) if index else ""


def prepared_folder(cache: Path, name: str) -> Path:
    """The folder of a prepared corpus.

    Raises:
        LinscaleError: it is not there.
    """
    folder = find_inside(cache, name)
    if not (folder / INDEX).is_file():
        raise LinscaleError(f"{folder}: is no prepared corpus; `linscale data list` shows them.")
    return folder


def prune(cache: Path, folders: list[str]) -> None:
    """Remove prepared corpora from a cache; one that a process is writing now is waited for.

    Raises:
        LinscaleError: one is not there; then none is removed.
    """
    for name, folder in [(name, prepared_folder(cache, name)) for name in folders]:
        with exclusive(folder / "lock", f"{name}: waiting for the process that writes it"):
            (folder / INDEX).unlink()  # first, so that what is left of a kill counts as nothing
            shutil.rmtree(folder)

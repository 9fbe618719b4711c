"""Prepared corpora on remote storage: tokenised once, used on every machine.

    export LINSCALE_REMOTE=s3://bucket/prepared        any file system that fsspec knows

1. `prepare` looks there for the folder of a corpus before it tokenises. What it finds is copied to
   the local cache, shard by shard, each checked against the SHA-256 of the index; an interrupted
   copy goes on with the first shard that is missing.
2. A machine that has tokenised a corpus puts it there, the index last, so that nobody sees half.
   `remote.json` in the local folder then says where it lies; as long as it does not, `prepare`
   puts there what is missing.
3. What fails is tried again after 1, 2, 4 and 8 seconds, but for errors that waiting does not mend
   (no such bucket, no permission, no package for the storage).

Training always reads local files: a remote read in the middle of a step would stall it. The name of
the folder follows from the signature of the corpus (`scaling.data.corpora`), which for local files
is their names, sizes and hashes. A dataset of the hub has one name for each of its revisions.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from linscale.errors import LinscaleError
from linscale.file_names import find_inside
from scaling.data.token_store import INDEX, TRAINED, Index, Shard, shard_problem
from scaling.system.files import replacing, write_json

VARIABLE = "LINSCALE_REMOTE"
PIECE_BYTES = 8 * 2**20
"""Read and written at once."""
MARK = "remote.json"
"""In a local folder: the remote one that holds all of it."""
WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further attempt."""

_Result = TypeVar("_Result")
_LASTING = (FileNotFoundError, PermissionError, ImportError, ValueError)


class _StorageError(Exception):
    """The cause was raised by the storage, and not by the local file that was being written."""


def fetch(folder: Path) -> Index | None:
    """Copy a complete prepared corpus into the local cache; None where there is none to be had.

    Args:
        folder: the local folder; the caller holds its lock.

    Raises:
        LinscaleError: the storage cannot be read, or holds other bytes than its index says.
    """
    url = _url(folder)
    if url is None:
        return None
    files, root = _attempt(url, lambda: _file_system(url))
    if not _attempt(url, lambda: files.exists(f"{root}/{INDEX}")):
        return None
    text = _attempt(url, lambda: files.cat_file(f"{root}/{INDEX}"))
    try:
        values = json.loads(text)
        if not values["complete"]:
            return None
        shards = [Shard(**s) for split in ("train", "validation") for s in values[split]["shards"]]
        dtype = str(values["dtype"])
    except (ValueError, KeyError, TypeError) as error:
        raise _damage_error(url, f"{INDEX} cannot be read ({error})") from None
    for shard in shards:
        find_inside(folder, shard.file)
        if shard_problem(folder, shard, dtype) is not None:
            _fetch_file(files, root, folder / shard.file, shard.sha256, url)
    if _attempt(url, lambda: files.exists(f"{root}/{TRAINED}")):
        _fetch_file(files, root, folder / TRAINED, None, url)
    with replacing(folder / INDEX) as file:
        file.write(text)
    write_json(folder / MARK, {"url": url})
    return Index.load(folder)


def unpublished(folder: Path) -> bool:
    """Whether a remote storage is named that is not known to hold this folder."""
    url = _url(folder)
    if url is None:
        return False
    try:
        return json.loads((folder / MARK).read_text(encoding="utf-8")) != {"url": url}
    except (OSError, ValueError):
        return True


def publish(folder: Path, index: Index) -> None:
    """Put a prepared corpus on the remote storage that is named; files that are there stay.

    Args:
        folder: the local folder; the caller holds its lock.
        index: what it holds, complete.

    Raises:
        LinscaleError: the storage cannot be written. The local corpus is complete all the same.
    """
    url = _url(folder)
    if url is None or not unpublished(folder):
        return
    shards = [shard.file for shard in (*index.train.shards, *index.validation.shards)]
    tokenizer = [TRAINED] if (folder / TRAINED).exists() else []
    files, root = _attempt(url, lambda: _file_system(url))
    _attempt(url, lambda: files.makedirs(root, exist_ok=True))
    for name in (*shards, *tokenizer, INDEX):
        _attempt(url, lambda name=name: _put(files, folder / name, f"{root}/{name}"))
    write_json(folder / MARK, {"url": url})


def _url(folder: Path) -> str | None:
    base = os.environ.get(VARIABLE)
    return f"{base.rstrip('/')}/{folder.name}" if base else None


def _file_system(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    return url_to_fs(url)


def _put(files: Any, local: Path, target: str) -> None:
    """One file, unless one of its size is there: what an earlier attempt has put there."""
    if not (files.exists(target) and files.size(target) == local.stat().st_size):
        files.put_file(str(local), target)


def _fetch_file(files: Any, root: str, target: Path, sha256: str | None, url: str) -> None:
    """One file, under its name only when it is whole and right."""

    def copy() -> str:
        digest = hashlib.sha256()
        with replacing(target) as local, _storage(files.open, f"{root}/{target.name}") as remote:
            while piece := _storage(remote.read, PIECE_BYTES):
                digest.update(piece)
                local.write(piece)
            if sha256 not in (None, digest.hexdigest()):
                raise _damage_error(
                    url, f"{target.name} does not have the content that its index names"
                )
        return digest.hexdigest()

    _attempt(url, copy)


def _storage(call: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call, whose errors `replacing` must not take for those of the local disk."""
    try:
        return call(*arguments)
    except Exception as error:
        raise _StorageError from error


def _attempt(url: str, work: Callable[[], _Result]) -> _Result:
    """The result of some work, tried again where that may help.

    Raises:
        LinscaleError: whatever a storage library raises, as one paragraph.
    """
    for wait in (*WAITS, None):
        try:
            return work()
        except LinscaleError:
            raise
        except Exception as error:
            cause = (error.__cause__ or error) if isinstance(error, _StorageError) else error
            reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
            if wait is None or isinstance(cause, _LASTING):
                raise LinscaleError(
                    f"{url}: cannot be used ({type(cause).__name__}: {reason}). Check {VARIABLE}, "
                    "the credentials and that fsspec's package for that storage is installed, and "
                    "run the same command again: what is done stays, here and there. Or unset it."
                ) from cause
            print(f"{url}: {reason}; trying again in {wait:.0f} s", file=sys.stderr)
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _damage_error(url: str, what: str) -> LinscaleError:
    return LinscaleError(
        f"{url}: {what}; it was damaged on the way, or there. Run the same command again; if that "
        f"does not help, delete the remote folder, or unset {VARIABLE} to tokenise here."
    )

"""Prepared corpora on remote storage: tokenised once, used on every machine.

    export LINSCALE_REMOTE=s3://bucket/prepared        any file system that fsspec knows

1. `prepare` looks there for the folder of a corpus before it tokenises. What it finds is copied to
   the local cache, shard by shard, each checked against the SHA-256 of the index; an interrupted
   copy goes on with the first shard that is missing.
2. A machine that has tokenised a corpus puts it there, the index last, so that nobody sees half.

Training always reads local files: a remote read in the middle of a step would stall it. The name of
the folder follows from the signature of the corpus (`scaling.corpora`), which for local files holds
their times: copies of them must keep these. A dataset of the hub has one name everywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scaling.errors import LinscaleError
from scaling.files import replacing
from scaling.token_store import INDEX, TRAINED, Index, Shard

VARIABLE = "LINSCALE_REMOTE"
PIECE_BYTES = 8 * 2**20
"""Read and written at once."""


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
    with _errors(url):
        files, root = _file_system(url)
        if not files.exists(f"{root}/{INDEX}"):
            return None
        text = files.cat_file(f"{root}/{INDEX}")
        values = json.loads(text)
        if not values.get("complete"):
            return None
        shards = [Shard(**s) for split in ("train", "validation") for s in values[split]["shards"]]
        size = 4 if values["dtype"] == "uint32" else 2
        for shard in shards:
            local = folder / shard.file
            if not (local.is_file() and local.stat().st_size == size * shard.tokens):
                _copy(files, f"{root}/{shard.file}", local, shard.sha256, url)
        if files.exists(f"{root}/{TRAINED}"):
            _copy(files, f"{root}/{TRAINED}", folder / TRAINED, None, url)
        with replacing(folder / INDEX) as file:
            file.write(text)
    return Index.load(folder)


def publish(folder: Path, index: Index) -> None:
    """Put a prepared corpus on the remote storage, if one is named.

    Raises:
        LinscaleError: the storage cannot be written. The local corpus is complete all the same.
    """
    url = _url(folder)
    if url is None:
        return
    shards = [shard.file for shard in (*index.train.shards, *index.validation.shards)]
    tokenizer = [TRAINED] if (folder / TRAINED).exists() else []
    with _errors(url):
        files, root = _file_system(url)
        files.makedirs(root, exist_ok=True)
        for name in (*shards, *tokenizer, INDEX):
            files.put_file(str(folder / name), f"{root}/{name}")


def _url(folder: Path) -> str | None:
    base = os.environ.get(VARIABLE)
    return f"{base.rstrip('/')}/{folder.name}" if base else None


def _file_system(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    return url_to_fs(url)


def _copy(files: Any, source: str, target: Path, sha256: str | None, url: str) -> None:
    """One file, under its name only when it is whole and right."""
    digest = hashlib.sha256()
    with files.open(source, "rb") as remote, replacing(target) as local:
        while piece := _read(remote, url):
            digest.update(piece)
            local.write(piece)
        if sha256 is not None and digest.hexdigest() != sha256:
            raise LinscaleError(
                f"{url}: {target.name} does not have the content that its index names; it was "
                "damaged on the way, or there. Run the same command again; if that does not help, "
                f"delete the remote folder, or unset {VARIABLE} to tokenise here."
            )


def _read(remote: Any, url: str) -> bytes:
    with _errors(url):  # and not those of the local file that is being written
        return remote.read(PIECE_BYTES)


@contextmanager
def _errors(url: str) -> Iterator[None]:
    """Whatever a storage library raises, as one paragraph."""
    try:
        yield
    except LinscaleError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LinscaleError(
            f"{url}: cannot be used ({type(error).__name__}: {reason}). Check {VARIABLE}, the "
            "credentials and that fsspec's package for that storage is installed, or unset it."
        ) from error

"""Writing files so that a crash, a full disk or a power cut leaves the old content or the new.

A file is written under a temporary name, flushed to the device and renamed. A failing device gives
one `DiskError` that names the file and says that nothing was lost, instead of a bare errno.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from linscale.errors import LinscaleError
from linscale.os_errors import in_words

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


class DiskError(LinscaleError):
    """A file of a run could not be written."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns an OSError while writing `path` into a DiskError."""
    try:
        yield
    except OSError as error:
        what, remedy = in_words(error, path) or (error.strerror or str(error), "mend that")
        raise DiskError(
            f"{path}: cannot be written ({what}). What was saved before is intact: {remedy}, then "
            "give the same command again and the run goes on from its last checkpoint."
        ) from error


@contextmanager
def replacing(path: Path, ready: Callable[[], None] | None = None) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` when the block ends well, and else vanishes.

    Args:
        path: the file.
        ready: called when all is on the device; if it raises, `path` is as it was.

    Raises:
        DiskError: the file could not be written; `path` is as it was.
    """
    # Neither a link that somebody has laid there nor another process's file is ever written to.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with disk_errors(path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(temporary, flags, 0o666), "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if ready is not None:
                ready()
            temporary.replace(path)
            _sync_directory(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of `replacing` from a folder in which nobody else writes now: of
    processes that were killed."""
    for path in folder.glob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()


class HashingWriter:
    """A file to write to that computes the SHA-256 of what passes and remembers a failed write."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.written = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self._hash.update(data)
        size = memoryview(data).nbytes
        self.written += size
        return size

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> str:
        return self._hash.hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any, ready: Callable[[], None] | None = None) -> None:
    """Replace `path` by `value` as indented JSON; `ready` as in `replacing`."""
    with replacing(path, ready) as file:
        file.write(json.dumps(value, indent=1, allow_nan=False).encode() + b"\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where the file is missing or cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def append_line(path: Path, text: str) -> None:
    """Append one line with a single write."""
    with disk_errors(path), path.open("ab", buffering=0) as file:
        data = text.encode() + b"\n"
        if file.write(data) != len(data):
            raise OSError(errno.ENOSPC, "short write")


def sync(path: Path) -> None:
    """Flush an existing file to the device."""
    with disk_errors(path), path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    """Make renames in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

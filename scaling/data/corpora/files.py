"""Corpora of files: which they are, how they are signed, and errors that name file and line.

The *signature* of files is their names, sizes and times, which is cheap to take and decides whether
shards made earlier are still those of this corpus. The content itself is hashed when it is read.
"""

from __future__ import annotations

import glob
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from scaling.data.documents import Documents
from scaling.system.errors import LinscaleError


def from_files(
    name: str, paths: Sequence[Path], base: Path | None, read: Callable[[Path], Iterator[str]]
) -> Documents:
    """The documents of files, one file after another.

    Args:
        name: the `data.corpus`.
        paths: the files, in order.
        base: folder that names in the signature are relative to; None: as the paths are.
        read: iterates over the documents of a file.
    """

    def documents(skip: int) -> Iterator[str]:
        every = itertools.chain.from_iterable(read(path) for path in paths)
        return itertools.islice(every, skip, None)

    signature, total = sign_files(paths, base)
    return Documents(name=name, signature=signature, total_bytes=total, read=documents)


def sign_files(paths: Sequence[Path], base: Path | None) -> tuple[list[Any], int]:
    """The signature of files, and their bytes together; `base` as in `from_files`."""
    signature: list[Any] = []
    for path in paths:
        stat = path.stat()
        label = path.relative_to(base) if base else path
        signature.append([label.as_posix(), stat.st_size, stat.st_mtime_ns])
    return signature, sum(size for _, size, _ in signature)


def find_files(name: str, pattern: str, suffix: str) -> list[Path]:
    """The files of a corpus by their pattern, in order.

    Args:
        name: the `data.corpus`, for errors.
        pattern: may begin with `~` and hold `*` and `**`.
        suffix: what such files usually end with, for errors.

    Raises:
        LinscaleError: there are none.
    """
    expanded = Path(pattern).expanduser()
    paths = [p for p in map(Path, sorted(glob.glob(str(expanded), recursive=True))) if p.is_file()]
    if paths:
        return paths
    if expanded.is_dir():
        prefix = name.partition(":")[0]
        raise LinscaleError(
            f"corpus {name}: {pattern} is a folder; name its files, for example "
            f"data.corpus='{prefix}:{pattern.rstrip('/')}/*.{suffix}'."
        )
    raise LinscaleError(
        f"corpus {name}: no file matches {pattern} (seen from {Path.cwd()}); check data.corpus, "
        "and quote the pattern so that the shell does not expand it."
    )


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON lines, each with `file:line`; empty lines are passed over.

    Raises:
        LinscaleError: a line that is no object, or text that is not UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.isspace():
                    where = f"{path}:{number}"
                    yield where, _object(where, line)
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from None


def _object(where: str, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise LinscaleError(
            f"{where}: not a JSON object ({error.msg} at column {error.colno}); a jsonl corpus has "
            "one object a line."
        ) from None
    if not isinstance(record, dict):
        raise LinscaleError(f"{where}: a jsonl corpus has one object a line, not {line[:40]!r}.")
    return record


def text_of(where: str, record: dict[str, Any], text_field: str) -> str:
    """The text of a record; raises LinscaleError where it has none."""
    if text_field not in record:
        raise LinscaleError(
            f"{where}: no field {text_field!r}; it has {', '.join(map(repr, record)) or 'none'}. "
            "Set data.text_field to the one that holds the text."
        )
    text = record[text_field]
    if not isinstance(text, str):
        raise LinscaleError(
            f"{where}: the field {text_field!r} holds {type(text).__name__}, not text; set "
            "data.text_field to the one that holds the text."
        )
    return text


def not_utf8(path: Path, error: UnicodeDecodeError) -> LinscaleError:
    """The error for a file that is no UTF-8 text."""
    return LinscaleError(
        f"{path}: not UTF-8 text (byte 0x{error.object[error.start]:02x}: {error.reason}); convert "
        "it, for example `iconv -f latin1 -t utf-8`, or narrow the pattern of data.corpus."
    )

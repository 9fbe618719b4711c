"""Corpora of files: which they are, how they are signed, and errors that name file and line.

The *signature* of files is their names, sizes and hashes (`scaling.data.corpora.content`), which
decides whether shards made earlier are still those of this corpus.
"""

from __future__ import annotations

import codecs
import glob
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from linscale.errors import LinscaleError
from scaling.data.corpora.content import content_hashes
from scaling.data.corpora.opening import COMPRESSED, not_utf8, open_bytes
from scaling.data.documents import BadRecords, Documents
from scaling.system.freed_memory import give_back_memory

UNPACKED = 4
"""Bytes of text that a byte of a compressed file is taken for, in progress displays."""


def from_files(
    name: str,
    paths: Sequence[Path],
    base: Path | None,
    read: Callable[[Path], Iterator[str]],
    bad: BadRecords | None = None,
) -> Documents:
    """The documents of files, one file after another.

    Args:
        name: the `data.corpus`.
        paths: the files, in order.
        base: folder that names in the signature are relative to; None: as the paths are.
        read: iterates over the documents of a file.
        bad: counts records that are passed over; None where there are no such.
    """
    counted = bad or BadRecords(0)

    def documents(skip: int) -> Iterator[str]:
        counted.count = 0
        every = itertools.chain.from_iterable(read(path) for path in paths)
        return itertools.islice(every, skip, None)

    signature, total = sign_files(paths, base)
    packed = sum(size for name, size, _ in signature if name.endswith(COMPRESSED))
    total += packed * (UNPACKED - 1)
    return Documents(name=name, signature=signature, total_bytes=total, read=documents, bad=counted)


def sign_files(paths: Sequence[Path], base: Path | None) -> tuple[list[Any], int]:
    """The signature of files, and their bytes together; `base` as in `from_files`."""
    signature: list[Any] = []
    for path, digest in zip(paths, content_hashes(paths), strict=True):
        label = path.relative_to(base) if base else path
        signature.append([label.as_posix(), path.stat().st_size, digest])
    return signature, sum(size for _, size, _ in signature)


def find_files(name: str, pattern: str, suffix: str) -> list[Path]:
    """The files of a corpus by their pattern, in order.

    Args:
        name: the `data.corpus`, for errors.
        pattern: may begin with `~` and hold `*` and `**`; a folder means all its files that end
            with `suffix`, compressed or not, those of its folders too.
        suffix: what such files usually end with, such as `.txt`.

    Raises:
        LinscaleError: there are none.
    """
    expanded = Path(pattern).expanduser()
    if expanded.is_dir():
        endings = (suffix, *(suffix + packed for packed in COMPRESSED))
        paths = sorted(p for p in expanded.rglob("*") if p.name.endswith(endings) and p.is_file())
        if not paths:
            prefix = name.partition(":")[0]
            raise LinscaleError(
                f"corpus {name}: the folder {pattern} holds no file *{suffix}; name its files, "
                f"for example data.corpus='{prefix}:{pattern.rstrip('/')}/*'."
            )
        return paths
    paths = [p for p in map(Path, sorted(glob.glob(str(expanded), recursive=True))) if p.is_file()]
    if not paths:
        raise LinscaleError(
            f"corpus {name}: no file matches {pattern} (seen from {Path.cwd()}); check "
            "data.corpus, and quote the pattern so that the shell does not expand it."
        )
    return paths


_LONG = 16 * 2**20
"""Bytes of a line that are worth a system call."""


def read_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """The lines of a file of JSON, each with `file:line`; empty ones are passed over."""
    with open_bytes(path) as file:
        number = 0
        while line := file.readline():
            number += 1
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if len(line) > _LONG:
                give_back_memory()  # the line was put together of small parts
            if not line.isspace():
                held = [line]
                del line  # whoever takes it can let it go: it may be long
                yield f"{path}:{number}", held.pop()


def decoded(where: str, line: bytes) -> str:
    """The text of a line; raises LinscaleError where it is not UTF-8. `where`: `file:line`."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        path, _, number = where.rpartition(":")
        raise not_utf8(Path(path), error, f" in line {number}") from None


def object_of(where: str, text: str) -> dict[str, Any]:
    """The JSON object of a line; raises LinscaleError where it is none. `where`: `file:line`."""
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise LinscaleError(
            f"{where}: not a JSON object ({error.msg} at column {error.colno}); a jsonl corpus has "
            "one object a line."
        ) from None
    except (RecursionError, ValueError) as error:
        raise LinscaleError(
            f"{where}: not a JSON object that can be read ({str(error) or 'nested too deep'})."
        ) from None
    if not isinstance(record, dict):
        raise LinscaleError(f"{where}: a jsonl corpus has one object a line, not {text[:40]!r}.")
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

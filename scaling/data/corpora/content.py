"""Hashes of files, taken once: what a corpus is, is its content and not when it was touched.

A file that has the size, the times and the number on its disk that it had when it was hashed is not
read again. Among the times is that of the last change of the file's entry, which no program sets:
content that was edited with size and time of modification kept is read anew. The hashes lie in
`files.json` of the data cache; where that cannot be written, files are read each time.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from scaling.data.settings import default_cache
from scaling.system.files import DiskError, read_json, sha256_of, write_json

MEMO = "files.json"
"""In the data cache: path -> stamp and hash."""


def content_hashes(paths: Iterable[Path]) -> list[str]:
    """SHA-256 of the content of each file, as hex digits.

    Raises:
        OSError: one cannot be read.
    """
    memo = default_cache() / MEMO
    known = read_json(memo)
    found: list[str] = []
    new: dict[str, list[object]] = {}
    for path in paths:
        stat, name = path.stat(), str(path.resolve())
        stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        entry = known.get(name)
        if isinstance(entry, list) and entry[:4] == stamp and len(entry) == 5:
            found.append(str(entry[4]))
            continue
        digest = sha256_of(path)
        found.append(digest)
        new[name] = [*stamp, digest]
    if new:
        with suppress(DiskError, OSError):
            memo.parent.mkdir(parents=True, exist_ok=True)
            write_json(memo, read_json(memo) | new)
    return found

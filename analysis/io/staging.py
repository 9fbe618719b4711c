"""Results that take the place of the last ones as a whole, or not at all.

    with staged(out) as folder:      write everything into `folder`
        ...

A report takes minutes. Killed meanwhile, the last one is as it was; when all is written, each file
is moved over the one of its name, the page that shows them last.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LAST = "index.html"
_LEFT = re.compile(r"\.staged-(\d+)-\w+\.tmp")


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder whose files move to `out` when the block ends well; it vanishes in any case.

    Raises:
        OSError: `out` cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    _remove_left(out)
    folder = Path(tempfile.mkdtemp(prefix=f".staged-{os.getpid()}-", suffix=".tmp", dir=out))
    try:
        yield folder
        files = [path for path in folder.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: (path.name == LAST, path)):
            target = out / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            path.replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """Replace a file by a text in one step; a link or a pipe of that name is written through.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if (path.exists() and not path.is_file()) or path.is_symlink():
        path.write_text(text, encoding="utf-8")
        return
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_left(out: Path) -> None:
    """Folders of processes that were killed."""
    for path in out.glob(".staged-*.tmp"):
        match = _LEFT.fullmatch(path.name)
        if match and not _lives(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _umask() -> int:
    """The process's; the system tells it only by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask

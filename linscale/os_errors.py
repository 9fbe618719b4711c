"""What the operating system refuses, in words: what is full, closed or used up, and what to do.

One table for all: writers of files (`scaling.system.files`), workers that train, and the command
line, for errors that were handled nowhere else.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

_SPACE = "make room, or take a folder on another disk"
_WORDS = {
    errno.EFBIG: (
        "the file is larger than its file system or `ulimit -f` allows",
        "raise the limit, or take a folder on another file system",
    ),
    errno.EROFS: ("the file system is read-only", "take a folder on another one"),
    errno.EACCES: ("permission denied", "mend the permissions"),
    errno.EPERM: ("operation not permitted", "mend the permissions"),
    errno.EMFILE: (
        "this process has too many files open",
        "raise the limit with `ulimit -n`, or take fewer workers",
    ),
    errno.ENFILE: ("this machine has too many files open", "end other programs"),
    errno.EAGAIN: (
        "this user may not start more processes or threads",
        "raise the limit with `ulimit -u`, or take fewer workers",
    ),
    errno.ENOMEM: ("memory is used up", "end other programs, or take fewer workers"),
    errno.EIO: ("the device reports an error", "look at the disk and the system's log"),
    errno.ESTALE: ("the network file system has lost the file", "mount it again"),
    errno.ENAMETOOLONG: ("the name is too long", "choose shorter names or a shorter path"),
    errno.ELOOP: ("its links lead in a circle", "mend the links"),
    errno.ENOTDIR: ("not a directory", "a part of its path is a file; choose another path"),
}


def in_words(error: OSError, place: Path | None = None) -> tuple[str, str] | None:
    """What is wrong and what helps; None for errors that are no matter of the machine.

    Args:
        error: as the system raised it. Where there is no space, its file system is asked whether
            it is space or inodes (entries for files) that it lacks.
        place: of the file, for an error that names none.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        name = place if error.filename is None else error.filename
        if error.errno == errno.ENOSPC and _without_inodes(name):
            return (
                "the disk has no free inodes: too many files lie on it",
                "remove files (`df -i` shows how many there are), or take a folder on another disk",
            )
        return "the disk or quota is full", _SPACE
    return _WORDS.get(error.errno or 0)


def sentence(error: OSError) -> str | None:
    """The same as a sentence that begins with the file, where it is known."""
    found = in_words(error)
    if found is None:
        return None
    what, remedy = found
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return f"{where}{what}; {remedy}, and run it again. What was saved before is intact."


def _without_inodes(name: object) -> bool:
    """Whether the file system of a file, or of the working directory, has no free inodes."""
    known = isinstance(name, str | bytes | Path)
    path = Path(os.fsdecode(name)).absolute() if known else Path.cwd()
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        found = os.statvfs(path)
    except OSError:
        return False
    return found.f_files > 0 and found.f_favail == 0

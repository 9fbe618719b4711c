"""Names of files that were read from a file: they may not lead out of their folder.

An index, a manifest, a list of milestones or a weight map is data, often fetched from elsewhere. A
name in it such as `../../.bashrc` or `/etc/passwd` would be read, or written, anywhere.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

from linscale.errors import LinscaleError


class FileNameError(LinscaleError):
    """A name in a file that leads out of the folder it belongs to."""


def find_inside(folder: Path, name: object, *, links: bool = False) -> Path:
    """The path of a name inside a folder.

    Args:
        folder: where the file must lie.
        name: as it was read: a relative path with forward slashes.
        links: whether a link may lead out: in the cache of the Hugging Face hub every file is
            one, and users put the checkpoints of a run on another disk.

    Raises:
        FileNameError: it is no text, is absolute, goes up, or is a link that leads out.
    """
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        raise FileNameError(f"{folder}: {name!r} is no name of a file in it; restore the list.")
    pure = PurePosixPath(name)
    if pure.is_absolute() or PureWindowsPath(name).drive or ".." in pure.parts or not pure.parts:
        raise FileNameError(
            f"{folder}: the name {name!r} leads out of it; the list that it stands in was damaged "
            "or made by somebody else. Fetch it again from where you trust it."
        )
    path = folder / pure
    if not links and not path.resolve().is_relative_to(folder.resolve()):
        raise FileNameError(
            f"{path}: is a link that leads out of {folder}; put the file itself there."
        )
    return path

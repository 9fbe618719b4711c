"""Where the files of a sweep lie: in a folder, or in one zip file of it.

    find_sweep("results/quickstart")    the folder, or quickstart.zip beside where it would be
    open_sweep(path)  -> Place          files and folders, read alike in both
    unpacked(path)                      a folder for as long as needed, for what reads only folders
    pack(folder, out)                   the zip of a folder; the same bytes for the same files

A zip is data from elsewhere: names that would lead out of it, names that occur twice, damaged
members and members beyond `LARGEST` bytes are refused.
"""

from __future__ import annotations

import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Protocol

from analysis.errors import AnalysisError
from analysis.io.tracker_folders import tracker_of
from linscale.shipped import shipped_records

SUFFIX = ".zip"
LARGEST = 2**30
"""Bytes of one member beyond which it is not read: a log of a run is a thousand times smaller."""
_TIME = (1980, 1, 1, 0, 0, 0)
"""The first time that a zip can hold; every member gets it."""


Tree = dict[str, "set[str] | None"]
"""Path in a zip -> the names in that folder, or None for a file."""


class Place(Protocol):
    """A file or folder: what `pathlib.Path` and `Packed` both offer."""

    @property
    def name(self) -> str: ...
    def __truediv__(self, name: str, /) -> Place: ...
    def is_file(self) -> bool: ...
    def is_dir(self) -> bool: ...
    def iterdir(self) -> Iterator[Place]: ...
    def read_bytes(self) -> bytes: ...


@dataclass(frozen=True)
class Packed:
    """A file or folder in a zip file."""

    archive: zipfile.ZipFile
    tree: Tree
    at: str = ""
    """Its path in the zip; empty for the whole."""

    @property
    def name(self) -> str:
        """The last part of its path; of the whole, the name of the zip file without its suffix."""
        return PurePosixPath(self.at or Path(self.archive.filename or "").stem).name

    def __truediv__(self, name: str, /) -> Packed:
        return replace(self, at=f"{self.at}/{name}" if self.at else name)

    def __str__(self) -> str:
        return f"{self.archive.filename}/{self.at}".rstrip("/")

    def is_file(self) -> bool:
        """Whether the zip has a file here."""
        return self.at in self.tree and self.tree[self.at] is None

    def is_dir(self) -> bool:
        """Whether something lies under this name."""
        return self.tree.get(self.at) is not None

    def iterdir(self) -> Iterator[Packed]:
        """What lies in this folder, in order of names."""
        return (self / name for name in sorted(self.tree.get(self.at) or ()))

    def read_bytes(self) -> bytes:
        """The content of this file.

        Raises:
            OSError: there is none, it is damaged, encrypted, or larger than `LARGEST`.
        """
        if not self.is_file():
            raise FileNotFoundError(f"{self}: no such file")
        info = self.archive.getinfo(self.at)
        if info.file_size > LARGEST:
            raise OSError(f"{self}: {info.file_size:,} bytes unpacked, more than {LARGEST:,}")
        try:
            return self.archive.read(info)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise OSError(f"{self}: damaged ({error})") from error
        except RuntimeError as error:  # zipfile's word for a password
            raise OSError(f"{self}: {error}") from error


def find_sweep(path: str | Path) -> Path | None:
    """The folder or zip file that a path means, or None: `NAME` also finds `NAME.zip`, and
    `experiments/results/NAME` the records that come with Linscale, from any folder."""
    path = Path(path)
    if path.is_dir():
        return path
    for found in (path, path.with_name(path.name + SUFFIX) if path.name else path):
        if found.suffix.lower() == SUFFIX and found.is_file():
            return found
    return shipped_records(path)


def is_table(path: Path) -> bool:
    """Whether a source is a table, or a tracker's folder, and no sweep."""
    return find_sweep(path) is None or bool(tracker_of(path))


def open_sweep(path: str | Path) -> Place:
    """The files of a sweep.

    Raises:
        AnalysisError: there is neither a folder nor a zip file, or the zip file cannot be used.
    """
    found = find_sweep(path)
    if found is None:
        raise AnalysisError(
            f"{path} is neither a directory nor a zip file of one; give a sweep such as "
            "runs/quickstart"
        )
    if found.is_dir():
        return found
    try:
        archive = zipfile.ZipFile(found)
        whole = Packed(archive, _tree(archive))
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise AnalysisError(f"{found} cannot be read as a zip file: {error}") from error
    # Archivers of some systems put files of their own beside the folder.
    inside = [each for each in whole.iterdir() if not each.name.startswith((".", "__MACOSX"))]
    only = inside[0] if len(inside) == 1 and inside[0].is_dir() else None
    return only if only is not None and not (only / "config.json").is_file() else whole


def names_of_runs(sweep: Place) -> list[str]:
    """The folders in it that hold a config.json, sorted."""
    return sorted(each.name for each in sweep.iterdir() if (each / "config.json").is_file())


def report_folder(path: Path) -> Path:
    """Where a report goes by default: into the sweep's folder, or beside its zip file or table;
    of records that come with Linscale, into the working directory."""
    found = find_sweep(path)
    if found is None and path.is_file():
        return path.with_name(f"{path.name.partition('.')[0]}-report")
    if found is None or found.is_dir():
        return path / "report"
    if found == shipped_records(path) and not path.parent.is_dir():
        return Path(f"{found.stem}-report")
    return found.with_name(f"{found.stem}-report")


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The sweep as a folder: itself, or a temporary copy of what is in its zip file.

    Raises:
        AnalysisError: as `open_sweep`.
    """
    found = find_sweep(path)
    if found is None or found.is_dir():
        yield path
        return
    source = open_sweep(found)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / source.name
        try:
            _copy(source, target)
        except OSError as error:
            raise AnalysisError(f"{found} cannot be unpacked: {error}") from error
        yield target


def pack(folder: Path, out: Path) -> None:
    """Writes the files of a folder into one zip file, under the folder's name.

    Names are sorted and all times the same, so that the same files give the same bytes.

    Raises:
        OSError: it cannot be written.
    """
    temporary = out.with_name(f"{out.name}.new")
    try:
        with zipfile.ZipFile(temporary, "w") as archive:
            files = (path for path in folder.rglob("*") if path.is_file())
            names = {f"{out.stem}/{path.relative_to(folder).as_posix()}": path for path in files}
            for name in sorted(names):
                info = zipfile.ZipInfo(name, _TIME)
                info.create_system, info.external_attr = 3, 0o644 << 16
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, names[name].read_bytes(), compresslevel=9)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def _tree(archive: zipfile.ZipFile) -> Tree:
    """Every folder ("" is the whole) with the names in it, and every file with None.

    Raises:
        ValueError: a name that leads out of the zip, or is there twice.
    """
    tree: Tree = {"": set()}
    for info in archive.infolist():
        name = info.filename
        parts = name.removesuffix("/").split("/")
        if any(part in ("", ".", "..") for part in parts) or "\\" in name or ":" in parts[0]:
            raise ValueError(f"it holds the name {name!r}, which is no plain relative path")
        for depth in range(len(parts)):
            above, here = "/".join(parts[:depth]), "/".join(parts[: depth + 1])
            folder = depth < len(parts) - 1 or name.endswith("/")
            within = tree[above]
            if within is None or (here in tree and not (folder and tree[here] is not None)):
                raise ValueError(f"it holds the name {name!r} twice")
            within.add(parts[depth])
            tree.setdefault(here, set() if folder else None)
    return tree


def _copy(source: Place, target: Path) -> None:
    if source.is_file():
        target.write_bytes(source.read_bytes())
        return
    target.mkdir()
    for each in source.iterdir():
        _copy(each, target / each.name)

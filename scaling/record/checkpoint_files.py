"""The files of a checkpoints folder: written with their SHA-256, read only if it is still theirs.

    manifest.json    {"run_id", "files": {name: {"sha256", "bytes"}}, "resume": [...], "sha256"}

The manifest holds the hash of its other fields.

A file holds tensors and plain containers, marked with `FORMAT`, and is read with
`weights_only=True` after size and SHA-256 have been compared with its entry in the manifest.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, cast

from linscale.errors import LinscaleError
from linscale.file_names import find_inside
from linscale.json_reader import Fields, read_object
from linscale.sealed import SEAL, is_whole, sealed
from scaling.system.files import (
    HashingWriter,
    disk_errors,
    replacing,
    sha256_of,
    sync,
    write_json,
)

FORMAT = 1
MANIFEST = "manifest.json"

Entry = dict[str, Any]
"""`sha256` and `bytes` of a file."""


class CheckpointError(LinscaleError):
    """A checkpoint that is missing, damaged, or not one of ours."""


def write_checkpoint(
    path: Path, content: dict[str, Any], ready: Callable[[], None] | None = None
) -> Entry:
    """Write a checkpoint file, which takes the place of one of that name; returns its entry.

    Args:
        path: the file.
        content: tensors and plain containers.
        ready: called before the file appears; if it raises, everything is as it was.

    Raises:
        DiskError: it could not be written; the file is as it was.
    """
    import torch

    with replacing(path, ready) as file:
        writer = HashingWriter(file)
        try:
            torch.save({"format": FORMAT, **content}, cast("IO[bytes]", writer))
        except (RuntimeError, OSError):
            # torch reports a failed write in words of its own; ours carries the errno.
            raise writer.error or OSError(5, "torch could not write the checkpoint") from None
    return {"sha256": writer.digest(), "bytes": writer.written}


def read_checkpoint(path: Path, entry: Entry) -> dict[str, Any]:
    """The content of a checkpoint file, on the CPU, after a check of its size and SHA-256.

    Raises:
        CheckpointError: missing, truncated, altered, or not a Linscale checkpoint.
    """
    import torch

    verify_file(path, entry)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not its own
        raise CheckpointError(f"{path}: not a checkpoint ({type(error).__name__}).") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a Linscale checkpoint of format {FORMAT}.")
    return content


def verify_file(path: Path, entry: Entry) -> None:
    """Check a file against its entry in the manifest.

    Raises:
        CheckpointError: missing, truncated or altered.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: the checkpoint is missing.")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise CheckpointError(
            f"{path}: the checkpoint is damaged ({size} bytes instead of {entry['bytes']})."
        )
    if sha256_of(path) != entry["sha256"]:
        raise CheckpointError(f"{path}: the checkpoint is damaged (its SHA-256 has changed).")


def flush(path: Path) -> Entry:
    """The entry of a file that another has written, once it is on the device.

    Raises:
        DiskError: it could not be flushed.
    """
    sync(path)
    return {"sha256": sha256_of(path), "bytes": path.stat().st_size}


def remove(path: Path) -> None:
    """Remove a file, or a folder with its files; one that is not there is no error.

    Raises:
        DiskError: it cannot be removed.
    """
    with disk_errors(path):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """Where training goes on."""

    segment: int
    """Index into `scaling.config.schedule.segments`; the number of segments when all have ended."""
    step: int
    """Steps taken along the segment's path."""
    file: str
    """Checkpoint file; empty when all segments have ended."""
    wall: float
    """Seconds trained so far, over all segments."""
    trunk_file: str
    """The checkpoint to return to after the current branch; `file` itself on the trunk."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `manifest.json` says."""

    run_id: str | None = None
    """The run; None where there is no manifest yet."""
    files: dict[str, Entry]
    resume: list[ResumePoint]


def write_manifest(folder: Path, manifest: Manifest, ready: Callable[[], None] | None) -> None:
    """Replace the manifest of a checkpoints folder; `ready` as in `write_checkpoint`.

    Raises:
        DiskError: it could not be written; it is as it was.
    """
    write_json(folder / MANIFEST, sealed({"schema": 1, **asdict(manifest)}), ready)


def read_manifest(path: Path) -> Manifest:
    """The manifest; an empty one when there is none.

    Raises:
        CheckpointError: it exists and cannot be read, or was changed.
    """
    if not path.exists():
        return Manifest(files={}, resume=[])
    try:
        whole = read_object(path)
        if set(whole.values) - {"schema", "run_id", "files", "resume", SEAL}:
            raise ValueError("a field of another name")
        if not is_whole(whole.values):
            raise ValueError("it does not have the content that was written")
        files = whole.part("files")
        entries: dict[str, Entry] = {}
        for name in files.values:
            entry = files.part(name)
            entries[name] = {"sha256": entry.word("sha256"), "bytes": entry.whole("bytes", 0)}
        points: list[ResumePoint] = []
        for number, value in enumerate(whole.list_of("resume")):
            point = Fields(value, f"{MANIFEST} resume[{number}]")
            points.append(
                ResumePoint(
                    segment=point.whole("segment", 0, 10**6),
                    step=point.whole("step", 0),
                    file=point.word("file"),
                    wall=point.number("wall", above=-1.0),
                    trunk_file=point.word("trunk_file"),
                )
            )
        used = [name for point in points for name in (point.file, point.trunk_file)]
        for name in (*entries, *filter(None, used)):  # "" where all has ended
            find_inside(path.parent, name, links=True)
        return Manifest(run_id=whole.word("run_id"), files=entries, resume=points)
    except (LinscaleError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}). Restore it, or delete "
            f"{path.parent.parent} to start this run again."
        ) from error

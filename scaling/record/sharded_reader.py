"""Reads PyTorch's distributed checkpoints as data: nothing in them is run.

PyTorch unpickles `.metadata` as it is, and what that calls an object of bytes again: a folder made
by somebody else would run their code. Here a pickle may name nothing but the classes of which a
description of tensors is made, every entry must be a tensor, and every file must lie in the folder.
"""

from __future__ import annotations

import pickle
from io import BytesIO
from pathlib import Path, PosixPath, PurePosixPath
from typing import IO, Any

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.serialization import _get_layout

from linscale.file_names import find_inside
from scaling.record.checkpoint_files import CheckpointError

METADATA = ".metadata"
_MOST = 2**30
"""Bytes of `.metadata`: some hundred for each share of a tensor."""
_CLASSES: dict[tuple[str, str], Any] = {
    (kind.__module__, kind.__name__): kind
    for kind in (
        metadata.Metadata,
        metadata.MetadataIndex,
        metadata.ChunkStorageMetadata,
        metadata.TensorStorageMetadata,
        metadata.TensorProperties,
        metadata._MEM_FORMAT_ENCODING,  # pyright: ignore[reportPrivateUsage]
        metadata.StorageMeta,
        filesystem._StorageInfo,  # pyright: ignore[reportPrivateUsage]
    )
} | {
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): _get_layout,
    ("pathlib", "PosixPath"): PosixPath,
    ("pathlib", "PurePosixPath"): PurePosixPath,
    ("pathlib._local", "PosixPath"): PosixPath,  # as Python 3.13 names it
}


class _Unpickler(pickle._Unpickler):  # pyright: ignore
    """Knows `_CLASSES` and the dtypes of torch, and nothing else.

    It is Python's own, not the one in C, in which four bytes of a damaged file can ask for a table
    of 64 GiB.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (found := _CLASSES.get((module, name))) is not None:
            return found
        if module == "torch" and "." not in name:
            dtype = getattr(torch, name, None)
            if isinstance(dtype, torch.dtype):
                return dtype
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def read_metadata(folder: Path) -> metadata.Metadata:
    """What a checkpoint's `.metadata` says.

    Raises:
        CheckpointError: it is missing, damaged, names anything but descriptions of tensors, or
            leads out of its folder.
    """
    path = folder / METADATA
    try:
        with path.open("rb") as file:
            return _checked(folder, file)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle raises anything
        raise CheckpointError(
            f"{path}: is not the description of a checkpoint ({type(error).__name__}: {error}); "
            "nothing of it was run. Delete its folder: the run goes on from the checkpoint before."
        ) from error


def _checked(folder: Path, file: IO[bytes]) -> metadata.Metadata:
    content = file.read(_MOST + 1)
    if len(content) > _MOST:
        raise ValueError(f"more than {_MOST} bytes")
    found = _Unpickler(BytesIO(content)).load()
    if not isinstance(found, metadata.Metadata):
        raise TypeError(f"it holds {type(found).__name__}")
    for name, entry in found.state_dict_metadata.items():
        if not isinstance(entry, metadata.TensorStorageMetadata):
            raise TypeError(f"{name!r} is no tensor")
    for info in found.storage_data.values():
        find_inside(folder, info.relative_path)
        if info.transform_descriptors:
            raise ValueError("its tensors are packed")
    return found


class TensorReader(filesystem.FileSystemReader):
    """PyTorch's reader of a folder, with `read_metadata` of this module."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> metadata.Metadata:
        found = read_metadata(Path(self.path))
        found.storage_meta = found.storage_meta or metadata.StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found

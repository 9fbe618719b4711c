"""Safetensors files of a checkpoint directory: read one tensor at a time, written in shards.

The format (https://huggingface.co/docs/safetensors): eight bytes, the length n of the header; n
bytes of JSON, name -> dtype, shape and byte range; then the data. A directory holds one
`model.safetensors`, or several files and `model.safetensors.index.json`.

Files are mapped into memory, not read. A parameter that is a whole tensor of the file, in its dtype
and on the CPU, becomes a private view of the mapping; what is a part of a parameter (the rows of a
fused projection), of another dtype or on another device is copied from it. Importing needs no more
memory than the model, whatever the size of the shards. As with any mapped file, a checkpoint must
not be overwritten in place while a model that was imported from it is in use; writing it anew under
its name, as every library does, is safe.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from linscale.file_names import find_inside
from models.config import ConfigError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
"""Largest shard written."""
_MOST_HEADER = 100 * 2**20
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


class InteropError(ConfigError):
    """A checkpoint that cannot be imported or exported; the message names file, value, remedy."""


class Names(NamedTuple):
    """Tensor names that do not fit a model."""

    missing: set[str]
    """Needed, and not in the checkpoint."""
    unasked: set[str]
    """In the checkpoint, and not part of the model."""


def shard_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint directory.

    Raises:
        InteropError: there are none, or one that the index names is missing.
    """
    index = directory / INDEX
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InteropError(f"{index}: has no weight_map; download the checkpoint again.")
        names = sorted(set(map(str, weight_map.values())))
        files = [find_inside(directory, name, links=True) for name in names]
        for file in files:
            if not file.is_file():
                raise InteropError(
                    f"{file}: the shard is missing, though {INDEX} names it; the checkpoint is "
                    "incomplete, copy it again."
                )
        return files
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    if any(directory.glob("pytorch_model*.bin")):
        raise InteropError(
            f"{directory}: holds pickled weights (pytorch_model.bin), which are not read because "
            "unpickling runs code; save it as safetensors, with transformers: "
            "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)."
        )
    raise InteropError(f"{directory}: there is neither {SINGLE} nor {INDEX} in it.")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InteropError: the file is missing or no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InteropError(f"{path}: there is no such file.") from None
    except (OSError, ValueError) as error:
        raise InteropError(f"{path}: cannot be read ({error}).") from None
    if not isinstance(value, dict):
        raise InteropError(f"{path}: is not a JSON object.")
    return value


class StoredTensor:
    """One tensor of a file, not read yet."""

    def __init__(
        self, file: Path, mapped: mmap.mmap, name: str, entry: dict[str, Any], start: int
    ) -> None:
        self.file, self.name, self._mapped = file, name, mapped
        self.shape = tuple(entry["shape"])
        self._dtype_name = entry["dtype"]
        begin, end = entry["data_offsets"]
        self.offset, self.bytes = start + begin, end - begin

    @property
    def dtype(self) -> torch.dtype:
        """Raises InteropError: it is not one of float64, float32, float16 and bfloat16."""
        if self._dtype_name not in _DTYPES:
            raise InteropError(
                f"{self.file}: tensor {self.name} has dtype {self._dtype_name}, and only "
                f"{', '.join(_DTYPES)} are read; save the checkpoint without quantisation."
            )
        return _DTYPES[self._dtype_name]

    def read(self) -> Tensor:
        """The tensor on the CPU: a view of the mapped file, read page by page when it is used.

        The mapping is private: writing to the tensor leaves the file alone.

        Raises:
            InteropError: the file ends before the tensor does.
        """
        if self.offset + self.bytes > len(self._mapped) or self.bytes != self._expected:
            raise InteropError(f"{self.file}: ends inside tensor {self.name}; copy the file again.")
        if not self.bytes:
            return torch.empty(self.shape, dtype=self.dtype)
        raw = torch.frombuffer(
            self._mapped, dtype=torch.uint8, count=self.bytes, offset=self.offset
        )
        aligned = self.offset % self.dtype.itemsize == 0
        return (raw if aligned else raw.clone()).view(self.dtype).view(self.shape)

    @property
    def _expected(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read_into(self, target: Tensor) -> None:
        """Fill a tensor of the same shape, of any dtype and device.

        A whole parameter of the file's dtype on the CPU takes the mapped tensor as its own: what
        is not used is never read, and no byte is copied. Everything else is copied.

        Raises:
            InteropError: the shapes differ, or the file ends before the tensor does.
        """
        if tuple(target.shape) != self.shape:
            raise InteropError(
                f"{self.file}: tensor {self.name} has shape {list(self.shape)} where config.json "
                f"asks for {list(target.shape)}; the two do not belong together."
            )
        whole = isinstance(target, nn.Parameter) and target.device.type == "cpu"
        if whole and target.dtype == self.dtype:
            target.data = self.read()
        else:
            target.detach().copy_(self.read())


def stored_tensors(directory: Path) -> Iterator[StoredTensor]:
    """Every tensor of a checkpoint directory, in the order of files and offsets.

    Raises:
        InteropError: a file is missing or is not a safetensors file.
    """
    for path in shard_files(directory):
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
                (length,) = struct.unpack("<Q", file.read(8))
                if length > _MOST_HEADER:
                    raise ValueError(f"a header of {length} bytes")
                header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            tensors = [
                StoredTensor(path, mapped, name, entry, 8 + length)
                for name, entry in header.items()
            ]
        except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
            raise InteropError(
                f"{path}: is not a safetensors file or is damaged ({error}); copy it again."
            ) from None
        yield from sorted(tensors, key=lambda tensor: tensor.offset)


def write_tensors(
    directory: Path, tensors: dict[str, Callable[[], Tensor]], shard_bytes: int = SHARD_BYTES
) -> None:
    """Write a checkpoint's tensors, in several files where they exceed `shard_bytes`.

    Args:
        directory: an existing directory.
        tensors: name -> function that makes the tensor; called once for its size and once to
            write it, so that no more than a shard is in memory beside the model.
        shard_bytes: largest size of a file, unless one tensor alone is larger.
    """
    from safetensors.torch import save_file

    shards: list[list[str]] = [[]]
    filled = total = 0
    for name, make in tensors.items():
        size = make().nbytes
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled, total = filled + size, total + size
    names = [SINGLE]
    if len(shards) > 1:
        names = [
            f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            for number in range(1, len(shards) + 1)
        ]
        weight_map = {key: file for file, keys in zip(names, shards, strict=True) for key in keys}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for file, keys in zip(names, shards, strict=True):
        # Clones, because views of one parameter share memory and the format shares none.
        shard = {key: tensors[key]().detach().cpu().clone().contiguous() for key in keys}
        save_file(shard, directory / file, metadata={"format": "pt"})

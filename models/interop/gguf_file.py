"""GGUF files: what their header says, and their tensors one at a time.

The format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): magic, version, counts;
metadata, name -> typed value; for each tensor name, shape (fastest dimension first), type and
offset; then the data. The header is read here, in a fraction of a second; what quantised blocks
mean is known by the package `gguf` (extra `gguf`).
"""

from __future__ import annotations

import math
import mmap
import struct
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from models.interop.tensors import InteropError

_NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
PLAIN = {0: "F32", 1: "F16", 30: "BF16"}
"""Types that are no quantisation, under safetensors' names."""


class Entry(NamedTuple):
    """One tensor."""

    shape: tuple[int, ...]
    """Slowest dimension first."""
    kind: int
    """Its type's number."""
    offset: int
    """Of its data in the file."""


class GGUFFile:
    """A file whose header has been read."""

    def __init__(self, path: Path) -> None:
        """Raises InteropError: it is no GGUF file of version 2 or 3, or ends in its header."""
        self.path = path
        self.metadata: dict[str, Any] = {}
        """Name -> value, lists as Python's."""
        self.entries: dict[str, Entry] = {}
        """Tensors by name."""
        try:
            with path.open("rb") as file:
                self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._at = 0
            magic, version, tensors, values = self._take("<4sIQQ")
            if magic != b"GGUF" or version not in (2, 3):
                raise ValueError(f"magic {magic!r}, version {version}")
            for _ in range(values):
                name = self._text()
                (kind,) = self._take("<I")
                self.metadata[name] = self._value(kind)
            self._read_entries(tensors)
        except (OSError, ValueError, struct.error, KeyError) as error:
            raise InteropError(
                f"{path}: is not a GGUF file of version 2 or 3, or is damaged ({error}); download "
                "it again."
            ) from None

    def _take(self, layout: str) -> tuple[Any, ...]:
        found = struct.unpack_from(layout, self._mapped, self._at)
        self._at += struct.calcsize(layout)
        return found

    def _text(self) -> str:
        (length,) = self._take("<Q")
        raw = self._mapped[self._at : self._at + length]
        if len(raw) < length:
            raise ValueError("the file ends in its header")
        self._at += length
        return raw.decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self._text()
        if kind != _LIST:
            return self._take(f"<{_NUMBERS[kind]}")[0]
        inner, count = self._take("<IQ")
        if inner in (_TEXT, _LIST):
            return [self._value(inner) for _ in range(count)]
        return list(self._take(f"<{count}{_NUMBERS[inner]}"))

    def _read_entries(self, count: int) -> None:
        found: dict[str, Entry] = {}
        for _ in range(count):
            name = self._text()
            (dimensions,) = self._take("<I")
            shape = self._take(f"<{dimensions}Q")
            found[name] = Entry(shape[::-1], *self._take("<IQ"))
        step = self.metadata.get("general.alignment", 32)
        start = -(-self._at // step) * step
        self.entries = {n: e._replace(offset=start + e.offset) for n, e in found.items()}

    def read(self, name: str) -> np.ndarray:
        """A tensor: as it is where its type is F32, F16 or BF16 (as uint16), and else float32.

        Raises:
            InteropError: the file ends before the tensor does, or its type is not known.
        """
        entry = self.entries[name]
        if entry.kind in PLAIN:
            dtype = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}[PLAIN[entry.kind]]
            return self._raw(name, math.prod(entry.shape), np.dtype(dtype)).reshape(entry.shape)
        constants, quants = _package(self.path)
        try:
            kind = constants.GGMLQuantizationType(entry.kind)
            block, size = constants.GGML_QUANT_SIZES[kind]
            rows = (*entry.shape[:-1], entry.shape[-1] // block * size)
            raw = self._raw(name, math.prod(rows), np.dtype(np.uint8)).reshape(rows)
            return quants.dequantize(raw, kind).astype(np.float32, copy=False)
        except (ValueError, KeyError, NotImplementedError) as error:
            raise InteropError(
                f"{self.path}: tensor {name} has type {entry.kind}, which cannot be dequantised "
                f"({error}); take another quantisation of the model."
            ) from error

    def _raw(self, name: str, count: int, dtype: np.dtype[Any]) -> np.ndarray:
        offset = self.entries[name].offset
        if offset + count * dtype.itemsize > len(self._mapped):
            raise InteropError(f"{self.path}: ends inside tensor {name}; download the file again.")
        return np.frombuffer(self._mapped, dtype, count, offset)

    def kinds(self) -> dict[str, int]:
        """Numbers in tensors of each quantised type, by its name."""
        found: dict[str, int] = {}
        for entry in self.entries.values():
            if entry.kind not in PLAIN:
                constants, _ = _package(self.path)
                name = constants.GGMLQuantizationType(entry.kind).name
                found[name] = found.get(name, 0) + math.prod(entry.shape)
        return found


def _package(path: Path) -> tuple[Any, Any]:
    """The modules of the package that knows quantised blocks."""
    try:
        return import_module("gguf.constants"), import_module("gguf.quants")
    except ModuleNotFoundError:
        raise InteropError(
            f"{path}: its weights are quantised, which the package gguf reads; install it with "
            "pip install 'linscale[gguf]'."
        ) from None

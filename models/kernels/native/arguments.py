"""Arguments of the compiled functions as C lays them out: a structure of tensors and numbers."""

from __future__ import annotations

import ctypes
from typing import ClassVar

import torch
from torch import Tensor

from models.kernels.native.library import loaded

NUMBERS = {torch.float32: 0, torch.bfloat16: 1}
"""What `common.h` calls the dtypes of `models.kernels.native.TYPES`."""


class _Array(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "token", "head", "type")),
    ]


def structure(
    arrays: tuple[str, ...],
    pointers: tuple[str, ...],
    reals: tuple[str, ...],
    numbers: tuple[str, ...],
) -> type[ctypes.Structure]:
    """A C structure of tensors by token, addresses, doubles and 64-bit integers, in this order."""
    fields: list[tuple[str, type]] = [(name, _Array) for name in arrays]
    fields += [(name, ctypes.c_void_p) for name in pointers]
    fields += [(name, ctypes.c_double) for name in reals]
    fields += [(name, ctypes.c_int64) for name in numbers]
    return type("Structure", (ctypes.Structure,), {"_fields_": fields})


class Arguments:
    """One call; holds the tensors while the compiled function has their addresses."""

    layout: ClassVar[type[ctypes.Structure]]

    def __init__(self, **numbers: float) -> None:
        self._kept: list[Tensor] = []
        self._given = self.layout(threads=torch.get_num_threads(), **numbers)

    def arrays(self, **tensors: Tensor) -> None:
        """Name tensors (B, T, H, D) in float32 or bfloat16, of any strides."""
        for name, x in tensors.items():
            x = x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
            array = _Array(x.data_ptr(), *x.stride()[:3], NUMBERS[x.dtype])
            setattr(self._given, name, array)
            self._kept.append(x)

    def pointers(self, **tensors: Tensor | None) -> None:
        """Name tensors that C sees as one block, None for a null pointer."""
        for name, x in tensors.items():
            if x is not None:
                x = x.contiguous()
                setattr(self._given, name, x.data_ptr())
                self._kept.append(x)

    def run(self, function: str, **numbers: int) -> bool:
        """Run a function of the library; False where it found a value that it does not take.

        Raises:
            MemoryError: there is none for its workspace.
        """
        found = loaded()
        assert found is not None  # whoever calls has asked
        for name, value in numbers.items():
            setattr(self._given, name, value)
        result: int = getattr(found, function)(ctypes.byref(self._given))
        if result == 1:
            raise MemoryError(f"{function}: no memory for its workspace.")
        return result == 0

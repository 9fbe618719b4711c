"""The arguments of the compiled functions, as C lays them out (`recurrence.cpp`, `Problem`)."""

from __future__ import annotations

import ctypes
from itertools import pairwise

import torch
from torch import Tensor

from models.kernels.call import Call
from models.kernels.layout import check_bounds, chunk_length
from models.kernels.native.library import library

TYPES = {torch.float32: 0, torch.bfloat16: 1}
"""Of tensors by token; states and sums are in float32."""
MODES = {"none": 0, "head": 1, "head_t": 2, "vector": 3, "gate": 4}


class _Array(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "token", "head", "type")),
    ]


ARRAYS = ("q", "k", "v", "o", "grad_o", "dq", "dk", "dv", "decay", "ddecay")
POINTERS = (
    "constant", "dconstant", "initial", "final", "states", "dfinal", "dinitial", "bounds", "slots"
)  # fmt: skip
NUMBERS = (
    "sequences", "batch", "tokens", "heads", "keys", "values", "mode", "learned", "interval",
    "threads",
)  # fmt: skip


class _Problem(ctypes.Structure):
    _fields_ = [
        *((name, _Array) for name in ARRAYS),
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((name, ctypes.c_int64) for name in NUMBERS),
    ]


class Problem:
    """One call; holds the tensors while the compiled function has their addresses."""

    def __init__(self, call: Call, chunk: int) -> None:
        batch, length, heads, keys = call.q.shape
        interval = chunk_length(length, chunk)
        self._kept: list[Tensor] = []
        self._problem = _Problem(
            sequences=call.sequences, batch=batch, tokens=length, heads=heads, keys=keys,
            values=call.v.shape[-1], mode=MODES[call.mode], interval=interval,
            threads=torch.get_num_threads(),
        )  # fmt: skip
        if call.cu_seqlens is not None:
            bounds: list[int] = call.cu_seqlens.tolist()
            check_bounds(bounds, length)
            slots = [0]
            for start, end in pairwise(bounds):
                slots.append(slots[-1] + (end - start + interval - 1) // interval)
            self.set(bounds=torch.tensor(bounds), slots=torch.tensor(slots[:-1]))

    def set(self, **tensors: Tensor | None) -> None:
        """Name tensors: (B, T, H, D) in float32 or bfloat16 as `ARRAYS`, contiguous as pointers."""
        for name, x in tensors.items():
            if x is None:
                continue
            if name in ARRAYS:
                x = x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
                strides = x.stride()[:3]
                setattr(self._problem, name, _Array(x.data_ptr(), *strides, TYPES[x.dtype]))
            else:
                x = x.contiguous()
                setattr(self._problem, name, x.data_ptr())
            self._kept.append(x)

    def run(self, function: str, learned: bool = False) -> bool:
        """Run a function of the library; whether all log decays were at most 0.

        Raises:
            MemoryError: its workspace, less than a megabyte a thread, cannot be had.
        """
        found = library()
        assert found is not None  # `recurrence.serves` asked
        self._problem.learned = learned
        result: int = getattr(found, function)(ctypes.byref(self._problem))
        if result == 1:
            raise MemoryError(f"{function}: no memory for its workspace.")
        return result == 0

"""Compiled kernels of the CPU: C++ that the machine's own compiler builds on first use.

`recurrence.cpp`, `delta.cpp` (with `job.h` and `tiles.h`) and `attention.cpp` hold the arithmetic,
`library` builds and loads them, `arguments` lays out what they are given; `recurrence`, `delta` and
`attention` call them.
"""

from __future__ import annotations

import torch

from models.kernels.native.library import loaded

TYPES = (torch.float32, torch.bfloat16)
"""What the kernels take. Sums and states are in float32."""


@torch.compiler.assume_constant_result
def available(dtype: torch.dtype) -> bool:
    """Whether the kernels can be had on this machine, for tensors of a dtype.

    Raises:
        NativeError: they are asked for, and cannot be had.
    """
    return dtype in TYPES and loaded() is not None

"""Tensors copied into host memory, so that training may change the originals.

    one buffer, laid out tensor behind tensor, for every snapshot of the same tensors
    device -> buffer: all copies begun at once, and waited for once

The buffer is page-locked where a CUDA device copies into it: such copies run at the speed of the
bus, and the host waits for none of them by itself. Page-locked memory takes long to get, and fresh
memory of any kind has to be mapped page by page, so that the buffer is kept until the tensors or
their sizes change. A snapshot is therefore good until the next one is taken.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_flatten, tree_unflatten

ALIGNED = 64
"""Bytes that every tensor begins at a multiple of."""


class Snapshots:
    """One buffer, and the snapshots that are taken into it one after the other."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None

    def take(self, content: Any) -> Any:
        """Containers of tensors as containers of copies on the host; other values stay.

        The copies last until the next call. Each has a storage of its own size, so that a file of
        them holds nothing else. Of a tensor that is shared out over ranks (DTensor) it is this
        rank's share.
        """
        values, layout = tree_flatten(content)
        tensors = [_own(value) for value in values if isinstance(value, Tensor)]
        on_device = any(x.is_cuda for x in tensors)
        total = sum(map(_room, tensors))
        if self._buffer is None or self._buffer.numel() != total:
            self._buffer = None  # the old one goes first
            self._buffer = torch.empty(total, dtype=torch.uint8, pin_memory=on_device)
        start, copies = 0, []
        for value in values:
            copy = value
            if isinstance(value, Tensor):
                own = _own(value)
                copy = _place(self._buffer, start, own).copy_(own, non_blocking=True)
                start += _room(own)
                if isinstance(value, DTensor):
                    copy = DTensor(copy, value._spec, requires_grad=False)  # pyright: ignore[reportCallIssue]
            copies.append(copy)
        if on_device:
            torch.cuda.synchronize()
        return tree_unflatten(copies, layout)


def _own(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor, without gradient."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def _place(buffer: Tensor, start: int, tensor: Tensor) -> Tensor:
    """Room in the buffer for a copy of a tensor: over the same memory, but a storage of its own."""
    if not tensor.numel():
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    place = torch.frombuffer(buffer.numpy(), dtype=tensor.dtype, count=tensor.numel(), offset=start)
    return place.view(tensor.shape)


def _room(tensor: Tensor) -> int:
    """Bytes that a tensor takes in the buffer."""
    return -(-tensor.numel() * tensor.element_size() // ALIGNED) * ALIGNED

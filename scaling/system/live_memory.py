"""Bytes of tensors alive while some work runs: the peak, counted exactly, on any device.

    with LiveBytes(*model.parameters()) as live:
        model(tokens).sum().backward()
    live.peak          # parameters, activations, gradients and temporaries at the worst moment

Every operator's results are seen by a dispatch mode; storages are counted once and until they are
freed. Workspace inside one operator is not seen. Under `FakeTensorMode` nothing is computed or
allocated, so that the peak of a model of any size can be known beforehand.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts while it is active; `known` tensors count from the start."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._seen: set[int] = set()
        self.watch(*known)

    def watch(self, *tensors: Tensor) -> None:
        """Count tensors that were made elsewhere."""
        for tensor in tensors:
            self._count(tensor)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, key, size).atexit = False

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size

"""Bytes of all tensors alive at once, counted storage by storage.

    with StorageCount() as count:
        train()
    count.peak

After every operator the storages made so far are asked whether they still exist, and how large they
are (FSDP frees a storage by resizing it): nothing depends on clocks, finalizers or the load of the
machine. What exists when the count begins does not count. DTensors are looked into, and so are this
project's operators, whose temporaries can be larger than what they return. What PyTorch's own
operators hold inside themselves is not seen; for these models it is below 1 % of the peak.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class StorageCount(TorchDispatchMode):
    """Counts while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._older: dict[int, StorageWeakRef] = {}
        self._made: dict[int, StorageWeakRef] = {}

    def now(self) -> int:
        """Bytes of the storages that were made since the count began and still exist."""
        total = 0
        for address, reference in [*self._made.items()]:
            storage = torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
            if storage is None:
                del self._made[address]
            else:
                total += storage.nbytes()
        return total

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # it calls operators on its own part, which come back here
        for storage in _storages((args, kwargs)):
            if self._unknown(storage, self._made):
                self._older[storage._cdata] = StorageWeakRef(storage)
        if func.namespace == "linscale":
            with torch.no_grad(), self:
                result = OPDEFS[func._schema.name]._init_fn(*args, **(kwargs or {}))
        else:
            result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if self._unknown(storage, self._older):
                self._made[storage._cdata] = StorageWeakRef(storage)
        self.peak = max(self.peak, self.now())
        return result

    @staticmethod
    def _unknown(storage: torch.UntypedStorage, known: dict[int, StorageWeakRef]) -> bool:
        """Not among those known, nor at the address of one that is gone."""
        reference = known.get(storage._cdata)
        return reference is None or reference.expired()


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    """Of tensors with memory: DTensor tries shapes on fake ones."""
    tensors = (leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor))
    return [t.untyped_storage() for t in tensors if not (t.is_meta or isinstance(t, FakeTensor))]


def peak_bytes(work: Callable[[], object]) -> int:
    """The most bytes that the tensors made by `work` had at once.

    The garbage collector rests meanwhile: when it runs depends on what ran before.
    """
    gc.disable()
    try:
        with StorageCount() as count:
            work()
    finally:
        gc.enable()
    return count.peak

"""Ranks of a process group as threads of one process, for checks of sequence parallelism.

    parts = as_ranks(2, work)      # work(rank) on each rank, in their order

The ranks take turns: one runs until it gathers, then the next. So what belongs to the process, such
as the setting of `models.kernels.sequence`, is never changed by two at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor

from models.kernels import parallel, sequence

Result = TypeVar("Result")
PATIENCE = 60.0
"""Seconds that a rank waits for the others."""


class _Group:
    """Stands in for `torch.distributed` where the kernels use it, and for the group itself."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.own = threading.local()
        self.turn = threading.Lock()
        self.meeting = threading.Barrier(ranks)
        self.parts: dict[int, Tensor] = {}

    def get_rank(self, group: object = None) -> int:
        return self.own.rank

    def get_world_size(self, group: object = None) -> int:
        return self.ranks

    def is_initialized(self) -> bool:
        return True

    def all_gather_into_tensor(self, output: Tensor, own: Tensor, group: object = None) -> None:
        self.parts[self.own.rank] = own.detach().clone()
        self._meet()
        output.copy_(torch.cat([self.parts[rank] for rank in range(self.ranks)]))
        self._meet()  # before anybody gathers again

    def _meet(self) -> None:
        self.turn.release()
        try:
            self.meeting.wait(PATIENCE)
        finally:
            self.turn.acquire()


def as_ranks(ranks: int, work: Callable[[int], Result]) -> list[Result]:
    """What `work` gives on each rank of a group that sequences are split over.

    Raises:
        threading.BrokenBarrierError: the ranks do not gather equally often.
    """
    group: Any = _Group(ranks)

    def one(rank: int) -> Result:
        group.own.rank = rank
        with group.turn:
            try:
                return work(rank)
            except BaseException:
                group.meeting.abort()
                raise

    with (
        mock.patch.object(parallel, "dist", group),
        mock.patch.object(sequence, "dist", group),
        sequence.split_over(group),
        ThreadPoolExecutor(ranks) as pool,
    ):
        futures = [pool.submit(one, rank) for rank in range(ranks)]
        errors = [e for f in futures if (e := f.exception()) is not None]
        first = [e for e in errors if not isinstance(e, threading.BrokenBarrierError)]
        if errors:
            raise [*first, *errors][0]
        return [future.result() for future in futures]

"""The processes of a run on several devices: which one this is, and what they agree on."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Value = TypeVar("Value")


def is_rank() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def rank() -> int:
    """Number of this process among those of the run."""
    return int(os.environ["RANK"]) if is_rank() else 0


def agree(value: Value) -> Value:
    """What rank 0 says; all ranks must ask."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return value
    answer = [value]
    dist.broadcast_object_list(answer)
    return answer[0]


def barrier() -> None:
    """Wait until all ranks have come here."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()


@cache
def host_group() -> ProcessGroup:
    """All ranks, for messages in host memory beside those of training; all ranks must ask first
    at the same place."""
    import torch.distributed as dist

    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    return group

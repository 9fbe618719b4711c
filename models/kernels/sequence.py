"""Whether sequences are split over the ranks of a process group, for a whole model at once.

    with split_over(group):           # rank r of W holds tokens [r T/W, (r + 1) T/W) of each row
        loss = model.loss(tokens, targets).mean()
        loss.backward()

Within the block `models.kernels.api` passes calls on to `models.kernels.parallel`, and positions
(`models.layers.make_span`) count from the start of the whole sequence. A loss is that of a rank's
own tokens: the mean over ranks, and of their gradients, is that of the whole sequences.

The setting is one of the process, not of a thread: activation checkpointing runs the forward pass
again on autograd's threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

_group: dist.ProcessGroup | None = None


def active() -> dist.ProcessGroup | None:
    """The group that sequences are split over; None when every rank has whole ones."""
    return _group


def first_position(length: int) -> int:
    """Position of this rank's first token, when every rank has `length` of a sequence."""
    return 0 if _group is None else dist.get_rank(_group) * length


@contextmanager
def split_over(group: dist.ProcessGroup | None) -> Iterator[None]:
    """Sequences are split over `group`; None: they are whole."""
    global _group
    before, _group = _group, group
    try:
        yield
    finally:
        _group = before

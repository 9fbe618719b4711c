"""Batches for training and validation: a LightningDataModule over prepared shards.

1. `scaling.data.prepare.prepare` makes or opens the token shards.
2. `StepSampler` turns (seed, samples consumed) into block numbers, one micro-batch at a time.
3. `ReadAhead` has the disk read the blocks of the micro-batches to come while others are trained
   on, so that nobody waits for a page fault.
4. `Blocks` gathers a whole micro-batch from the memory map in one indexing operation.
5. A batch is (inputs, targets), two int64 tensors (B, T); targets are the inputs shifted by one.

Nothing here has a state: a run resumed after s steps constructs its data with `start_step=s`. The
batches are the same for any number of loader processes, devices and accumulation steps.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from scaling.config.run import RunConfig
from scaling.data.prepare import prepare
from scaling.data.prepared import PreparedData
from scaling.data.sampler import StepSampler
from scaling.data.token_store import Source

Batch = tuple[Tensor, ...]
"""Inputs and targets, int64 (B, T); a target of -100 does not count. Where rows are packed with
several sequences that do not see each other, also cu_seqlens, int32 (N + 1,): their boundaries over
the rows one after another."""
AHEAD = 8
"""Micro-batches between the one that is trained on and the one that the disk is asked for."""


def to_batch(rows: NDArray[np.int64], boundary: int | None = None) -> Batch:
    """Inputs and targets, views of one tensor.

    Args:
        rows: T + 1 tokens each, (B, T + 1); of a recall task inputs and targets, (B, 2, T); of
            instructions also the number of the example in its row, (B, 3, T), which gives
            cu_seqlens.
        boundary: token with which a new document begins (`PreparedData.boundary`), which gives
            cu_seqlens; None: a row is one sequence.
    """
    tokens = torch.from_numpy(rows)
    if tokens.ndim == 3:
        inputs, targets, *examples = tokens.unbind(1)
        return inputs, targets, *map(_boundaries, examples)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    if boundary is None:
        return inputs, targets
    return inputs, targets, _boundaries((inputs == boundary).cumsum(1))


def _boundaries(examples: Tensor) -> Tensor:
    """cu_seqlens, int32 (N + 1,), of packed rows one after another, from numbers (B, T)."""
    begins = torch.ones_like(examples, dtype=torch.bool)
    begins[:, 1:] = examples[:, 1:] != examples[:, :-1]
    end = torch.tensor([examples.numel()])
    return torch.cat((begins.flatten().nonzero()[:, 0], end)).to(torch.int32)


class Blocks(Dataset[Batch]):
    """Training blocks by number; a loader asks for all numbers of a batch at once."""

    def __init__(self, split: Source, boundary: int | None = None) -> None:
        self._split, self._boundary = split, boundary

    def __len__(self) -> int:
        return self._split.n_blocks

    def __getitem__(self, block: int) -> Batch:
        return self.__getitems__([block])

    def __getitems__(self, blocks: list[int]) -> Batch:
        return to_batch(self._split.gather(blocks), self._boundary)


class ReadAhead:
    """The micro-batches of a sampler; each is announced to the source `AHEAD` batches before.

    The order is known without any state, so that looking ahead is just iterating further.
    """

    def __init__(self, sampler: Iterable[list[int]], source: Source) -> None:
        self._sampler, self._source = sampler, source

    def __iter__(self) -> Iterator[list[int]]:
        coming: deque[list[int]] = deque()
        for blocks in self._sampler:
            self._source.will_need(blocks)
            coming.append(blocks)
            if len(coming) > AHEAD:
                yield coming.popleft()
        yield from coming


def validation_batches(prepared: PreparedData, batch_sequences: int) -> Iterator[Batch]:
    """The fixed validation blocks in their order; the last batch may be smaller."""
    for first in range(0, len(prepared.validation), batch_sequences):
        rows = prepared.validation[first : first + batch_sequences]
        yield to_batch(rows, prepared.boundary)


def _part(batch: Any, number: int, parts: int, pinned: bool = False) -> Batch:
    """Collation: `Blocks` gives whole batches, (B, T); a rank takes its T / parts tokens.

    `pinned`: as tensors of their own, since a view with gaps is copied to a GPU through memory
    that is not pinned.
    """
    if parts > 1:
        size = batch[0].shape[1] // parts
        first, last = number * size, (number + 1) * size
        batch = batch[0][:, first:last], batch[1][:, first:last]
    # Otherwise with the boundaries of packed rows, where it has them.
    return tuple(x.contiguous() for x in batch) if pinned else batch


class Loader(DataLoader[Batch]):
    """Batches, and the seconds that the one who asked for them has waited."""

    waited = 0.0

    def __iter__(self) -> Iterator[Batch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        batches = super().__iter__()
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch


class DataModule(pl.LightningDataModule):
    """Data of one run. Use with `Trainer(use_distributed_sampler=False)`."""

    def __init__(
        self,
        config: RunConfig,
        prepared: PreparedData | None = None,
        *,
        start_step: int = 0,
        cache_dir: Path | None = None,
    ) -> None:
        """
        Args:
            config: the run.
            prepared: its data, where already opened; else `prepare` is called.
            start_step: optimizer steps that the run has made already.
            cache_dir: where prepared corpora lie; None for the default.

        Raises:
            LinscaleError: the data cannot be prepared.
            ConfigError: the tokenizer has more tokens than the model's embedding has rows.
        """
        super().__init__()
        self.config = config
        self.prepared = prepared or prepare(config.data, cache_dir)
        self.start_step = start_step
        self.prepared.check_rows(config.model.vocab_size)

    def train_dataloader(self) -> Loader:
        """An endless loader of this rank's micro-batches, from `start_step` on."""
        config = self.config
        rank, world_size = (
            (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        )
        split = config.parallel.sequence
        batch = config.data.batch_sequences
        sampler = StepSampler(
            order=self.prepared.order(config.seed),
            start_samples=self.start_step * batch,
            batch_sequences=batch,
            micro_batch_sequences=config.parallel.micro_batch_sequences
            or batch * split // world_size,
            rank=rank // split,
            world_size=world_size // split,
        )
        return self._loader(sampler, rank % split)

    def val_dataloader(self) -> list[Batch]:
        """The fixed validation blocks, all of them on every rank."""
        config = self.config
        size = config.parallel.micro_batch_sequences or config.data.batch_sequences
        return list(validation_batches(self.prepared, size))

    def _loader(self, sampler: StepSampler, part: int) -> Loader:
        workers = self.config.parallel.workers
        pinned = torch.cuda.is_available()
        return Loader(
            Blocks(self.prepared.train, self.prepared.boundary),
            batch_sampler=ReadAhead(sampler, self.prepared.train),
            collate_fn=partial(
                _part, number=part, parts=self.config.parallel.sequence, pinned=pinned
            ),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pinned,
            # The loader draws a seed when it is iterated; from its own generator, so that it does
            # not move the global one.
            generator=torch.Generator(),
        )

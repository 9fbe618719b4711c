"""Counts optimizer steps, and reads their losses and gradient norms without waiting for the device.

    end of step k:   copy loss and norm of step k to host memory, behind what the device has to do
                     read those of step k - 1, which are there by now

A device so has the next step to do before it has ended this one. Where a value is needed at once,
at steps that are recorded or saved and when a run stops, step k is read as well, which waits. Ranks
add their losses up on the device, and with them what they have to tell each other: that a stop was
asked for, and that a checkpoint is due; they read that at the same step.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import lightning.pytorch as pl
import torch
from torch import Tensor

from scaling.training.callbacks import Journal, Reading, StepCallback
from scaling.training.module import TrainingModule


@dataclass(frozen=True, kw_only=True)
class _Copy:
    """Values on their way to the host."""

    step: int
    rate: float
    values: Tensor
    there: torch.cuda.Event | None
    """Recorded behind the copy; None on a CPU."""


class Readings:
    """Values of the last steps, copied in turn into two places of host memory."""

    def __init__(self) -> None:
        self._copies: deque[_Copy] = deque()
        self._places: list[Tensor] = []

    def put(self, step: int, rate: float, values: Tensor) -> None:
        """Begin to copy the values (n,) of a step, which nobody changes."""
        there = None
        if values.is_cuda:
            while len(self._places) < 2:
                self._places.append(torch.empty_like(values, device="cpu", pin_memory=True))
            place = self._places.pop(0)
            self._places.append(place)
            place.copy_(values, non_blocking=True)
            there, values = torch.cuda.Event(), place
            there.record()
        self._copies.append(_Copy(step=step, rate=rate, values=values, there=there))

    def take(self, leave: int) -> Iterator[tuple[_Copy, list[float]]]:
        """Steps in order, but for the last `leave` ones; waits for each to be there."""
        while len(self._copies) > leave:
            copy = self._copies.popleft()
            if copy.there is not None:
                copy.there.synchronize()
            yield copy, copy.values.tolist()


class Clock(StepCallback):
    """Counts steps and agrees with the other ranks on the loss, on stopping and on saving."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal)
        self._readings = Readings()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._readings = Readings()
        self.journal.fresh = []

    def on_step_end(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        journal = self.journal
        asked = journal.stop_event is not None and journal.stop_event.is_set()
        stop = asked or bool(journal.early) or trainer.received_sigterm
        save = trainer.is_global_zero and time.perf_counter() >= journal.save_at
        loss = module.loss_sum / trainer.accumulate_grad_batches
        flags: list[Tensor] = []
        journal.stopping, journal.saving = False, False
        if trainer.world_size > 1:
            # Made on the device: a number from the host would wait for it.
            told = [torch.full_like(loss, float(flag)) for flag in (stop, save)]
            total = trainer.strategy.reduce(torch.stack([loss, *told]), reduce_op="sum")
            assert isinstance(total, Tensor)
            loss, flags = total[0] / trainer.world_size, [total[1], total[2]]
        else:
            journal.stopping, journal.saving = stop, save
        values = torch.stack([x.double() for x in (loss, module.grad_norm, *flags)])
        journal.step += 1
        journal.fresh = []
        self._readings.put(journal.step, module.rate, values)
        module.step = journal.step
        module.loss_sum.zero_()
        self._read(1)
        if journal.is_read_at_once(journal.step):
            self._read(0)
        if journal.stopping:
            trainer.should_stop = True

    def _read(self, leave: int) -> None:
        """Steps up to this one, or to the one before."""
        journal = self.journal
        for copy, (loss, norm, *flags) in self._readings.take(leave):
            journal.add(Reading(step=copy.step, loss=loss, grad_norm=norm, rate=copy.rate))
            if flags:
                journal.stopping |= flags[0] > 0
                journal.saving |= flags[1] > 0

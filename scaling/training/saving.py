"""When resume checkpoints are saved, and what is in them.

By tokens, where `budget.checkpoint_every_tokens` or `budget.keep_every_tokens` says so, and when a
run is asked to stop. Otherwise by time: at least a minute apart, and at least thirty times as long
as the last one held training up, so that checkpoints cost at most some 3 % of a run.
"""

from __future__ import annotations

import math
import time

import lightning.pytorch as pl
import torch

from scaling.record.checkpoints import Checkpoints
from scaling.record.record import RunRecord
from scaling.training.callbacks import Journal, StepCallback
from scaling.training.module import TrainingModule

CHECKPOINT_SECONDS = 60.0
"""Least time between two resume checkpoints that go by time."""
COST_FACTOR = 30.0
"""The same in multiples of the time that the last of them held training up: its snapshot, and what
it had to wait for the one before to be written."""


class TokenCheckpoint(StepCallback):
    """Saves resume checkpoints between the ends of segments, which `scaling.training.session`
    saves."""

    def __init__(self, journal: Journal, record: RunRecord, checkpoints: Checkpoints) -> None:
        super().__init__(journal)
        self._record, self._checkpoints = record, checkpoints

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        by_time = self.journal.config.budget.checkpoint_every_tokens is None
        self.journal.save_at = time.perf_counter() + CHECKPOINT_SECONDS if by_time else math.inf

    def on_step_end(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        journal = self.journal
        if journal.halted or journal.step == journal.segment.last:
            return
        if not (trainer.is_global_zero or module.sharded):
            return
        # A rewind goes back to a checkpoint, so that it may not depend on when a run was stopped.
        rewinds = journal.config.divergence.policy == "rewind"
        if not (self._is_due() or journal.saving or (journal.stopping and not rewinds)):
            return
        begun = time.perf_counter()
        save(journal, self._record, self._checkpoints, module, trainer.optimizers[0])
        if journal.config.budget.checkpoint_every_tokens is None:
            now = time.perf_counter()
            journal.save_at = now + max(CHECKPOINT_SECONDS, COST_FACTOR * (now - begun))

    def _is_due(self) -> bool:
        config, step = self.journal.config, self.journal.step
        if config.keeps(step) and not self.journal.segment.is_branch:
            return True
        return config.passes(step, config.budget.checkpoint_every_tokens)


def save(
    journal: Journal,
    record: RunRecord,
    checkpoints: Checkpoints,
    module: TrainingModule,
    optimizer: torch.optim.Optimizer | None,
) -> None:
    """Write a resume checkpoint of the current step.

    All ranks of a sharded model must call it; otherwise rank 0 does.
    """
    record.sync_metrics()
    losses = torch.tensor(list(journal.losses), dtype=torch.float64)
    content = module.state(optimizer) | {
        "config": record.config.to_json(),
        "segment": journal.segment.name,
        "losses": losses,
        "skipped": journal.skipped,
    }
    checkpoints.save_resume(journal.index, journal.step, journal.wall_now, content)

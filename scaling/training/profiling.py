"""A profile of a few training steps, `parallel.profile_steps=N`: where their time goes.

    <run>/profile/trace-<segment>-<step>.json.gz   for chrome://tracing or ui.perfetto.dev
    <run>/profile/trace-<segment>-<step>.txt       the operators that took longest, memory included

Each session profiles once, on rank 0, from its third step on: the first warms caches and compiled
code up, the second the profiler. Profiled steps take longer, so that speeds of that stretch are not
those of the run; losses are the same.
"""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch.profiler import ProfilerActivity, profile, schedule

from scaling.record.record import RunRecord
from scaling.system.files import disk_errors
from scaling.training.callbacks import Journal, StepCallback
from scaling.training.module import TrainingModule

UNPROFILED = 2
"""Steps of a session before the first that is profiled."""
ROWS = 40
"""Operators in the table."""


class Profiler(StepCallback):
    """Profiles the first steps of a session."""

    def __init__(self, journal: Journal, record: RunRecord) -> None:
        super().__init__(journal)
        self._record = record
        self._steps = journal.config.parallel.profile_steps
        self._profile: profile | None = None
        self._done = self._steps == 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._done or not trainer.is_global_zero:
            return
        self._done = True
        cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        self._profile = profile(
            activities=[ProfilerActivity.CPU, *cuda],
            schedule=schedule(wait=UNPROFILED - 1, warmup=1, active=self._steps, repeat=1),
            on_trace_ready=self._write,
            record_shapes=True,
            profile_memory=True,
        )
        self._profile.start()

    def on_step_end(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        if self._profile is not None:
            self._profile.step()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A segment with fewer steps than asked for leaves what there is."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    def _write(self, profiled: profile) -> None:
        folder = self._record.path / "profile"
        name = f"trace-{self.journal.segment.name}-{self.journal.step}"
        averages = profiled.key_averages(group_by_input_shape=True)
        order = f"self_{'cuda' if torch.cuda.is_available() else 'cpu'}_time_total"
        with disk_errors(folder):
            folder.mkdir(exist_ok=True)
            profiled.export_chrome_trace(str(folder / f"{name}.json.gz"))
            table = averages.table(sort_by=order, row_limit=ROWS, max_name_column_width=60)
            (folder / f"{name}.txt").write_text(table, encoding="utf-8")
        self._record.log(f"profile of {self._steps} steps: profile/{name}.json.gz")

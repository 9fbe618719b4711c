"""The progress bar of a run on standard error."""

from __future__ import annotations

import lightning.pytorch as pl

from scaling.training.callbacks import Journal, StepCallback
from scaling.training.module import TrainingModule


class Progress(StepCallback):
    """A progress bar over all segments of the run, on standard error."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal)
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        total = journal.trained_tokens + journal.remaining_tokens
        self._task = self._bar.add_task(
            journal.config.name, total=total, completed=journal.trained_tokens, note=""
        )

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def on_step_end(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        journal = self.journal
        loss = f"{journal.losses[-1]:.4f}" if journal.losses else "?"
        self._bar.update(
            self._task,
            completed=journal.trained_tokens,
            note=f"{journal.segment.name} {journal.tokens:,} tokens, loss {loss}",
        )

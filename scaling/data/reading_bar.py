"""How far reading is, in bytes of text, on standard error: a bar, or lines where nobody looks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from linscale.terminal import console, say, shows_bars

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


LINE_SECONDS = 5.0
"""Between two lines that say how far things are."""


class ReadingBar:
    """Moves a bar on; without one, nothing is shown."""

    def __init__(self, bar: Progress | None = None, task: TaskID | None = None) -> None:
        self._bar, self._task = bar, task
        self._line_due = time.monotonic()

    def advance(self, size: int) -> None:
        """So many bytes more have been read."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=size)
            if not self._bar.console.is_terminal and time.monotonic() >= self._line_due:
                self._line_due = time.monotonic() + LINE_SECONDS
                self._say()

    def _say(self) -> None:
        assert self._bar is not None
        task = self._bar.tasks[0]
        total = "" if task.total is None else f"/{task.total / 1e6:.0f}"
        say(f"{task.fields['name']}: {task.description} {task.completed / 1e6:.0f}{total} MB")

    def goes_on(self, label: str) -> None:
        """Reading has ended; what follows takes a time that is not known."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=label, total=None)


@contextmanager
def reading_bar(name: str, label: str, total: int | None, done: int) -> Iterator[ReadingBar]:
    """Show a bar.

    Args:
        name: of what is read.
        label: what is done with it.
        total: bytes, if known.
        done: bytes that have been read before.
    """
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    with Progress(
        TextColumn("{task.fields[name]}: {task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console(stderr=True),
        disable=not shows_bars(),
    ) as bar:
        yield ReadingBar(bar, bar.add_task(label, total=total, completed=done, name=name))

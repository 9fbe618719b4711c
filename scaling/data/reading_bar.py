"""A progress bar in bytes of text, on standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from linscale.terminal import console

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class ReadingBar:
    """Moves a bar on; without one, nothing is shown."""

    def __init__(self, bar: Progress | None = None, task: TaskID | None = None) -> None:
        self._bar, self._task = bar, task

    def advance(self, size: int) -> None:
        """So many bytes more have been read."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=size)

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
    ) as bar:
        yield ReadingBar(bar, bar.add_task(label, total=total, completed=done, name=name))

"""What a pool of evaluations shows: the lines that its workers log, and how each run ended."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from scaling.evaluation.work import LOG
from scaling.sweep.task import Task


class EvaluationDisplay:
    """In the place of `scaling.sweep.display.SweepDisplay`, which shows training."""

    def __init__(self, place: Path, tasks: list[Task], say: Callable[[str], None]) -> None:
        """Lines that were logged by earlier evaluations of the request are not shown again."""
        self.say, self._place, self._tasks = say, place, tasks
        self._read: defaultdict[str, int] = defaultdict(int)
        for task in tasks:
            self._news(task)

    def show_end(self, task: Task) -> None:
        """A run is evaluated, or was left; reasons are listed at the end."""
        self.refresh()
        left = sum(not other.final for other in self._tasks)
        self.say(f"{task.run_id}: {task.state} ({left} left)")

    def refresh(self) -> None:
        """Show what is new in the logs."""
        for task in self._tasks:
            for line in self._news(task):
                self.say(line)

    def _news(self, task: Task) -> list[str]:
        """Whole lines of a run's log since the last look."""
        path = self._place / task.run_id / LOG
        if not path.is_file():
            return []
        with path.open("rb") as file:
            file.seek(self._read[task.run_id])
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._read[task.run_id] += len(whole)
        return whole.decode(errors="replace").splitlines()

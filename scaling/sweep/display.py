"""What a sweep shows while it runs: a live table on a terminal, plain lines elsewhere.

Every run that ends gets one line, which stays. On a terminal a table of the runs under way and a
bar over the compute of the whole sweep follow below; elsewhere a line every half minute says how
far things are.
"""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from linscale.table import Column, Grid
from linscale.terminal import console, shows_progress
from scaling.record.head import ENDED
from scaling.sweep.status import STYLES, run_row, share
from scaling.sweep.task import Task
from scaling.system.words import duration, nats, si, speed

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

REFRESH_SECONDS = 0.5
LINE_SECONDS = 30.0
RATE_SECONDS = 120.0
"""Window of the rate that the time left is computed from."""


class SweepDisplay:
    """Shows the tasks of a sweep; use as a context manager."""

    def __init__(self, sweep_dir: Path, tasks: list[Task], *, table: bool) -> None:
        """Without `table`, lines only: for runs that show their own progress."""
        from rich.live import Live

        self._sweep_dir, self._tasks = sweep_dir, tasks
        self._console = console()
        self._live: Live | None = None
        if table and self._console.is_terminal and shows_progress():
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._due = 0.0
        self._line_due = time.monotonic() + LINE_SECONDS
        self._history: deque[tuple[float, float]] = deque()
        """Clock and FLOPs done."""

    def __enter__(self) -> SweepDisplay:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        from rich.text import Text

        self._console.print(Text(text), soft_wrap=True)

    def show_end(self, task: Task) -> None:
        """The line of a run that has ended; under `--quiet` only of one that did not end well."""
        from rich.text import Text

        if task.state == "done" and not shows_progress():
            return

        row = run_row(self._sweep_dir / task.run_id)
        left = sum(not other.final for other in self._tasks)
        loss = f"  val loss {nats(row['val_loss'])}" if task.state == "done" else ""
        reason = f"  {task.reason}" if task.reason else ""
        self._console.print(
            Text.assemble(
                (f"{task.state:<9} ", STYLES.get(task.state, "")),
                f"{task.run_id}{loss}{reason}",
                (f"  ({left} left)", "dim"),
            ),
            soft_wrap=True,
        )

    def refresh(self) -> None:
        """Renew what is shown, if it is time."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + REFRESH_SECONDS
        if self._live:
            self._live.update(self._table(), refresh=True)
        elif now >= self._line_due and shows_progress():
            self._line_due = now + LINE_SECONDS
            self.say(self._line())

    def _share(self) -> tuple[float, float | None]:
        """Share of the sweep's FLOPs that is done, and the seconds left at the recent rate."""
        now = time.monotonic()
        total = sum(task.flops for task in self._tasks)
        done = 0.0
        for task in self._tasks:
            if task.final and task.state != "preempted":
                done += task.flops
            elif task.state in ("running", "elsewhere", "preempted"):
                row = run_row(self._sweep_dir / task.run_id)
                done += task.flops * row["tokens"] / (row["tokens_total"] or 1)
        self._history.append((now, done))
        while now - self._history[0][0] > RATE_SECONDS:
            self._history.popleft()
        first, before = self._history[0]
        rate = (done - before) / (now - first) if now > first + 5 else 0.0
        return done / total, (total - done) / rate if rate > 0 else None

    def _line(self) -> str:
        done, left = self._share()
        rows = [run_row(self._sweep_dir / t.run_id) for t in self._tasks if t.state == "running"]
        losses = [f" loss {nats(row['loss'])}" if nats(row["loss"]) else "" for row in rows]
        running = "; ".join(
            f"{row['run_id']} {share(row)}{loss}" for row, loss in zip(rows, losses, strict=True)
        )
        return f"{done:4.0%} of the sweep, {duration(left) or 'unknown time'} left | {running}"

    def _table(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        done, left = self._share()
        under_way = [task for task in self._tasks if task.state in ("running", "elsewhere")]
        rows = [run_row(self._sweep_dir / task.run_id) for task in under_way]
        others = [
            "" if task.state == "running" else f"on {row['hostname']}, another launch"
            for task, row in zip(under_way, rows, strict=True)
        ]
        columns = [
            Column("run", [row["run_id"] for row in rows], words=True),
            Column("done", [share(row) for row in rows]),
            Column("tokens", [si(row["tokens"]) for row in rows], spare=2),
            Column("loss", [nats(row["loss"]) or "starting" for row in rows]),
            Column("tok/s", [speed(row["tokens_per_second"]) for row in rows], spare=1),
            Column("left", [duration(row["eta_seconds"]) for row in rows]),
        ]
        if any(others):
            columns.append(Column("", others, words=True))
        ended = sum(task.state in (*ENDED, "failed") for task in self._tasks)
        foot = Text.assemble(
            (f"{ended} of {len(self._tasks)} runs", "bold"),
            f", {done:.0%} of the compute",
            f", about {duration(left)} left" if left else "",
        )
        return Group(Grid(columns, elsewhere="linscale status shows them."), foot)

"""What `linscale linearize` shows: losses and shares, tasks, and what was cut off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from linscale.recovery import WINDOW, zero_of

if TYPE_CHECKING:
    from rich.table import Table


def show_linearization(run_dir: Path, results: list[dict[str, Any]], as_json: bool) -> None:
    """What is trained, and losses and tasks before and after, to standard output."""
    from rich.console import Console

    from scaling.linearization.linearization_record import cost, describe, losses, read
    from scaling.record.head import read_head

    content = read(run_dir)
    rows, spent = losses(run_dir), cost(run_dir)
    if as_json:
        shown = {"run": str(run_dir), **content, "losses": rows, "cost": spent, "tasks": results}
        typer.echo(json.dumps(shown, indent=1))
        return
    console = Console(highlight=False)
    for line in describe(content):
        console.print(line, soft_wrap=True)
    console.print(
        f"cost: {spent['tokens']:,} tokens, {spent['flops']:.3g} FLOPs, "
        f"{spent['device_hours']:.3g} device hours",
        soft_wrap=True,
    )
    console.print(_table(run_dir, rows, zero_of(read_head(run_dir).run_config().model.arch)))
    if results:
        console.print(_tasks_table(results))
        for line in _truncated(results):
            console.print(line, soft_wrap=True)


def _table(run_dir: Path, rows: list[dict[str, Any]], zero: str) -> Table:
    """Losses and shares: of a method with a window, beyond that is the headline."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=str(run_dir), title_justify="left", box=SIMPLE_HEAD)
    shares = {"of surgery's gap": "of_surgery"}
    if zero == WINDOW:
        shares = {"recovered beyond window": "recovered", **shares}
    cells = [
        (
            row["what"],
            f"{row['tokens']:,}" if row["tokens"] else "",
            "" if row["state_bytes"] is None else f"{row['state_bytes']:,}",
            f"{row['loss']:.4f}",
            *(_percent(row[name]) for name in shares.values()),
        )
        for row in rows
    ]
    titles = ("", "tokens", "state bytes", "loss", *shares)
    for title, column in zip(titles, zip(*cells, strict=True), strict=True):
        widest = max(map(len, column))
        table.add_column(title, justify="right" if title else "left", min_width=widest)
    for row in cells:
        table.add_row(*row)
    return table


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _tasks_table(lines: list[dict[str, Any]]) -> Table:
    """A row for each task and metric: the teacher, and the milestones by their tokens."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    columns = list(dict.fromkeys(_column(line) for line in lines))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for line in lines:
        row = cells.setdefault((line["task"], line["metric"]), {})
        spread = "" if line["stderr"] is None else f" ± {line['stderr']:.3f}"
        row[_column(line)] = f"{line['value']:.3f}{spread}"
    table = Table("task", "metric", box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right")
    for (task, metric), row in cells.items():
        table.add_row(task, metric, *(row.get(column, "") for column in columns))
    return table


def _truncated(lines: list[dict[str, Any]]) -> list[str]:
    """How many prompts of each task lost their beginning, of teacher and student."""
    counts: dict[tuple[str, str], int] = {}
    for line in lines:
        if "truncated" in line:
            counts[line["task"], _column(line)] = line["truncated"]
    return [
        f"{task}, {column}: {count:,} prompts lost their beginning"
        for (task, column), count in counts.items()
        if count
    ]


def _column(line: dict[str, Any]) -> str:
    return "teacher" if line["of"] == "teacher" else f"{line['tokens']:,} tokens"

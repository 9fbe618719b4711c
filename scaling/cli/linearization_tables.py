"""What `linscale linearize` prints: losses, shares recovered, tasks, costs, prompts cut short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from linscale.options import print_json
from linscale.recovery import WINDOW, zero_of
from linscale.table import Column, Grid
from linscale.terminal import console


def show_linearization(run_dir: Path, results: list[dict[str, Any]], as_json: bool) -> None:
    """What is trained, and losses and tasks before and after, to standard output."""
    from scaling.linearization.linearization_record import cost, describe, losses, read
    from scaling.record.head import read_head

    content = read(run_dir)
    rows, spent = losses(run_dir), cost(run_dir)
    if as_json:
        shown = {"run": str(run_dir), **content, "losses": rows, "cost": spent, "tasks": results}
        print_json(shown)
        return
    screen = console()
    for line in describe(content):
        screen.print(line)
    screen.print(
        f"cost: {spent['tokens']:,} tokens, {spent['flops']:.3g} FLOPs, "
        f"{spent['device_hours']:.3g} device hours"
    )
    screen.print(str(run_dir), style="italic", soft_wrap=True)  # whole, to be copied
    screen.print(_table(rows, zero_of(read_head(run_dir).run_config().model.arch)))
    if results:
        screen.print(_tasks_table(results))
        for line in _truncated(results):
            screen.print(line)


def _table(rows: list[dict[str, Any]], zero: str) -> Grid:
    """Losses and shares: of a method with a window, beyond that is the headline."""
    shares = {"of surgery's gap": "of_surgery"}
    if zero == WINDOW:
        shares = {"recovered beyond window": "recovered", **shares}
    columns = [
        Column("", [row["what"] for row in rows], words=True),
        Column("tokens", [f"{row['tokens']:,}" if row["tokens"] else "" for row in rows], spare=1),
        Column(
            "state bytes",
            ["" if row["state_bytes"] is None else f"{row['state_bytes']:,}" for row in rows],
            spare=2,
        ),
        Column("loss", [f"{row['loss']:.4f}" for row in rows]),
        *(Column(title, [_percent(row[key]) for row in rows]) for title, key in shares.items()),
    ]
    return Grid(columns)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _tasks_table(lines: list[dict[str, Any]]) -> Grid:
    """A row for each task and metric: the teacher, and the milestones by their tokens."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for line in lines:
        row = cells.setdefault((line["task"], line["metric"]), {})
        spread = "" if line["stderr"] is None else f" ± {line['stderr']:.3f}"
        row[_column(line)] = f"{line['value']:.3f}{spread}"
    titles = dict.fromkeys(_column(line) for line in lines)
    return Grid(
        [
            Column("task", [task for task, _ in cells], words=True),
            Column("metric", [metric for _, metric in cells], words=True),
            *(Column(title, [row.get(title, "") for row in cells.values()]) for title in titles),
        ]
    )


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

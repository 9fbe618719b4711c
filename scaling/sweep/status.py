"""The state of a sweep, from the files of its runs.

A run that says `running` although no process holds it and its last word is old was killed: it is
shown as `interrupted`. Everything else is shown as it was recorded.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.file_names import find_inside
from scaling.record.head import read_head
from scaling.system.claims import STALE_SECONDS, holder
from scaling.system.errors import LinscaleError
from scaling.system.files import read_json
from scaling.system.words import duration, nats, percent, si, speed

if TYPE_CHECKING:
    from rich.console import RenderableType

UNFINISHED = ("running", "planned", "interrupted")
"""States that a sweep is watched for."""
STYLES = {
    "done": "green",
    "running": "cyan",
    "diverged": "magenta",
    "failed": "bold red",
    "interrupted": "yellow",
    "preempted": "yellow",
    "planned": "dim",
}


def status_rows(directory: Path) -> list[dict[str, Any]]:
    """One row a run, in the order of the sweep.

    Returns:
        Plain JSON types: `run_id`, `arch`, `size`, `state`, `reason`, `tokens`, `tokens_total`,
        `loss` (training), `val_loss` and `milestones` (how many are recorded, the loss of the
        last), `tokens_per_second`, `eta_seconds`, `mfu`, `data_wait` (share of the time),
        `memory_peak` (bytes, of rank 0), `updated`, `hostname`, `git_revision`.

    Raises:
        LinscaleError: the directory is no sweep.
    """
    if not directory.is_dir():
        raise LinscaleError(
            f"{directory}: no such directory; give the directory of a sweep, such as "
            "runs/quickstart. `linscale run` makes it."
        )
    planned = read_json(directory / "sweep.json").get("runs", [])
    found = [p.parent.name for p in sorted(directory.glob("*/config.json"))]
    names = dict.fromkeys([*planned, *found])
    if not names:
        raise LinscaleError(
            f"{directory}: holds neither a sweep.json nor runs; give the directory of a sweep, "
            "such as runs/quickstart."
        )
    return [run_row(find_inside(directory, name, links=True)) for name in names]


def run_row(run_dir: Path) -> dict[str, Any]:
    """The row of one run; see `status_rows`."""
    head = read_head(run_dir)
    status = head.status
    milestones = _read_lines(run_dir / "milestones.jsonl")
    held_by = holder(run_dir)
    state, reason = head.state, head.reason
    if held_by is not None:
        if state not in ("done", "diverged"):
            state, reason = "running", ""
    elif state == "running" and _age(status.get("updated")) > STALE_SECONDS:
        state, reason = "interrupted", "the process is gone; run again to continue"
    live = state == "running"
    return {
        "run_id": run_dir.name,
        "arch": head.config.get("model", {}).get("arch", ""),
        "size": head.config.get("size", ""),
        "state": state,
        "reason": reason,
        "tokens": status.get("tokens", 0),
        "tokens_total": status.get("tokens_total"),
        "loss": status.get("loss"),
        "val_loss": milestones[-1].get("val_loss") if milestones else None,
        "milestones": len(milestones),
        "tokens_per_second": status.get("tokens_per_second") if live else None,
        "eta_seconds": status.get("eta_seconds") if live else None,
        "mfu": status.get("mfu") if live else None,
        "data_wait": status.get("data_wait") if live else None,
        "memory_peak": status.get("memory_peak"),
        "updated": status.get("updated"),
        "hostname": held_by.hostname if held_by else status.get("hostname"),
        "git_revision": read_json(run_dir / "environment.json").get("git_revision"),
    }


def status_table(directory: Path, rows: list[dict[str, Any]]) -> RenderableType:
    """The rows for a terminal: a table, the reasons of what went wrong, and a word on revisions."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    columns = {
        "run": [Text(row["run_id"]) for row in rows],
        "state": [Text(row["state"], style=STYLES.get(row["state"], "")) for row in rows],
        "done": [Text(share(row)) for row in rows],
        "tokens": [Text(si(row["tokens"]) if row["tokens"] else "") for row in rows],
        "loss": [Text(nats(row["loss"])) for row in rows],
        "val loss": [Text(nats(row["val_loss"])) for row in rows],
        "tok/s": [Text(speed(row["tokens_per_second"])) for row in rows],
        "MFU": [Text(percent(row["mfu"])) for row in rows],
        "left": [Text(duration(row["eta_seconds"])) for row in rows],
        "host": [Text(row["hostname"] or "") for row in rows],
    }
    if len({row["hostname"] for row in rows if row["hostname"]}) < 2:
        del columns["host"]
    columns = {name: cells for name, cells in columns.items() if any(c.plain for c in cells)}
    table = Table(title=f"{directory}: {summary(rows)}", title_justify="left", box=SIMPLE_HEAD)
    for name in columns:
        text = name in ("run", "state", "host")
        table.add_column(name, justify="left" if text else "right", no_wrap=True)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    parts: list[RenderableType] = [table]
    for row in rows:
        if row["reason"]:
            style = STYLES.get(row["state"], "")
            parts.append(Text.assemble((f"{row['run_id']}: ", style), row["reason"]))
    revisions = Counter(row["git_revision"] for row in rows if row["git_revision"])
    if len(revisions) > 1:
        listed = ", ".join(f"{name[:10]} ({count} runs)" for name, count in revisions.most_common())
        parts.append(
            Text(f"These runs come from different revisions of the code: {listed}.", style="yellow")
        )
    return Group(*parts)


def watch(directory: Path, seconds: float = 2.0) -> None:
    """Show the table, renewed until no run is left to wait for or the user interrupts.

    Raises:
        LinscaleError: the directory is no sweep.
    """
    from rich.live import Live

    rows = status_rows(directory)
    with Live(status_table(directory, rows), auto_refresh=False) as live:
        while any(row["state"] in UNFINISHED for row in rows):
            time.sleep(seconds)
            rows = status_rows(directory)
            live.update(status_table(directory, rows), refresh=True)


def summary(rows: list[dict[str, Any]]) -> str:
    """For example `12 done, 1 failed, 3 planned`."""
    counts = Counter(row["state"] for row in rows)
    order = [*STYLES, *sorted(set(counts) - set(STYLES))]
    return ", ".join(f"{counts[state]} {state}" for state in order if counts[state])


def share(row: dict[str, Any]) -> str:
    """Share of a run's tokens that is trained, such as `45%`."""
    return f"{min(1.0, row['tokens'] / row['tokens_total']):.0%}" if row["tokens_total"] else ""


def _age(updated: str | None) -> float:
    """Seconds since an ISO 8601 time; infinite when there is none."""
    try:
        return time.time() - datetime.fromisoformat(updated or "").timestamp()
    except ValueError:
        return float("inf")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of lines, without a torn last line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return []

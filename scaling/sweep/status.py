"""The state of a sweep, from the files of its runs.

A run that says `running` although no process holds it and its last word is old was killed: it is
shown as `interrupted`. Everything else is shown as it was recorded.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linscale.errors import LinscaleError
from linscale.json_reader import (
    BadRecord,
    Fields,
    as_number,
    find_object,
    is_name,
    parse_lines,
)
from linscale.layer_groups import group
from linscale.selection import chosen, fields_of
from linscale.si import si
from linscale.table import Column, Grid
from linscale.terminal import console
from scaling.record.head import ENDED
from scaling.sweep.slurm_queue import Job, queued
from scaling.system.claims import STALE_SECONDS, holder
from scaling.system.words import duration, nats, percent, speed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rich.console import RenderableType
    from rich.text import Text

_READ = ("config", "status", "environment")
UNFINISHED = ("running", "queued", "planned", "interrupted")
"""States that a sweep is watched for."""
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "SUSPENDED")
"""What squeue says of jobs that have not begun, or begin again."""
STYLES = {
    "done": "green",
    "running": "cyan",
    "queued": "blue",
    "diverged": "magenta",
    "stopped": "dark_orange",
    "failed": "bold red",
    "unreadable": "bold red",
    "interrupted": "yellow",
    "preempted": "yellow",
    "planned": "dim",
}


def status_rows(directory: Path, only: str | None = None) -> list[dict[str, Any]]:
    """One row a run, in the order of the sweep.

    Args:
        directory: of the sweep.
        only: which runs (`linscale.selection`); None: all.

    Returns:
        Plain JSON types: `run_id`, `arch`, `size`, `seed`, `state`, `reason`, `devices` (of all
        nodes), `job_id` (of SLURM, the last that was submitted), `tokens`, `tokens_total`,
        `loss` (training), `val_loss` and `milestones` (how many are recorded, the loss of the
        last), `tokens_per_second`, `eta_seconds`, `mfu`, `data_wait` (share of the time),
        `memory_peak` (bytes, of rank 0), `updated`, `hostname`, `git_revision`, and `health`, None
        until somebody who can tell fills it in: `deviation` and `band` (per cent of loss) and
        `outside`.

    Raises:
        LinscaleError: the directory is no sweep, or the selection leaves nothing.
    """
    if not directory.is_dir():
        raise LinscaleError(
            f"{directory}: no such directory; give the directory of a sweep, such as "
            "runs/quickstart. `linscale run` makes it."
        )
    planned = _planned(directory)
    found = [p.parent.name for p in sorted(directory.glob("*/config.json"))]
    names = dict.fromkeys([*planned, *found])
    if not names:
        raise LinscaleError(
            f"{directory}: holds neither a sweep.json nor runs; give the directory of a sweep, "
            "such as runs/quickstart."
        )
    jobs = queued(directory)
    rows = [_in_queue(_named_row(directory, name), jobs.get(name)) for name in names]
    return chosen(rows, only, partial(_fields, directory))


def _fields(directory: Path, row: dict[str, Any]) -> dict[str, object]:
    """What a selection sees of a run: its configuration, where it has begun, and its state."""
    name = str(row["run_id"])
    known = {"name": name.rpartition("-")[0], "run_id": name, "state": row["state"]}
    try:
        config = find_object(directory / name / "config.json").values if is_name(name) else {}
    except BadRecord:
        config = {}
    return known | fields_of(config, run_id=name, state=row["state"]) if config else known


def _in_queue(row: dict[str, Any], job: Job | None) -> dict[str, Any]:
    """The row with its job; a run that waits for one is `queued`."""
    if job is None:
        return row | {"job_id": None}
    waits = row["state"] in ("planned", "interrupted", "preempted") and job.state in WAITING
    return row | {"job_id": job.job_id} | ({"state": "queued"} if waits else {})


def _named_row(directory: Path, name: str) -> dict[str, Any]:
    if is_name(name):
        return run_row(directory / name)
    empty = [Fields({}, f"{name}.json") for name in _READ]
    why = "sweep.json lists it, and it is no name of a folder"
    return _row(directory / "none", *empty) | {"run_id": name, "state": "unreadable", "reason": why}


def run_row(run_dir: Path) -> dict[str, Any]:
    """The row of one run; see `status_rows`. One whose files cannot be understood is `unreadable`,
    with the file and the reason."""
    try:
        return _row(run_dir, *(find_object(run_dir / f"{name}.json") for name in _READ))
    except BadRecord as error:
        empty = [Fields({}, f"{name}.json") for name in _READ]
        return _row(run_dir, *empty) | {"state": "unreadable", "reason": str(error)}


def _row(run_dir: Path, config: Fields, status: Fields, environment: Fields) -> dict[str, Any]:
    milestones = _lines(run_dir / "milestones.jsonl")
    held_by = holder(run_dir)
    state, reason = status.word("state", "planned"), status.word("reason", "")
    updated = status.word("updated", "") or None
    if held_by is not None:
        if state not in ENDED:
            state, reason = "running", ""
    elif state == "running" and _age(updated) > STALE_SECONDS:
        state, reason = "interrupted", "the process is gone; run again to continue"
    live = state == "running"
    model = config.part("model", {})
    return {
        "run_id": run_dir.name,
        "arch": group(model.word("arch", ""), model.word("mixers", "")),
        "size": config.word("size", ""),
        "seed": config.whole("seed", 0) if config.has("seed") else None,
        "devices": _devices(config.part("parallel", {})),
        "state": state,
        "reason": reason,
        "tokens": status.whole("tokens", 0, default=0),
        "tokens_total": status.whole("tokens_total", 0) if status.has("tokens_total") else None,
        "loss": _number(status, "loss"),
        "val_loss": _loss(milestones),
        "milestones": len(milestones),
        "tokens_per_second": _number(status, "tokens_per_second") if live else None,
        "eta_seconds": _number(status, "eta_seconds") if live else None,
        "mfu": _number(status, "mfu") if live else None,
        "data_wait": _number(status, "data_wait") if live else None,
        "memory_peak": status.whole("memory_peak", 0) if status.has("memory_peak") else None,
        "updated": updated,
        "hostname": held_by.hostname if held_by else status.word("hostname", "") or None,
        "git_revision": environment.word("git_revision", "") or None,
        "health": None,
    }


def _devices(parallel: Fields) -> int | None:
    if not parallel.has("devices"):
        return None
    return parallel.whole("devices", 1) * parallel.whole("nodes", 1, default=1)


def status_table(
    directory: Path, rows: list[dict[str, Any]], title: str | None = None
) -> RenderableType:
    """The rows for a terminal: a table, the reasons of what went wrong, and a word on revisions.

    Args:
        directory: of the sweep.
        rows: of `status_rows`.
        title: what is said of the sweep; None: how many of its runs are in which state.
    """
    from rich.console import Group
    from rich.text import Text

    def column(title: str, cells: Iterable[str | Text], **how: Any) -> Column:
        return Column(title, list(cells), **how)

    hosts = {row["hostname"] for row in rows if row["hostname"]}
    columns = [
        column("run", (row["run_id"] for row in rows), words=True),
        column("seed", (_word(row["seed"]) for row in rows), once=True, spare=4),
        column(
            "state",
            (Text(row["state"], style=STYLES.get(row["state"], "")) for row in rows),
            words=True,
        ),
        column("done", map(share, rows)),
        column("tokens", (si(row["tokens"]) if row["tokens"] else "" for row in rows), spare=5),
        column("loss", (nats(row["loss"]) for row in rows), spare=1),
        column("val loss", (nats(row["val_loss"]) for row in rows)),
        column("off law", (_health(row["health"]) for row in rows)),
        column("tok/s", (speed(row["tokens_per_second"]) for row in rows), spare=3),
        column("MFU", (percent(row["mfu"]) for row in rows), spare=2),
        column("left", (duration(row["eta_seconds"]) for row in rows)),
        column("host", (row["hostname"] or "" for row in rows), words=True, spare=7),
        column("job", (_word(row["job_id"]) for row in rows), spare=6),
    ]
    empty = {c.title for c in columns if not any(map(len, c.cells))}
    if len(hosts) < 2:
        empty.add("host")
    shown = [c for c in columns if c.title not in empty]
    parts: list[RenderableType] = [Grid(shown, title=f"{directory}: {title or summary(rows)}")]
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


def _word(value: object) -> str:
    return "" if value is None else str(value)


def _health(found: dict[str, Any] | None) -> Text:
    """How far a live run is off its law, in red outside its band."""
    from rich.text import Text

    if found is None:
        return Text("")
    text = f"{found['deviation']:+.1f}%"
    return Text(f"{text}!", style="bold red") if found["outside"] else Text(text)


def watch(
    directory: Path,
    seconds: float = 2.0,
    only: str | None = None,
    judge: Callable[[list[dict[str, Any]]], None] = lambda _: None,
) -> None:
    """Show the table, renewed until no run is left to wait for or the user interrupts.

    Args:
        directory: of the sweep.
        seconds: between two looks.
        only: which runs (`linscale.selection`); None: all.
        judge: fills in the health of the rows.

    Raises:
        LinscaleError: the directory is no sweep.
    """
    from rich.live import Live

    screen = console()

    def look() -> tuple[list[dict[str, Any]], RenderableType]:
        rows = status_rows(directory, only)
        judge(rows)
        return rows, _that_fit(directory, rows, screen.height if screen.is_terminal else None)

    rows, table = look()
    with Live(table, console=screen, auto_refresh=False) as live:
        while any(row["state"] in UNFINISHED for row in rows):
            time.sleep(seconds)
            rows, table = look()
            live.update(table, refresh=True)
    if screen.is_terminal:
        screen.print(status_table(directory, rows))


def _that_fit(directory: Path, rows: list[dict[str, Any]], height: int | None) -> RenderableType:
    """The table in so many lines: what is under way and what went wrong first, and how many rows
    there is no room for. A live table that is longer than the terminal would lose its end."""
    from rich.console import Group
    from rich.text import Text

    reasons = sum(bool(row["reason"]) for row in rows)
    room = len(rows) if height is None else max(3, height - 7 - reasons)
    if len(rows) <= room:
        return status_table(directory, rows)
    order = [s for s in ("running", "failed", "unreadable") if s in STYLES]
    order += [s for s in STYLES if s not in order and s != "done"]
    ranked = sorted(rows, key=lambda r: order.index(r["state"]) if r["state"] in order else 99)
    table = status_table(directory, ranked[:room], title=summary(rows))
    more = f"{len(rows) - room} more: linscale status {directory}"
    return Group(table, Text(more, style="dim"))


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


def _planned(directory: Path) -> list[str]:
    """The runs that sweep.json lists, as far as it can be read."""
    try:
        return find_object(directory / "sweep.json").words("runs")
    except BadRecord:
        return []


def _lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file, without a torn last line."""
    try:
        return parse_lines(path.read_bytes())[0]
    except OSError:
        return []


def _number(status: Fields, name: str) -> float | None:
    """A number for people; a diverged loss is none."""
    value = as_number(status.values.get(name))
    return value if math.isfinite(value) else None


def _loss(milestones: list[dict[str, Any]]) -> float | None:
    value = as_number(milestones[-1].get("val_loss")) if milestones else math.nan
    return value if math.isfinite(value) else None

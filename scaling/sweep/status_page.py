"""The state of a sweep as one static page: `linscale status DIR --html FILE`.

The page has no script and needs no server: it can be mailed, or written every few minutes by cron
into a folder that a web server shows. It asks the browser to load it again each minute while runs
are left.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from scaling.sweep.status import UNFINISHED, share, summary
from scaling.system.files import replacing
from scaling.system.words import duration, nats, si, speed

COLOURS = {
    "done": "#1a7f37",
    "running": "#0969da",
    "queued": "#0550ae",
    "diverged": "#8250df",
    "stopped": "#bc4c00",
    "failed": "#cf222e",
    "unreadable": "#cf222e",
    "interrupted": "#9a6700",
    "preempted": "#9a6700",
    "planned": "#6e7781",
}

STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 76em; padding: 0 1em;
       color: #1f2328; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .3em .8em; text-align: right; border-bottom: 1px solid #d1d9e0;
         font-variant-numeric: tabular-nums; white-space: nowrap; }
th:nth-child(-n+2), td:nth-child(-n+2), th:last-child, td:last-child { text-align: left; }
td:last-child { white-space: normal; }
progress { width: 8em; }
"""

COLUMNS = (  # the last is the reason
    "run",
    "state",
    "done",
    "tokens",
    "loss",
    "val loss",
    "off law",
    "tok/s",
    "left",
    "host",
    "",
)


def status_page(directory: Path, rows: list[dict[str, Any]]) -> str:
    """The page of the rows of `scaling.sweep.status.status_rows`."""
    title = html.escape(f"{directory.name}: {summary(rows)}")
    waiting = any(row["state"] in UNFINISHED for row in rows)
    again = '<meta http-equiv="refresh" content="60">' if waiting else ""
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    body = "\n".join(_row(row) for row in rows)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{again}'
        f"<title>{title}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{title}</h1>\n<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n"
        "</tbody></table></body></html>\n"
    )


def write_page(directory: Path, rows: list[dict[str, Any]], path: Path) -> None:
    """Write the page, or replace it as a whole.

    Raises:
        DiskError: the file cannot be written.
    """
    with replacing(path) as file:
        file.write(status_page(directory, rows).encode())


def _health(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    text = f"{found['deviation']:+.1f}%"
    return f'<b style="color:{COLOURS["failed"]}">{text}!</b>' if found["outside"] else text


def _row(row: dict[str, Any]) -> str:
    colour = COLOURS.get(row["state"], "inherit")
    total = row["tokens_total"]
    bar = (
        f'<progress max="{total}" value="{min(row["tokens"], total)}"></progress>' if total else ""
    )
    cells = [
        html.escape(row["run_id"]),
        f'<span style="color:{colour}">{html.escape(row["state"])}</span>',
        f"{bar} {share(row)}",
        si(row["tokens"]) if row["tokens"] else "",
        nats(row["loss"]),
        nats(row["val_loss"]),
        _health(row["health"]),
        speed(row["tokens_per_second"]),
        duration(row["eta_seconds"]),
        html.escape(row["hostname"] or ""),
        html.escape(row["reason"]),
    ]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"

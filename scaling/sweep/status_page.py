"""The state of a sweep as one static page: `linscale status DIR --html FILE`.

The page has no script and needs no server: it can be mailed, or written every few minutes by cron
into a folder that a web server shows. It asks the browser to load it again each minute while runs
are left.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from linscale.si import si
from scaling.sweep.status import UNFINISHED, share, summary
from scaling.system.files import replacing
from scaling.system.words import duration, nats, speed

COLOURS = {  # on white, and on the dark page: at least 4.5 to 1 on either
    "done": ("#1a7f37", "#4ac26b"),
    "running": ("#0969da", "#6cb6ff"),
    "queued": ("#0550ae", "#96d0ff"),
    "diverged": ("#8250df", "#c8a6ff"),
    "stopped": ("#bc4c00", "#ffa657"),
    "failed": ("#cf222e", "#ff8a80"),
    "unreadable": ("#cf222e", "#ff8a80"),
    "interrupted": ("#9a6700", "#e3b341"),
    "preempted": ("#9a6700", "#e3b341"),
    "planned": ("#5f6770", "#b1bac4"),
}

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --paper: #fff; --line: #d1d9e0; --soft: #57606a; }
body { font: 14px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 76em; padding: 0 1em;
       color: var(--ink); background: var(--paper); }
h1 { font-size: 1.5em; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .3em .8em; text-align: right; border-bottom: 1px solid var(--line);
         font-variant-numeric: tabular-nums; white-space: nowrap; }
th:nth-child(-n+2), td:nth-child(-n+2), th:last-child, td:last-child { text-align: left; }
td:last-child { white-space: normal; min-width: 14em; }
progress { width: 8em; }
@media (max-width: 60em) {
  body { font-size: 15px; margin: 1em auto; }
  table, tbody { display: block; }
  thead { position: absolute; left: -999em; }
  tr { display: block; padding: .5em 0; border-bottom: 2px solid var(--line); }
  tbody th, tbody td { display: flex; justify-content: space-between; gap: 1em; border: 0;
                       padding: .1em 0; white-space: normal; overflow-wrap: anywhere; }
  td::before { content: attr(data-of); color: var(--soft); flex: 0 0 auto; }
  td:last-child { min-width: 0; }
  td:empty { display: none; }
  progress { width: 6em; }
}
"""
DARK = ":root { --ink: #e6edf3; --paper: #0d1117; --line: #30363d; --soft: #9ea7b3; }"

COLUMNS = (
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
    "reason",
)


def status_page(directory: Path, rows: list[dict[str, Any]]) -> str:
    """The page of the rows of `scaling.sweep.status.status_rows`."""
    title = html.escape(f"{directory.name}: {summary(rows)}")
    waiting = any(row["state"] in UNFINISHED for row in rows)
    again = '<meta http-equiv="refresh" content="60">' if waiting else ""
    head = "".join(f'<th scope="col">{name}</th>' for name in COLUMNS)
    body = "\n".join(_row(row) for row in rows)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{again}'
        f"<title>{title}</title><style>{_style()}</style></head>\n"
        f"<body><h1>{title}</h1>\n<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n"
        "</tbody></table></body></html>\n"
    )


def _style() -> str:
    """Looks in light and dark; a class for each state."""
    light, dark = (
        "".join(f" .{state} {{ color: {both[i]}; }}" for state, both in COLOURS.items())
        for i in (0, 1)
    )
    return f"{STYLE}{light}\n@media (prefers-color-scheme: dark) {{ {DARK}{dark} }}\n"


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
    return f'<b class="failed">{text}!</b>' if found["outside"] else text


def _row(row: dict[str, Any]) -> str:
    total = row["tokens_total"]
    done = f'max="{total}" value="{min(row["tokens"], total)}"' if total else ""
    bar = f'<progress aria-hidden="true" {done}></progress>' if total else ""
    cells = [
        f'<span class="{html.escape(row["state"])}">{html.escape(row["state"])}</span>',
        f"{bar} {share(row)}".strip(),
        si(row["tokens"]) if row["tokens"] else "",
        nats(row["loss"]),
        nats(row["val_loss"]),
        _health(row["health"]),
        speed(row["tokens_per_second"]),
        duration(row["eta_seconds"]),
        html.escape(row["hostname"] or ""),
        html.escape(row["reason"]),
    ]
    named = zip(COLUMNS[1:], cells, strict=True)
    body = "".join(f'<td data-of="{name}">{cell}</td>' for name, cell in named)
    return f'<tr><th scope="row">{html.escape(row["run_id"])}</th>{body}</tr>'

"""Options that commands of every package have, worded once, and how JSON is printed."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

import typer

from linscale import terminal


def _choose(context: typer.Context, as_json: bool) -> bool:
    terminal.set_json(as_json)
    context.call_on_close(lambda: terminal.set_json(False))  # the process may go on
    return as_json


AsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON document, and nothing else, on standard output (docs/json.md).",
        callback=_choose,
    ),
]


def print_json(value: Any) -> None:
    """Print the one document of a command: strict JSON, where what is not finite is null."""
    typer.echo(json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""What commands say: results on standard output, what they are doing on standard error.

On a terminal lines are folded at its width. In a pipe or a file a line is as long as it needs to
be, so that `grep` and `cut` find all of it. COLUMNS, where it is set, is the width in both cases.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PIPE_COLUMNS = 10_000
"""Width where nobody looks: nothing is folded or left out."""
QUIET, USUAL, VERBOSE = -1, 0, 1
_level = USUAL
_json = False


def set_json(chosen: bool) -> None:
    """Whether standard output is kept for one JSON document: all else goes to standard error."""
    global _json
    _json = chosen


def set_level(level: int) -> None:
    """Of what is said from now on: `QUIET`, `USUAL` or `VERBOSE`."""
    global _level
    _level = level


def level() -> int:
    """How much is said."""
    return _level


def console(*, stderr: bool = False) -> Console:
    """A console that prints names as they are: "loss [nats]" is not markup."""
    from rich.console import Console

    made = Console(stderr=stderr or _json, markup=False, emoji=False, highlight=False)
    if not made.is_terminal and not os.environ.get("COLUMNS", "").isdecimal():
        made.width = PIPE_COLUMNS
    return made


def tell(text: str) -> None:
    """A line of the result, on standard output, or where that is JSON, on standard error."""
    console().print(text, soft_wrap=True)


def say(text: str) -> None:
    """What a command is doing or has done, to standard error; nothing under `--quiet`."""
    if _level > QUIET:
        console(stderr=True).print(text, soft_wrap=True)


def detail(text: str) -> None:
    """What is of interest when something is looked for; only under `--verbose`."""
    if _level >= VERBOSE:
        console(stderr=True).print(text, soft_wrap=True, style="dim")


def shows_progress() -> bool:
    """Whether it is shown how far things are; nothing under `--quiet`."""
    return _level > QUIET


def shows_bars() -> bool:
    """Whether bars are drawn: on a terminal, and not under `--quiet`. Elsewhere there are lines."""
    return shows_progress() and sys.stderr.isatty()

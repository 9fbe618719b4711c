"""`-q` and `-v`, before a command's name or after it."""

from __future__ import annotations

from typing import Annotated

import typer

from linscale import terminal

FLAGS = {
    "-q": terminal.QUIET,
    "--quiet": terminal.QUIET,
    "-v": terminal.VERBOSE,
    "--verbose": terminal.VERBOSE,
}

Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Print results and errors only; also after the command."),
]  # fmt: skip
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Say more, and show where an error arose; also after the "
                 "command."),
]  # fmt: skip


def choose_level(quiet: bool, verbose: bool) -> None:
    """Each command line begins anew: one process may be given several."""
    terminal.set_json(False)
    terminal.set_level(terminal.QUIET if quiet else terminal.VERBOSE if verbose else terminal.USUAL)


def before_the_command(words: list[str]) -> list[str]:
    """The words of a command line, with flags of this file that come later moved to the front;
    words after `--` are none."""
    end = words.index("--") if "--" in words else len(words)
    flags = [word for word in words[:end] if word in FLAGS]
    return [*flags, *(word for word in words[:end] if word not in FLAGS), *words[end:]]

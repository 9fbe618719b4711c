"""How a command reports a problem: one paragraph on stderr, and exit code 2."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from linscale.errors import LinscaleError
from linscale.os_errors import sentence
from linscale.terminal import VERBOSE, console, level


@contextmanager
def one_paragraph() -> Iterator[None]:
    """A problem that the user can mend ends the program, without a traceback: one that is said as
    such, or a disk, a limit or a permission that the system stopped at."""
    try:
        yield
    except (LinscaleError, OSError) as error:
        words = sentence(error) if isinstance(error, OSError) else str(error)
        if words is None:
            raise
        if level() >= VERBOSE:
            traceback.print_exc()
        show_error(words)
        raise SystemExit(2) from error


def show_error(problem: str) -> None:
    """Prints it on stderr, as it stands: nothing in it is taken for markup."""
    from rich.text import Text

    console(stderr=True).print(Text.assemble(("error: ", "bold red"), problem))

"""`linscale run --stop-early` and `linscale stop-early`: stop runs that cannot matter any more.

`analysis.forecast.early` decides which; `scaling.record.early` asks a run to stop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from linscale.options import AsJson, print_json
from linscale.terminal import tell
from scaling.record.early import ask_to_stop

app = typer.Typer()

SECONDS = 30.0
"""Between two looks at a sweep that is being run."""


@app.command(name="stop-early", epilog="Example: linscale stop-early runs/lr_transfer --dry-run")
def stop_early(
    directory: Annotated[Path, typer.Argument(help="Sweep directory, such as runs/lr_transfer.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say which runs would be stopped; stop none.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Stop live runs that cannot matter any more: diverging, or dominated by another rate or batch.

    They save, end as `stopped` with the reason, and are left out of fits, visibly; `linscale run
    ... --resume-stopped` goes on with them. `linscale run --stop-early` does this all along.
    """
    found = _hopeless(directory)
    if as_json:
        asked = {
            run: not dry_run and ask_to_stop(directory / run, why) for run, why in found.items()
        }
        print_json(
            [{"run_id": run, "reason": why, "asked": asked[run]} for run, why in found.items()]
        )
        return
    if not found:
        tell("no live run is beyond hope")
    for run_id, reason in found.items():
        if dry_run:
            tell(f"would stop {run_id}: {reason}")
        else:
            _stop(directory, run_id, reason, tell)


@contextmanager
def stopping(directory: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Look at a sweep every `SECONDS` while a block runs, and stop what cannot matter."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(SECONDS):
            try:
                for run_id, reason in _hopeless(directory).items():
                    _stop(directory, run_id, reason, say)
            except Exception as error:  # a look that fails must not end the training
                say(f"--stop-early: {type(error).__name__}: {error}")

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join(SECONDS)


def _hopeless(directory: Path) -> dict[str, str]:
    from analysis.errors import AnalysisError
    from analysis.forecast.early import hopeless
    from analysis.io.records import load_sweep

    try:
        return hopeless(load_sweep(directory))
    except AnalysisError:
        if directory.is_dir():
            return {}  # nothing has begun
        raise


def _stop(directory: Path, run_id: str, reason: str, say: Callable[[str], None]) -> None:
    if ask_to_stop(directory / run_id, reason):
        say(f"stopping {run_id}: {reason}")

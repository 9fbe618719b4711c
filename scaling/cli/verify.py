"""`linscale verify`: does a directory hold what was written?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from linscale.errors import LinscaleError
from linscale.options import AsJson, print_json
from linscale.terminal import console

app = typer.Typer()


@app.command(epilog="Example: linscale verify runs/quickstart")
def verify(
    directory: Annotated[
        Path,
        typer.Argument(
            help="A sweep or its zip file, a run, a data cache, or a prepared corpus in it."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Read everything and compare it with its hashes, and one file of a record with another.

    Checkpoints, milestones and records of runs; shards, indexes and block lists of prepared
    corpora. Nothing is changed. Exit code 1 if anything is damaged.
    """
    from rich.text import Text

    from analysis.io.sweep_files import unpacked
    from scaling.data import integrity
    from scaling.data.token_store import INDEX

    if (directory / INDEX).is_file() or (
        directory.is_dir() and next(directory.glob(f"*/{INDEX}"), None)
    ):
        own = (directory / INDEX).is_file()
        folders = [directory] if own else integrity.prepared_folders(directory)
        checks = [integrity.check(folder) for folder in folders]
        found: list[dict[str, Any]] = [
            {"name": one.folder, "state": one.state, "problems": one.problems} for one in checks
        ]
    elif (directory / "config.json").is_file():
        found = [_check_run(directory)]
    else:
        with unpacked(directory) as folder:
            runs = sorted(path.parent for path in folder.glob("*/config.json"))
            if not runs:
                raise LinscaleError(
                    f"{directory}: holds neither runs nor prepared corpora; give a sweep such as "
                    "runs/quickstart, one of its runs, or the data cache."
                )
            found = [*_check_sweep(folder), *(_check_run(run) for run in runs)]
    damaged = [one for one in found if one["state"] == "damaged"]
    if as_json:
        print_json(found)
    else:
        screen = console()
        for one in damaged:
            for problem in one["problems"]:
                screen.print(Text.assemble((one["name"], "red"), f": {problem}"), soft_wrap=True)
        screen.print(f"{len(found) - len(damaged)} of {len(found)} are whole")
    if damaged:
        raise typer.Exit(1)


def _check_run(run_dir: Path) -> dict[str, Any]:
    """A run's record by itself, and its milestones as those who fit read them."""
    from analysis.io.milestones import problems_of_run
    from scaling.record.head import read_head
    from scaling.record.verify import run_problems

    problems = run_problems(run_dir)
    state = read_head(run_dir).state
    if state == "done":
        problems += [why for why in problems_of_run(run_dir) if why not in problems]
    whole = "whole" if state == "done" else "unfinished"
    return {"name": run_dir.name, "state": "damaged" if problems else whole, "problems": problems}


def _check_sweep(folder: Path) -> list[dict[str, Any]]:
    """The list of a sweep's runs, where it cannot be read."""
    from linscale.json_reader import BadRecord, find_object

    try:
        find_object(folder / "sweep.json").words("runs")
    except BadRecord as error:
        return [{"name": "sweep.json", "state": "damaged", "problems": [str(error)]}]
    return []

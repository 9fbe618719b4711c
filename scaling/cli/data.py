"""`linscale data prepare`, `verify`, `list` and `prune`: the tokens that runs are trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from linscale.options import AsJson, print_json
from linscale.table import Column, Grid
from linscale.terminal import console, shows_bars, shows_progress, tell
from scaling.cli.options import File

app = typer.Typer(help="Tokenise corpora ahead of training, and check what was tokenised.")


AcceptDataChange = Annotated[
    bool,
    typer.Option(
        "--accept-data-change",
        help="Go on with runs whose corpus or tokenizer has changed since they began; it is "
        "recorded, and leaves them out of fits.",
    ),
]


@app.command(epilog="Example: linscale data prepare experiments/quickstart.py --workers 16")
def prepare(
    file: File,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Dotted overrides for every run, such as data.tokenizer=bpe:8192."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that tokenise (default: one a core for large corpora)."),
    ] = None,
    toy: Annotated[
        bool, typer.Option("--toy", help="The experiment's small variant, for a CPU.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Tokenise every corpus of an experiment: on a machine with many cores, before others train.

    `linscale run` does the same where it was not done. Killed at any moment, it goes on where it
    was; the files are the same for any number of workers. With LINSCALE_REMOTE they are fetched
    from there, or put there.
    """
    from models.config import ConfigError
    from scaling.config.experiment import load_experiment
    from scaling.data.prepare import prepare as prepare_data

    if workers is not None and workers < 1:
        raise ConfigError(f"--workers {workers}: must be at least 1.")
    experiment = load_experiment(file, overrides or [], toy)
    made: list[dict[str, Any]] = []
    for data in dict.fromkeys(run.data for run in experiment.runs):
        prepared = prepare_data(data, progress=shows_progress(), workers=workers)
        made.append(
            {
                "corpus": data.corpus,
                "tokenizer": data.tokenizer,
                "folder": str(prepared.folder),
                "train_tokens": prepared.train_tokens,
                "validation_tokens": prepared.validation_tokens,
                "bytes_per_token": prepared.bytes_per_token,
                "dtype": prepared.index.dtype,
            }
        )
        tell(
            f"{data.corpus}, tokenizer {data.tokenizer}: {prepared.train_tokens:,} training and "
            f"{prepared.validation_tokens:,} validation tokens of {prepared.index.dtype}, "
            f"{prepared.bytes_per_token:.3f} bytes each, in {prepared.folder}"
        )
    if as_json:
        print_json(made)


@app.command(epilog="Example: linscale data verify")
def verify(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(help="Prepared corpora (default: all of the data cache)."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read prepared corpora as a whole and compare them with their indexes, hash by hash.

    Exit code 1 if one is damaged.
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    from scaling.data.integrity import check, prepared_folders
    from scaling.data.prepare import default_cache

    chosen = folders or prepared_folders(default_cache())
    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console(stderr=True), disable=not shows_bars(), transient=True
    ) as bar:
        files = [path for folder in chosen for path in folder.glob("*.bin")]
        task = bar.add_task("", total=sum(path.stat().st_size for path in files))
        checks = [check(folder, lambda size: bar.advance(task, size)) for folder in chosen]
    if as_json:
        print_json([found.to_json() for found in checks])
    else:
        screen = console()
        screen.print(
            Grid(
                [
                    Column("prepared corpus", [found.folder for found in checks], words=True),
                    Column("state", [found.state for found in checks], words=True),
                    Column("tokens", [f"{found.tokens:,}" for found in checks]),
                    Column("shards", [str(found.shards) for found in checks], spare=1),
                    Column("MiB", [f"{found.size / 2**20:,.1f}" for found in checks]),
                ]
            )
        )
        for found in checks:
            for what in found.problems:
                screen.print(f"{found.folder}: {what}", style="red")
    if any(found.state == "damaged" for found in checks):
        raise typer.Exit(1)


@app.command("list", epilog="Example: linscale data list")
def show(
    as_json: AsJson = False,
) -> None:
    """Show the prepared corpora of the data cache: what they hold, their size, and orphans.

    An orphan was made from content that its files no longer have: a later one of the same settings
    is there. `linscale data prune` removes those.
    """
    from scaling.data.integrity import listing
    from scaling.data.settings import default_cache

    found = listing(default_cache())
    if as_json:
        print_json([one.to_json() for one in found])
        return
    states = ["orphan" if one.orphan else one.state for one in found]
    console().print(
        Grid(
            [
                Column("prepared corpus", [one.folder for one in found], words=True),
                Column("state", states, words=True),
                Column("tokens", [f"{one.tokens:,}" for one in found]),
                Column("MiB", [f"{one.size / 2**20:,.1f}" for one in found]),
            ]
        )
    )


@app.command("prune", epilog="Example: linscale data prune --dry-run")
def remove(
    folders: Annotated[
        list[str] | None,
        typer.Argument(help="Names of prepared corpora, as `linscale data list` shows them."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be removed; remove nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove prepared corpora: those that are named, or without names all orphans.

    They can be made anew from their corpora. Runs that are training on one must not be pruned.
    """
    from scaling.data.integrity import listing, prepared_folder, prune
    from scaling.data.settings import default_cache

    found = {one.folder: one for one in listing(default_cache())}
    chosen = folders or [one.folder for one in found.values() if one.orphan]
    for name in chosen:
        prepared_folder(default_cache(), name)
    removed: list[dict[str, Any]] = []
    for name in chosen:
        if not dry_run:
            prune(default_cache(), [name])
        size = found[name].size
        removed.append({"folder": name, "bytes": size, "removed": not dry_run})
        tell(f"{name}: {'would be ' if dry_run else ''}removed ({size / 2**20:,.1f} MiB)")
    if as_json:
        print_json(removed)
    elif not chosen:
        tell("no orphans")

"""`linscale log-to`: what a logger missed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command("log-to", epilog="Example: linscale log-to mlflow runs/quickstart")
def log_to(
    logger: Annotated[str, typer.Argument(help="tensorboard, wandb or mlflow.")],
    directory: Annotated[Path, typer.Argument(help="A run, or a sweep for all of its runs.")],
) -> None:
    """Send a logger the metrics of runs that it does not have yet, and how they ended.

    For a server that was away while runs were trained, or a logger that was not thought of then.
    Given again it sends nothing twice. A run that is being trained now is left to its own process.
    """
    from linscale.errors import LinscaleError
    from models.config import ConfigError
    from scaling.record.head import read_head
    from scaling.record.record import RunRecord
    from scaling.system.claims import claim
    from scaling.training.follower import log_to as send
    from scaling.training.loggers import PACKAGES

    if logger not in PACKAGES:
        raise ConfigError(f"{logger!r}: choose one of {', '.join(PACKAGES)}.")
    alone = (directory / "config.json").is_file()
    runs = [directory] if alone else sorted(p.parent for p in directory.glob("*/config.json"))
    if not runs:
        raise LinscaleError(f"{directory}: holds no run; give a sweep or one of its runs.")
    for run in runs:
        held = claim(run)
        if held is None:
            typer.echo(f"{run.name}: is being trained; its own process sends them")
            continue
        with held:
            config = read_head(run).run_config()
            count = send(logger, RunRecord(config, run.resolve().parent))
        typer.echo(f"{run.name}: {count} lines sent to {logger}")

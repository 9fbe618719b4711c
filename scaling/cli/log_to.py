"""`linscale log-to`: send a logger the metrics of runs that it does not have yet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from linscale.options import AsJson, print_json
from linscale.terminal import tell

app = typer.Typer()


@app.command("log-to", epilog="Example: linscale log-to mlflow runs/quickstart")
def log_to(
    logger: Annotated[str, typer.Argument(help="tensorboard, wandb, mlflow or trackio.")],
    directory: Annotated[Path, typer.Argument(help="A run, or a sweep for all of its runs.")],
    as_json: AsJson = False,
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
    sent: list[dict[str, Any]] = []
    for run in runs:
        held = claim(run)
        if held is None:
            sent.append({"run_id": run.name, "lines": 0, "being_trained": True})
            tell(f"{run.name}: is being trained; its own process sends them")
            continue
        with held:
            config = read_head(run).run_config()
            count = send(logger, RunRecord(config, run.resolve().parent))
        sent.append({"run_id": run.name, "lines": count, "being_trained": False})
        tell(f"{run.name}: {count} lines sent to {logger}")
    if as_json:
        print_json(sent)

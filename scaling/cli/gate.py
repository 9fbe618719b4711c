"""`linscale gate`: does a change transfer to larger models?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from linscale.options import AsJson, print_json
from linscale.table import Column, Grid
from linscale.terminal import console
from models.config import ConfigError
from scaling.cli.options import Only, Toy

if TYPE_CHECKING:
    from analysis.judge.gate import Gate
    from scaling.config.experiment import Experiment

app = typer.Typer()
EXIT_CODES = {"transfers": 0, "does not transfer": 1, "not determined": 3}


@app.command(
    epilog="Examples: `linscale gate runs/base runs/changed`, "
    "`linscale gate quickstart optim.lr=0.01 --only 'arch=hgrn2 size=d16|d24' --seeds 0,1,2,3`"
)
def gate(
    base: Annotated[
        Path, typer.Argument(help="Runs without the change: a sweep; or an experiment to train.")
    ],
    changed: Annotated[
        list[str],
        typer.Argument(help="Runs with it: a sweep; or for an experiment the fields that change, "
                       "such as optim.lr=0.01."),
    ],
    only: Only = None,
    at: Annotated[
        float | None,
        typer.Option(help="Size to judge at, in parameters (default: ten times the largest)."),
    ] = None,
    margin: Annotated[
        float, typer.Option(min=0, help="Least gain that counts, in per cent of loss.")
    ] = 0.0,
    seeds: Annotated[
        str, typer.Option(help="Of an experiment: seeds that both sides train, with commas.")
    ] = "0,1,2,3",
    jobs: Annotated[
        int | None, typer.Option(help="Of an experiment: workers (default: from the cores).")
    ] = None,
    toy: Toy = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Of an experiment: folder of both sides (default: "
                     "runs/gate-NAME)."),
    ] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Judge whether a change lowers the loss, and would at a larger size.

    Runs with and without it are paired by size and seed. The differences at two sizes or more give
    their trend, and an interval for the difference at the size of --at. Exit code 0: it transfers;
    1: it does not; 3: not determined, more seeds or sizes are needed.
    """
    from analysis.io.records import load_sweep
    from analysis.judge.gate import gate as judge

    sides = [base, Path(changed[0])]
    if any("=" in word for word in changed):
        sides = _train(base, changed, only, seeds, toy, jobs, out)
    elif len(changed) > 1:
        raise ConfigError(f"{changed[1]!r}: give one sweep with the change, or fields name=value.")
    found = judge(*(load_sweep(side, only=only) for side in sides), at=at, margin=margin)
    if as_json:
        print_json(found.as_dict() | {"base": str(sides[0]), "changed": str(sides[1])})
    else:
        _show(found)
    raise typer.Exit(EXIT_CODES[found.verdict])


def _train(
    file: Path, overrides: list[str], only: str | None, seeds: str, toy: bool, jobs: int | None,
    out: Path | None,
) -> list[Path]:  # fmt: skip
    """Train both sides, or what is left of them; where their runs are."""
    from linscale.errors import LinscaleError
    from linscale.installation import require
    from scaling.sweep.launch import launch

    require("linscale gate", "torch", "lightning")
    places: list[Path] = []
    for name, changes in (("base", []), ("changed", overrides)):
        experiment = _with_seeds(file, changes, only, seeds, toy)
        sizes = {config.size for config in experiment.runs}
        archs = {config.model.arch for config in experiment.runs}
        if len(sizes) < 2 or len(archs) > 1:
            raise ConfigError(
                f"--only {only!r}: leaves the sizes {', '.join(sorted(sizes))} of "
                f"{', '.join(sorted(archs))}; a gate takes one architecture and two sizes or more, "
                "such as --only 'arch=llama size=d16|d24'."
            )
        place = (out or Path("runs") / f"gate-{experiment.name}") / name
        if not launch(experiment, place, jobs=jobs):
            raise LinscaleError(f"{place}: runs have failed or were stopped; see linscale status.")
        places.append(place)
    return places


def _with_seeds(
    file: Path, overrides: list[str], only: str | None, seeds: str, toy: bool
) -> Experiment:
    """The experiment's runs, each with every seed."""
    from scaling.config.experiment import load_experiment

    words = [word.strip() for word in seeds.split(",") if word.strip()]
    if not words or not all(word.isdecimal() for word in words):
        raise ConfigError(f"--seeds {seeds}: give whole numbers with commas, such as 0,1,2,3.")
    read = load_experiment(file, overrides, toy, only=only)
    seeded = (config.override([f"seed={word}"]) for config in read.runs for word in words)
    return replace(read, runs=list({config.run_id: config for config in seeded}.values()))


def _show(found: Gate) -> None:
    rows = found.rungs.to_dict("records")
    screen = console()
    screen.print(
        Grid(
            [
                Column("size", [str(row["size"]) for row in rows], words=True),
                Column("params", [f"{row['n_params']:,.0f}" for row in rows]),
                Column("seeds", [str(row["seeds"]) for row in rows]),
                Column("change of loss", [f"{row['difference']:+.2f} %" for row in rows]),
                Column(
                    f"{found.level:.0%} interval",
                    [f"{row['low']:+.2f} … {row['high']:+.2f}" for row in rows],
                ),
            ]
        )
    )
    screen.print(f"for ten times the size the change of loss moves by {found.trend}")
    for text in found.unpaired:
        screen.print(f"left out: {text}", style="yellow")
    screen.print(found.sentence(), style="bold")

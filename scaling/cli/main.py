"""The `linscale` command: plan, run, status; fit and report from `analysis`.

Everything heavy is imported inside the commands, so that `linscale --help` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analysis.cli.commands import app as analysis_app
from analysis.cli.forecast import forecast_app
from analysis.cli.tables import app as tables_app
from linscale.code_search import search_also
from linscale.installation import missing, version
from linscale.paragraph import one_paragraph, show_error
from models.config import ConfigError
from scaling.cli.adaptive import app as adaptive_app
from scaling.cli.blockwise import app as blockwise_app
from scaling.cli.blockwise import show_plan
from scaling.cli.checkpoint import app as checkpoint_app
from scaling.cli.data import app as data_app
from scaling.cli.early import app as early_app
from scaling.cli.evaluate import app as evaluation_app
from scaling.cli.inference import app as inference_app
from scaling.cli.linearize import app as linearization_app
from scaling.cli.log_to import app as log_to_app
from scaling.cli.options import AsJson, File, GpusPerNode, HyperLaw, Only, Out, Overrides, Toy
from scaling.cli.run import app as run_app
from scaling.cli.tune import app as tune_app
from scaling.cli.verify import app as verify_app
from scaling.system.words import duration, si, size, wall

if TYPE_CHECKING:
    from rich.table import Table

    from scaling.plan.plan import Rung
    from scaling.system.devices import Device


def rungs_of(file: Path, toy: bool, directory: Path | None) -> list[dict[str, Any]]:
    """The rungs of an experiment as `linscale plan --json` prints them, for `linscale forecast`.

    Args:
        file: experiment file.
        toy: its small variant.
        directory: of its runs, for their states; None takes runs/<file stem>.
    """
    from scaling.config.experiment import load_experiment
    from scaling.plan.plan import placed, rung
    from scaling.record.record import read_states
    from scaling.system.devices import device_for

    experiment = load_experiment(file, [], toy)
    states = read_states(directory or Path("runs") / experiment.name)
    target = device_for(experiment.runs, "")
    return [
        rung(placed(run, target), target, states.get(run.run_id, "planned")).to_json()
        for run in experiment.runs
    ]


app = typer.Typer(
    name="linscale",
    help="Scaling laws for linear-complexity language models: plan, train, fit, compare.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    epilog="Start with: linscale plan experiments/quickstart.py",
)
app.add_typer(run_app)
app.add_typer(adaptive_app)
app.add_typer(early_app)
app.add_typer(analysis_app)
app.add_typer(inference_app)
app.add_typer(forecast_app(rungs_of))
app.add_typer(blockwise_app)
app.add_typer(checkpoint_app)
app.add_typer(data_app, name="data")
app.add_typer(tune_app)
app.add_typer(verify_app)
app.add_typer(log_to_app)
app.add_typer(evaluation_app)
app.add_typer(tables_app)
app.add_typer(linearization_app)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"linscale {version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None: ...


@app.command(epilog="Example: linscale plan experiments/paper_ladder.py --device h200")
def plan(
    file: File,
    overrides: Overrides = None,
    device: Annotated[
        str, typer.Option(help="Device to plan for: cpu, a100, h100, h200, b200, mi300x.")
    ] = "",
    only: Only = None,
    nodes: Annotated[
        int | None,
        typer.Option(help="Nodes that a run may have; without, the fewest devices that hold it."),
    ] = None,
    gpus_per_node: GpusPerNode = 8,
    law: HyperLaw = "constant",
    refine: Annotated[
        Path | None,
        typer.Option(help="Finished sweep: rank the rungs by how much they would narrow "
                     "--quantity."),
    ] = None,
    quantity: Annotated[
        str,
        typer.Option(help="With --refine: a parameter (alpha, E), a, b, loss@C, n@C, d@C or "
                     "loss@N,D."),
    ] = "a",
    budget: Annotated[
        float | None, typer.Option(help="With --refine: FLOPs to spend on new rungs.")
    ] = None,
    toy: Toy = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Show every rung of an experiment: size, tokens, FLOPs, memory, time. Writes nothing.

    A rung that does not fit is refused, and the field that would make it fit is named. Without
    --device, runs that are set to `parallel.accelerator=cpu` are planned for this machine and
    others for an h100. With --refine, the rungs that a finished sweep lacks are ranked by how much
    each would narrow the interval of a quantity, within --budget.
    """
    from scaling.config.experiment import defines, load_experiment
    from scaling.config.hyper_laws import known_law
    from scaling.plan.plan import placed
    from scaling.plan.plan import plan as plan_runs
    from scaling.record.record import read_states
    from scaling.system.devices import device_for, find_device

    chosen = known_law(law)
    if defines(file, "blockwise"):
        if chosen != "constant":
            raise ConfigError(f"--law {law}: {file} linearizes a teacher, with its own rates.")
        target = find_device(device or ("cpu" if toy else "h100"))
        show_plan(file, toy, target, as_json)
        if as_json or not defines(file, "runs"):
            return
    cluster = 1 if nodes is None else nodes * gpus_per_node
    experiment = load_experiment(file, overrides or [], toy, chosen, cluster, only)
    target = device_for(experiment.runs, device)
    states = read_states(out or Path("runs") / experiment.name)
    runs = [placed(run, target, nodes, gpus_per_node) for run in experiment.runs]
    rungs = plan_runs(runs, target, states, chosen)
    if refine is not None:
        from analysis.cli.fit import plan_refinement

        plan_refinement([r.to_json() for r in rungs], refine, quantity=quantity, budget=budget,
                        as_json=as_json)  # fmt: skip
        return
    if as_json:
        typer.echo(json.dumps([r.to_json() for r in rungs], indent=1))
        return
    from rich.console import Console

    console = Console()
    console.print(_plan_table(experiment.name, rungs, target, console.width))
    hours = sum(r.device_hours for r in rungs)
    low, high = time_range(hours)
    console.print(
        f"{len(rungs)} runs, {sum(r.flops for r in rungs):.3g} FLOPs, {duration(3600 * low)} to "
        f"{duration(3600 * high)} of one {target.name} (at 50 to 25 % of its peak: what a run "
        f"reaches is measured by running it; the table assumes {target.efficiency:.0%}). The "
        "longest run takes "
        f"about {wall(3600 * max(r.wall_hours for r in rungs))} on its devices.",
        highlight=False,
    )
    console.print(
        f"Disk: {size(sum(r.disk for r in rungs))} that stay (float32 weights at "
        f"{sum(len(r.horizons) for r in rungs)} horizons, and the ends of trunks, from which "
        "longer runs go on: budget.keep_trunk), and up to "
        f"{size(sum(r.disk_peak - r.disk for r in rungs))} of points to resume from while all "
        "runs are under way. Fewer budget.horizons take less.",
        highlight=False,
    )
    console.print(
        "Parameters without embeddings, FLOPs in the exact convention, memory on each device; "
        "time on a run's own devices. All fields: --json.",
        highlight=False,
    )


def time_range(hours: float) -> tuple[float, float]:
    """Device hours at the most and the least of its peak that a run may reach, from an estimate
    that assumes 40 %."""
    return hours * 0.4 / 0.5, hours * 0.4 / 0.25


def _plan_table(name: str, rungs: list[Rung], device: Device, width: int) -> Table:
    """Every rung on one line; a narrow terminal leaves out what the others imply."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    cells: dict[str, list[str]] = {
        "run": [r.run_id.rpartition("-")[0] for r in rungs],
        "seed": [str(r.seed) for r in rungs],
        "params": [si(r.params_exact) for r in rungs],
        "tokens": [si(r.tokens) for r in rungs],
        "horizons": [str(len(r.horizons)) for r in rungs],
        "steps": [f"{r.steps:,}" for r in rungs],
        "batch": [si(r.batch_tokens) for r in rungs],
        "lr": [f"{r.lr:g}" for r in rungs],
        "FLOPs/token": [si(r.flops_per_token) for r in rungs],
        "FLOPs": [f"{r.flops:.2e}" for r in rungs],
        "memory": [f"{r.devices} x {size(r.memory_per_device)}" for r in rungs],
        "by": [r.strategy for r in rungs],
        "time": [wall(3600 * r.wall_hours) for r in rungs],
        "disk": [size(r.disk) for r in rungs],
        "state": ["✔ done" if r.state == "done" else r.state for r in rungs],
    }
    for top, usual in (("by", "single"), ("state", "planned")):
        if set(cells[top]) == {usual}:
            del cells[top]
    if len(set(cells["seed"])) == 1:
        del cells["seed"]
    title, spares = f"{name}: planned for {device.name}", ["batch", "steps", "lr", "tokens"]
    if (law := rungs[0].law) != "constant":
        title += f"\nlearning rate and batch by law: {law}"
        spares = ["steps", "tokens", "batch", "lr"]
    for spare in ("FLOPs/token", "horizons", "disk", *spares, "FLOPs"):
        if 2 + sum(3 + max(map(len, [top, *rows])) for top, rows in cells.items()) <= width:
            break
        del cells[spare]
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for top in cells:
        left = top in ("run", "by", "state")
        table.add_column(top, justify="left" if left else "right", no_wrap=True)
    for row in zip(*cells.values(), strict=True):
        table.add_row(*row)
    return table


def main() -> None:
    """Run the command line; a problem that the user can mend is one paragraph and exit code 2."""
    os.environ["PYTHONSAFEPATH"] = "1"  # for every child, and theirs
    search_also(Path.cwd())
    try:
        with one_paragraph():
            app()
    except ModuleNotFoundError as error:
        sentence = missing(error)
        if sentence is None:
            raise
        show_error(" ".join(["linscale", *sys.argv[1:2], sentence]))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()

"""`linscale plan`: every rung of an experiment before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from linscale.options import print_json
from linscale.si import si
from linscale.table import Column, Grid
from linscale.terminal import console
from models.config import ConfigError
from scaling.cli.blockwise import show_plan
from scaling.cli.options import AsJson, File, GpusPerNode, HyperLaw, Only, Out, Overrides, Toy
from scaling.system.words import counted, duration, size, wall

if TYPE_CHECKING:
    from scaling.plan.plan import Rung
    from scaling.plan.speeds import Speeds
    from scaling.system.devices import Device

app = typer.Typer()

MOST_SHOWN = 1000
"""Rows of a plan's table."""


def rungs_of(file: Path, toy: bool, directory: Path | None) -> list[dict[str, Any]]:
    """The rungs of an experiment as `linscale plan --json` prints them, for `linscale forecast`.

    Args:
        file: experiment file.
        toy: its small variant.
        directory: of its runs, for their states; None takes runs/<file stem>.
    """
    from scaling.config.experiment import load_experiment
    from scaling.plan.plan import place_run, rung
    from scaling.record.record import read_states
    from scaling.system.devices import device_for

    experiment = load_experiment(file, [], toy)
    states = read_states(directory or Path("runs") / experiment.name)
    target = device_for(experiment.runs, "")
    return [
        rung(place_run(run, target), target, states.get(run.run_id, "planned")).to_json()
        for run in experiment.runs
    ]


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
    speeds: Annotated[
        Path | None,
        typer.Option(help="Sweep that ran on such devices: times are by the speeds that it logged, "
                     "by architecture and size."),
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
    from scaling.plan.plan import place_run
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
    runs = (place_run(run, target, nodes, gpus_per_node) for run in experiment.runs)
    measured = None if speeds is None else _speeds(speeds, target)
    rungs = plan_runs(runs, target, states, chosen, measured)
    if refine is not None:
        from analysis.cli.fit import plan_refinement

        plan_refinement([r.to_json() for r in rungs], refine, quantity=quantity, budget=budget,
                        as_json=as_json)  # fmt: skip
        return
    if as_json:
        print_json([r.to_json() for r in rungs])
        return
    screen = console()
    screen.print(_plan_table(experiment.name, rungs[:MOST_SHOWN], target))
    if len(rungs) > MOST_SHOWN:
        screen.print(f"... and {len(rungs) - MOST_SHOWN:,} more; --json has all.")
    screen.print(_times(rungs, target, speeds))
    screen.print(
        f"Disk: {size(sum(r.disk for r in rungs))} that stay (weights at "
        f"{sum(len(r.horizons) for r in rungs)} horizons, half of it with "
        "budget.milestone_precision=bf16, and the ends of trunks, from which longer runs go on: "
        "budget.keep_trunk), and up to "
        f"{size(sum(r.disk_peak - r.disk for r in rungs))} of points to resume from while all "
        "runs are under way. Fewer budget.horizons take less.",
    )
    screen.print(
        "Parameters without embeddings, FLOPs in the exact convention, memory on each device; "
        "time on a run's own devices. All fields: --json.",
    )


def _speeds(source: Path, target: Device) -> Speeds:
    from analysis.io.records import load_sweep
    from scaling.plan.speeds import speeds

    sweep = load_sweep(source)
    return speeds(sweep.runs, sweep.curves, target, str(source))


def _times(rungs: list[Rung], target: Device, speeds: Path | None) -> str:
    """FLOPs and hours of all, and what they rest on."""
    low, high = (3600 * sum(hours) for hours in zip(
        *((r.device_hours_low, r.device_hours_high) for r in rungs), strict=True
    ))  # fmt: skip
    text = (
        f"{counted(len(rungs), 'run')}, {sum(r.flops for r in rungs):.3g} FLOPs, "
        f"{duration(low)} to {duration(high)} of one {target.name}"
    )
    longest = (
        f" The longest run takes about {wall(3600 * max(r.wall_hours for r in rungs))} on its "
        "devices."
    )
    if speeds is None:
        return (
            f"{text} (at 50 to 25 % of its peak: what a run reaches is measured by running it, "
            f"see --speeds; the table assumes {target.efficiency:.0%}).{longest}"
        )
    text += f" (at the slowest and fastest tenths of the speeds logged in {speeds})."
    beyond = sum(r.speed == "nearest size" for r in rungs)
    if beyond:
        text += (
            f" {counted(beyond, 'run')} of sizes beyond those that ran: at the nearest one's speed."
        )
    if unknown := sorted({r.arch for r in rungs if r.speed == "assumed"}):
        text += f" Not measured, {target.efficiency:.0%} assumed: {', '.join(unknown)}."
    return text + longest


def _plan_table(name: str, rungs: list[Rung], device: Device) -> Grid:
    """Every rung on one line; a narrow terminal leaves out what the others imply."""
    title, law = f"{name}: planned for {device.name}", rungs[0].law
    if law != "constant":
        title += f"\nlearning rate and batch by law: {law}"
    chosen = 0 if law == "constant" else -4  # what a law chooses stays longer

    def column(title: str, cells: Iterable[str], spare: int = 0, **how: Any) -> Column:
        return Column(title, list(cells), spare=spare, **how)

    columns = [
        column("run", (r.run_id.rpartition("-")[0] for r in rungs), words=True),
        column("seed", (str(r.seed) for r in rungs), once=True),
        column("params", (si(r.params_exact) for r in rungs)),
        column("tokens", (si(r.tokens) for r in rungs), 2),
        column("horizons", (str(len(r.horizons)) for r in rungs), 8),
        column("steps", (f"{r.steps:,}" for r in rungs), 5),
        column("batch", (si(r.batch_tokens) for r in rungs), 6 + chosen),
        column("lr", (f"{r.lr:g}" for r in rungs), 5 + chosen),
        column("FLOPs/token", (si(r.flops_per_token) for r in rungs), 9),
        column("FLOPs", (f"{r.flops:.2e}" for r in rungs), 3),
        column("memory", (f"{r.devices} x {size(r.memory_per_device)}" for r in rungs)),
        column("by", (r.strategy for r in rungs), words=True, once=True),
        column("of peak", (f"{r.utilization:.0%}" for r in rungs), 10, once=True),
        column("time", (wall(3600 * r.wall_hours) for r in rungs)),
        column("disk", (size(r.disk) for r in rungs), 7),
        column("state", ("✔ done" if r.state == "done" else r.state for r in rungs), words=True),
    ]
    usual = {"by": "single", "state": "planned", "of peak": f"{device.efficiency:.0%}"}
    shown = (c for c in columns if set(c.cells) != {usual.get(c.title)})
    return Grid(shown, title=title)

"""`linscale run` and `linscale status`: train a sweep, and see how far it is."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from linscale.installation import require
from linscale.options import print_json
from linscale.terminal import console, say, tell
from models.config import ConfigError
from scaling.cli.adaptive import check_options, run_chosen
from scaling.cli.data import AcceptDataChange
from scaling.cli.early import stopping
from scaling.cli.options import AsJson, File, HyperLaw, Only, Out, Overrides, Toy

app = typer.Typer()


@app.command(epilog="Example: linscale run experiments/quickstart.py --jobs 2")
def run(
    file: File,
    overrides: Overrides = None,
    only: Only = None,
    launcher: Annotated[
        str, typer.Option(help="local (a pool of workers), inline (this process) or slurm.")
    ] = "local",
    jobs: Annotated[
        int | None, typer.Option(help="Workers of the local pool (default: from the cores).")
    ] = None,
    fuse: Annotated[
        int | None,
        typer.Option(help="Train up to so many runs of one shape at once on a CUDA device, all "
                     "their steps in one graph: for small models."),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Shorten every run, and leave out the largest, so that the sweep takes "
                     "about so long on this machine."),
    ] = None,
    partition: Annotated[str | None, typer.Option(help="SLURM partition.")] = None,
    nodes: Annotated[
        int | None, typer.Option(help="SLURM nodes that a run may have, as in `linscale plan`.")
    ] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option(help="SLURM: devices of a node of the cluster (default 8).")
    ] = None,
    device: Annotated[
        str, typer.Option(help="With slurm, what the nodes have: a100, h100, h200, b200, mi300x.")
    ] = "",
    time: Annotated[
        str | None,
        typer.Option(help="SLURM time limit, such as 12:00:00 (default: from the plan)."),
    ] = None,
    at_most: Annotated[
        int | None, typer.Option(help="SLURM: so many runs of an array at once.")
    ] = None,
    setup: Annotated[
        list[str] | None,
        typer.Option(help="SLURM: a line of shell before the run, such as 'module load cuda'."),
    ] = None,
    slurm: Annotated[
        list[str] | None, typer.Option(help="Further sbatch option, such as account=physics.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="SLURM: print resources and scripts; submit nothing."),
    ] = False,
    law: HyperLaw = "constant",
    in_order: Annotated[
        bool,
        typer.Option("--in-order", help="Begin runs in the order of the file, so that what is "
                     "finished is of use at any time; otherwise the longest first, which ends "
                     "soonest."),
    ] = False,
    adaptive: Annotated[
        bool,
        typer.Option("--adaptive", help="Choose runs a batch at a time: those that narrow "
                     "--target most per FLOP, each up to any of its horizons."),
    ] = False,
    target: Annotated[
        list[str] | None,
        typer.Option(help="With --adaptive: stop when this is so, as 'width(a)<0.05', "
                     "'width(multiplier)<0.1' or 'width(loss@1e18[tnl])<0.02'; repeatable."),
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="With --adaptive: FLOPs for all runs that it chooses.")
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(help="With --adaptive: runs between two decisions (default: as many as "
                     "architectures, at least 2)."),
    ] = None,
    early: Annotated[
        bool,
        typer.Option("--stop-early", help="Stop runs that cannot matter any more: diverging, or "
                     "dominated by another learning rate or batch."),
    ] = False,
    resume_stopped: Annotated[
        bool,
        typer.Option("--resume-stopped", help="Go on with runs that were stopped early."),
    ] = False,
    accept_data_change: AcceptDataChange = False,
    toy: Toy = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Run a sweep, or resume it: finished runs are skipped, killed ones go on where they were.

    The same command in a second terminal joins in and takes runs nobody has claimed. With
    --launcher slurm the runs are submitted as job arrays and the command ends.
    """
    require("linscale run", "torch", "lightning")
    say(f"reading {file}")  # what comes next is loaded for some seconds
    from scaling.config.experiment import load_experiment
    from scaling.config.hyper_laws import known_law
    from scaling.plan.within import within_this_machine
    from scaling.record.early import go_on
    from scaling.sweep.launch import launch
    from scaling.sweep.slurm import SlurmOptions, parse_extra
    from scaling.sweep.slurm_queue import minutes as time_limit

    options = {
        "--partition": partition, "--nodes": nodes, "--gpus-per-node": gpus_per_node,
        "--time": time, "--slurm": slurm, "--device": device or None, "--at-most": at_most,
        "--setup": setup, "--dry-run": dry_run or None,
    }  # fmt: skip
    given = [name for name, value in options.items() if value is not None]
    if launcher != "slurm" and given:
        raise ConfigError(f"{given[0]} with --launcher {launcher}: only slurm has this option.")
    if jobs is not None and launcher != "local":
        raise ConfigError(f"--jobs with --launcher {launcher}: only the local pool has workers.")
    check_options(adaptive, target or [], budget, batch, {"--in-order": in_order,
                                                          "--dry-run": dry_run})  # fmt: skip
    if early and launcher == "slurm" and not adaptive:
        raise ConfigError(
            "--stop-early with --launcher slurm: this command ends when runs are submitted; give "
            "`linscale stop-early DIR` while they train."
        )
    if time is not None:
        time_limit(time)
    per_node = 8 if gpus_per_node is None else gpus_per_node
    multiple = 1 if nodes is None else nodes * per_node  # as `linscale plan` rounds a law's batch
    experiment = load_experiment(file, overrides or [], toy, known_law(law), multiple, only)
    if minutes is not None:
        if launcher == "slurm":
            raise ConfigError("--minutes with --launcher slurm: it measures this machine.")
        experiment, what = within_this_machine(experiment, minutes, out)
        say(what)
    sweep_dir = out or Path("runs") / experiment.name
    cluster = SlurmOptions(
        partition=partition, time=time, nodes=nodes, gpus_per_node=per_node, device=device,
        at_most=at_most, setup=tuple(setup or ()), extra=parse_extra(slurm or []),
    )  # fmt: skip
    start = partial(
        launch,
        sweep_dir=sweep_dir,
        launcher=launcher,
        jobs=jobs,
        slurm=cluster,
        accept_data_change=accept_data_change,
        in_order=in_order,
        dry_run=dry_run,
        fuse=fuse,
    )
    if resume_stopped:
        for config in experiment.runs:
            go_on(config, sweep_dir)
    watching = stopping(sweep_dir, say) if early else nullcontext()
    with watching:
        if adaptive and budget is not None:
            ended = run_chosen(experiment, sweep_dir, start, targets=target or [], budget=budget,
                               batch=batch, waits=launcher == "slurm")  # fmt: skip
        else:
            ended = start(experiment)
    if as_json:
        from scaling.sweep.status import status_rows

        ids = {config.run_id for config in experiment.runs}
        rows = [] if dry_run else status_rows(sweep_dir)
        chosen = [row for row in rows if row["run_id"] in ids]
        print_json({"directory": str(sweep_dir), "ended": ended, "runs": chosen})
    if not ended:
        raise typer.Exit(1)


@app.command(epilog="Example: linscale status runs/quickstart")
def status(
    directory: Annotated[Path, typer.Argument(help="Sweep directory, such as runs/quickstart.")],
    only: Only = None,
    as_json: AsJson = False,
    live: Annotated[bool, typer.Option("--watch", help="Keep showing it until Ctrl-C.")] = False,
    page: Annotated[
        Path | None, typer.Option("--html", help="Write a static page to this file.")
    ] = None,
) -> None:
    """Show the state of every run of a sweep, with reasons for those that failed.

    A live run's latest losses are held against a law of loss over tokens, fitted to the finished
    runs of its architecture: "off law" is how far they are off, marked where they leave their band.
    """
    from analysis.io.sweep_files import unpacked
    from scaling.cli.health import Judge
    from scaling.sweep.status import status_rows, status_table, watch
    from scaling.sweep.status_page import write_page

    if live and (as_json or page is not None):
        raise ConfigError("--watch shows the table: leave out --json and --html.")
    if live:
        watch(directory, only=only, judge=Judge(directory))
        return
    with unpacked(directory) as folder:
        rows: list[dict[str, Any]] = status_rows(folder, only)
        Judge(folder)(rows)
    if page is not None:
        write_page(directory, rows, page)
        tell(f"wrote {page}")
    if as_json:
        print_json(rows)
    if as_json or page is not None:
        return
    console().print(status_table(directory, rows))

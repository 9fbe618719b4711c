"""`linscale clocks`: what a loss costs each architecture, on several clocks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from linscale.options import AsJson, print_json
from linscale.table import Column, Grid
from linscale.terminal import console, say

if TYPE_CHECKING:
    import pandas as pd

    from analysis.judge.clocks import Costs
    from scaling.config.run import RunConfig

app = typer.Typer()
CONTEXTS = tuple(2**k for k in range(8, 21))
"""Contexts between which the order may turn."""


@app.command(
    epilog="Example: linscale clocks experiments/results/small_ladder.zip --steps steps.csv -o out"
)
def clocks(
    sweep: Annotated[Path, typer.Argument(help="Finished sweep, its directory or zip.")],
    loss: Annotated[
        float | None,
        typer.Option(help="Loss to reach (default: the lowest that every architecture has)."),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(min=1, help="Of the FLOPs and the bytes, in tokens (default: as trained)."),
    ] = None,
    steps: Annotated[
        Path | None,
        typer.Option(help="Table of measured steps (arch, n_params, seconds a token), as "
                     "`python -m experiments.benchmarks.step_times SWEEP -o FILE` writes it."),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="Architecture to compare with (default llama, else the first)."),
    ] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="Refits for intervals.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the tables and the figure.")
    ] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Multipliers in training FLOPs, tokens, training time and bytes read a generated token.

    The context from which an architecture is cheaper than the baseline is looked for between 256
    and 1M tokens, by FLOPs and by bytes. Losses there are taken to be those that were measured at
    the context of training.
    """
    from linscale.paragraph import one_paragraph

    with one_paragraph():
        _clocks(sweep, loss, context, steps, baseline, bootstrap, seed, out, as_json)


def _clocks(
    sweep: Path, loss: float | None, context: int | None, steps: Path | None, baseline: str | None,
    bootstrap: int, seed: int, out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    import pandas as pd

    from analysis.errors import AnalysisError
    from analysis.io.frames import plain
    from analysis.io.records import load_sweep
    from analysis.io.sweep_files import is_table
    from analysis.judge.clocks import BYTES, FLOPS, turning
    from analysis.judge.clocks import clocks as readings_of
    from scaling.cli.sweep_models import question, runs_of

    if sweep.exists() and is_table(sweep):
        raise AnalysisError(f"{sweep} is a table: clocks count the models of a sweep as they are "
                            "built; give its directory or zip")  # fmt: skip
    read = load_sweep(sweep)
    laws, loss, base = question(read, loss, baseline, bootstrap, seed)
    names = list(laws)
    runs = runs_of(sweep, read)
    trained = sorted({c.data.sequence_length for sizes in runs.values() for c in sizes.values()})
    at = context or trained[-1]
    seconds = {} if steps is None else _seconds(steps, names)
    costs = {name: _costs(runs[name], at, seconds.get(name)) for name in names}
    found = readings_of(laws, loss, costs, base)
    everywhere = {name: {c: _costs(runs[name], c, None) for c in CONTEXTS} for name in names}
    turns = pd.concat(
        [turning(laws, loss, everywhere, base, clock).assign(clock=clock)
         for clock in (FLOPS, BYTES)],
        ignore_index=True,
    )  # fmt: skip
    if as_json:
        print_json({
            "sweep": read.name, "loss": loss, "context": at, "trained_at": trained,
            "baseline": base, "conventions": read.conventions, "clocks": plain(found),
            "turns": plain(turns),
        })  # fmt: skip
        return
    title = f"{read.name}: what a loss of {loss:.4g} costs at a context of {at:,}"
    if out is not None:
        _save(out, found, turns, base, title)
    _show(found, turns, base, title, at, trained)


def _seconds(steps: Path, names: list[str]) -> dict[str, Any]:
    """Seconds a token by architecture, as functions of N."""
    import numpy as np
    import pandas as pd

    from analysis.errors import AnalysisError
    from analysis.io.frames import numbers, where
    from analysis.laws.compute_model import fit_compute_model
    from linscale.shipped import shipped_file

    try:
        table = pd.read_csv(shipped_file(steps))
    except (OSError, ValueError) as error:
        raise AnalysisError(f"--steps {steps}: cannot be read as a table: {error}") from error
    needed = ("arch", "n_params", "seconds_per_token")
    missing = [name for name in needed if name not in table]
    if missing:
        raise AnalysisError(f"--steps {steps}: no column {', '.join(missing)}; "
                            f"there must be {', '.join(needed)}")  # fmt: skip
    found: dict[str, Any] = {}
    for name in names:
        own = where(table, arch=name)
        n, taken = numbers(own, "n_params"), numbers(own, "seconds_per_token")
        if len(own) < 2 or not (np.isfinite(taken) & (taken > 0)).all():
            raise AnalysisError(f"--steps {steps}: {name} needs two sizes or more with positive "
                                "seconds a token")  # fmt: skip
        found[name] = fit_compute_model(n, taken)
    return found


def _costs(runs: dict[int, RunConfig], context: int, seconds: Any) -> Costs:
    """Exact counts of the models at a context; half-precision weights and caches, states in single
    precision."""
    import numpy as np

    from analysis.judge.clocks import Costs
    from analysis.laws.compute_model import fit_compute_model
    from models.accounting import (
        kv_cache_bytes,
        parameters,
        state_bytes,
        train_flops_per_token,
    )

    n = np.array([float(size) for size in runs])
    models = [config.model for config in runs.values()]
    flops = np.array([train_flops_per_token(m, context)["total"] for m in models])
    read = np.array([
        float(2 * (sum(parameters(m).values()) - _looked_up(m)) + state_bytes(m)
              + kv_cache_bytes(m, context))
        for m in models
    ])  # fmt: skip
    return Costs(context, fit_compute_model(n, flops), fit_compute_model(n, read), seconds)


def _looked_up(model: Any) -> int:
    """Parameters of which one row is read: an embedding that is not the head, too."""
    from models.accounting import parameters

    return 0 if model.tie_embeddings else parameters(model)["embedding"]


def _save(out: Path, found: pd.DataFrame, turns: pd.DataFrame, baseline: str, title: str) -> None:
    from analysis.figures import style
    from analysis.figures.clocks import clocks as figure

    out.mkdir(parents=True, exist_ok=True)
    found.to_csv(out / "clocks.csv", index=False)
    turns.to_csv(out / "turns.csv", index=False)
    style.save(figure(found, baseline=baseline), out / "clocks", title=title,
               caption=f"{title}: how many times less each architecture needs than the baseline, "
               "with 90 % intervals. Hollow marks rest on models beyond those trained.",
               runs=[])  # fmt: skip
    say(f"wrote {out / 'clocks.csv'}, {out / 'turns.csv'} and {out / 'clocks.png'}")


UNITS = {"training FLOPs": "", "tokens": "", "training seconds": " s", "bytes a token": "B"}


def _show(
    found: pd.DataFrame, turns: pd.DataFrame, baseline: str, title: str, at: int,
    trained: list[int],
) -> None:  # fmt: skip
    from analysis.io.looks import look
    from linscale.si import si

    screen = console()
    rows = [row for row in found.to_dict("records") if not row["note"]]
    rows.sort(key=lambda row: list(UNITS).index(str(row["clock"])))
    columns = [
        Column("clock", [str(r["clock"]) for r in rows], words=True),
        Column("architecture", [look(str(r["arch"])).label for r in rows], words=True),
        Column("costs", [si(r["value"]) + UNITS[str(r["clock"])] for r in rows]),
        Column(f"times less than {look(baseline).label}", [_times(r) for r in rows]),
    ]
    screen.print(Grid(columns, title=title))
    for row in found.to_dict("records"):
        if row["note"]:
            screen.print(f"{look(str(row['arch'])).label}: {row['note']}", style="yellow")
    outside = {str(r["arch"]): str(r["outside"]) for r in rows if r["outside"]}
    for name, words in outside.items():
        screen.print(f"{look(name).label}, extrapolated: {words}.", style="yellow")
    lengths = " and ".join(f"{c:,}" for c in trained)
    if [at] != trained:
        screen.print(f"Trained at {lengths}: that losses stay the same at {at:,} is assumed.",
                     style="yellow")  # fmt: skip
    screen.print(f"Where the order turns, if losses stay as at the {lengths} tokens trained at:")
    for row in turns.to_dict("records"):
        screen.print(f"{row['clock']}, {look(str(row['arch'])).label}: {_turn(row)}")


def _times(row: dict[Any, Any]) -> str:
    if row.get("ratio") != row.get("ratio"):
        return ""
    text = f"{row['ratio']:.3g}"
    if row.get("ratio_lo") == row.get("ratio_lo") and "ratio_lo" in row:
        text += f" [{row['ratio_lo']:.3g}, {row['ratio_hi']:.3g}]"
    return text


def _turn(row: dict[Any, Any]) -> str:
    """Where the order turns, in words."""
    text = str(row["text"])
    turn, low, high = (float(row.get(name, math.nan)) for name in ("turn", "lo", "hi"))
    if turn == turn:
        text += f", from {turn:,.0f} tokens"
    if low != low or (turn != turn and (low, high) in ((0.0, 0.0), (math.inf, math.inf))):
        return text  # no refits, or all of them say so
    beyond = {0.0: f"below {CONTEXTS[0]:,}", math.inf: f"beyond {CONTEXTS[-1]:,}"}
    ends = [beyond.get(end, f"{end:,.0f}") for end in (low, high)]
    return f"{text} (90% interval of the turn: {ends[0]} to {ends[1]})"

"""`linscale run --adaptive` and `linscale decisions`: a sweep that chooses its runs.

`analysis.judge.adaptive` decides, `scaling.sweep.adaptive` launches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from linscale.options import print_json
from linscale.terminal import console, say, tell
from models.config import ConfigError
from scaling.cli.options import AsJson

if TYPE_CHECKING:
    from scaling.config.experiment import Experiment
    from scaling.sweep.adaptive import Asked
    from scaling.sweep.ledger import Entry

app = typer.Typer()

_COLUMNS = ("run_id", "arch", "size", "size_seed", "n_params", "tokens", "flops", "loss")
"""Of the points that a decision rests on."""


def check_options(
    adaptive: bool, targets: list[str], budget: float | None, batch: int | None,
    others: dict[str, object],
) -> None:  # fmt: skip
    """Raises ConfigError for options without effect, or that are missing."""
    given = {"--target": targets or None, "--budget": budget, "--batch": batch}
    if not adaptive:
        for name, value in given.items():
            if value is not None:
                raise ConfigError(f"{name} without --adaptive: has no effect; give both.")
        return
    if not targets:
        raise ConfigError("--adaptive: needs a --target, such as --target 'width(a)<0.05'.")
    if budget is None:
        raise ConfigError("--adaptive: needs a --budget of FLOPs for all new runs, such as 3e15.")
    for name, value in others.items():
        if value:
            raise ConfigError(f"{name} with --adaptive: the sweep chooses its runs; leave it out.")


def run_chosen(
    experiment: Experiment,
    sweep_dir: Path,
    launch: Callable[[Experiment], bool],
    *,
    targets: list[str],
    budget: float,
    batch: int | None,
    waits: bool,
) -> bool:
    """Run the experiment adaptively; see `scaling.sweep.adaptive.run_adaptive`.

    Raises:
        LinscaleError: a target or budget that cannot be, or too few runs to fit.
    """
    from analysis.judge.adaptive import Settings
    from scaling.plan.shorter import candidates
    from scaling.sweep.adaptive import Asked, run_adaptive
    from scaling.system.devices import device_for

    rows, runs = candidates(experiment.runs, device_for(experiment.runs, "h100"))
    archs = dict.fromkeys(row["arch"] for row in rows)
    settings = Settings(
        targets=tuple(targets), budget=budget, batch=max(2, len(archs)) if batch is None else batch
    )
    return run_adaptive(
        experiment,
        sweep_dir,
        Asked(settings=asdict(settings), candidates=rows, runs=runs),
        _Reader(sweep_dir),
        launch,
        waits=waits,
        say=say,
    )


class _Reader:
    """Decides from what a sweep has measured."""

    def __init__(self, sweep_dir: Path) -> None:
        self._sweep_dir = sweep_dir

    def __call__(
        self, asked: Asked, state: dict[str, Any]
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        points = self._points()
        return points, _decided(asked.settings, asked.candidates, points, state)

    def _points(self) -> list[dict[str, Any]]:
        from analysis.io.frames import plain, take
        from analysis.io.records import load_sweep

        if not any(self._sweep_dir.glob("*/config.json")):
            return []
        points = load_sweep(self._sweep_dir).points
        return plain(take(points, {name: name for name in _COLUMNS})) if len(points) else []


def _decided(
    settings: dict[str, Any], candidates: list[dict[str, Any]], points: list[dict[str, Any]],
    state: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """The decision, a function of its arguments alone."""
    import pandas as pd

    from analysis.judge.adaptive import Settings, State, decide

    found = decide(
        Settings(**settings),
        pd.DataFrame(candidates),
        pd.DataFrame(points, columns=list(_COLUMNS)),
        State(done=frozenset(state["done"]), closed=state["closed"], spent=state["spent"],
              reached=state["reached"]),
    )  # fmt: skip
    return found.as_dict()


@app.command(epilog="Example: linscale decisions runs/quickstart --replay")
def decisions(
    directory: Annotated[Path, typer.Argument(help="Folder of a sweep run with --adaptive.")],
    replay: Annotated[
        bool,
        typer.Option("--replay", help="Decide again from the recorded data, and compare."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """What an adaptive sweep has decided, and from which widths.

    With --replay every decision is made again from the data in its record; one that comes out
    otherwise ends with exit code 1.
    """
    from scaling.sweep.ledger import FILE, Ledger

    if not (directory / FILE).is_file():
        raise ConfigError(
            f"{directory}: has no {FILE}; `linscale run EXPERIMENT --adaptive` writes one."
        )
    entries = Ledger(directory).entries
    other = [entry.number for entry in entries if not _replayed(entry)] if replay else []
    if as_json:
        rows = [{"number": e.number, "state": e.state, **e.decision} for e in entries]
        print_json({"decisions": rows, **({"other": other} if replay else {})})
    else:
        _show(entries)
        if replay:
            which = ", ".join(map(str, other))
            tell(f"decided otherwise: {which}" if other else "all are decided as before")
    if other:
        raise typer.Exit(1)


def _replayed(entry: Entry) -> bool:
    """Whether the recorded data give the recorded runs."""
    again = _decided(entry.settings, entry.candidates, entry.points, entry.state)
    return all(again[key] == entry.decision[key] for key in ("why", "runs"))


def _show(entries: list[Entry]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for name in ("", "why", "FLOPs before", "runs", "widths"):
        table.add_column(name)
    for entry in entries:
        found = entry.decision
        widths = "\n".join(
            f"{w['of']}: {'endless' if w['width'] is None else format(w['width'], '.3g')}, goal "
            f"{w['goal']:.3g}" for w in found["widths"]
        )  # fmt: skip
        table.add_row(str(entry.number), found["why"], f"{entry.state['spent']:.3g}",
                      "\n".join(found["runs"]), widths)  # fmt: skip
    console().print(table)

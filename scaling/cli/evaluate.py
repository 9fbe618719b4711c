"""`linscale evaluate`: checkpoints on tasks, into evals.jsonl."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from linscale.options import print_json
from linscale.table import Column, Grid
from linscale.terminal import console, say
from scaling.cli.options import AsJson, Device, Only

app = typer.Typer()


@app.command(epilog="Example: linscale evaluate runs/quickstart --tasks perplexity,sliding")
def evaluate(
    path: Annotated[
        Path,
        typer.Argument(help="A checkpoint, a run, a sweep, or a Hugging Face directory."),
    ],
    only: Only = None,
    tasks: Annotated[
        str, typer.Option(help="Names with commas: perplexity, position, context, sliding, ...")
    ] = "",
    suite: Annotated[
        str | None, typer.Option(help="A list of tasks: quick, csr, scrolls or paper.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of local task files, such as arc_easy.jsonl.")
    ] = None,
    text: Annotated[
        list[Path] | None, typer.Option(help="Text file for sliding and document.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Only this many questions or blocks, from the first on.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Sequences at once.")] = 16,
    max_length: Annotated[
        int | None, typer.Option(help="Context that the model can take (default: as trained).")
    ] = None,
    window: Annotated[int | None, typer.Option(help="sliding: tokens of a window.")] = None,
    stride: Annotated[int | None, typer.Option(help="sliding: tokens between windows.")] = None,
    beyond: Annotated[int, typer.Option(help="context: training lengths in a block.")] = 4,
    lengths: Annotated[
        str, typer.Option(help="needle, recall: lengths in tokens with commas.")
    ] = "",
    depths: Annotated[int, typer.Option(help="needle: depths of the needle.")] = 35,
    haystack: Annotated[
        list[Path] | None, typer.Option(help="needle: text file (default: King James Bible).")
    ] = None,
    scorer: Annotated[
        str, typer.Option(help="needle: exact (begins with the answer) or contains.")
    ] = "exact",
    depth_growth: Annotated[
        float, typer.Option(help="needle: weight of a depth over that of the one before.")
    ] = 1.1,
    length_growth: Annotated[
        float, typer.Option(help="needle: weight of a length over that of the one before.")
    ] = 1.1,
    device: Device = "",
    launcher: Annotated[
        str, typer.Option(help="local (a pool of workers), inline (this process) or slurm.")
    ] = "local",
    jobs: Annotated[
        int | None, typer.Option(help="Workers of the local pool (default: from the cores).")
    ] = None,
    partition: Annotated[str | None, typer.Option(help="SLURM partition.")] = None,
    time: Annotated[str | None, typer.Option(help="SLURM time limit, such as 12:00:00.")] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Print every number: all milestones and metrics.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate every milestone of a run or sweep; what has a result already is skipped.

    Numbers go to evals.jsonl in the directory of the run. Several runs are evaluated by a pool of
    workers; the same command in a second terminal joins in, run by run. Tasks whose data are not
    here are listed with how to prepare them, and the others are evaluated.
    """
    from scaling.evaluation.evaluate import evaluate as run
    from scaling.evaluation.evaluate import expand
    from scaling.evaluation.request import Request
    from scaling.evaluation.results import EvaluationError
    from scaling.evaluation.settings import Settings
    from scaling.record.pretrained import usable_device
    from scaling.sweep.slurm import SlurmOptions

    pieces = [piece.strip() for piece in lengths.split(",") if piece.strip()]
    if not all(piece.isdecimal() for piece in pieces):
        raise EvaluationError(f"--lengths {lengths}: give whole numbers with commas: 1000,2000.")
    settings = Settings(
        batch_size=batch_size,
        limit=limit,
        max_length=max_length,
        data=data,
        text=tuple(text or ()),
        window=window,
        stride=stride,
        beyond=beyond,
        lengths=tuple(int(piece) for piece in pieces),
        depths=depths,
        haystack=tuple(haystack or ()),
        scorer=scorer,
        depth_growth=depth_growth,
        length_growth=length_growth,
    )
    names = expand([n.strip() for n in tasks.split(",") if n.strip()], suite, settings)
    device = str(usable_device(device))
    outcome = run(
        path,
        Request(tasks=tuple(names), settings=settings, device=device),
        launcher=launcher,
        jobs=jobs,
        slurm=SlurmOptions(partition=partition, time=time),
        only=only,
        say=say,
    )
    if as_json:
        print_json(outcome.lines)
    elif outcome.lines:
        show(outcome.lines, full)
    summary = f"{outcome.new} tasks evaluated, {outcome.kept} had a result already"
    if outcome.elsewhere:
        summary += f", {len(outcome.elsewhere)} runs are being evaluated by another process"
    for job in outcome.submitted:
        say(job)
    say(summary)
    for failure in _by_reason(outcome.failures):
        console(stderr=True).print(f"not evaluated: {failure}", soft_wrap=True)
    if outcome.failures:
        raise typer.Exit(1)


def show(lines: list[dict[str, Any]], full: bool) -> None:
    """All numbers of one checkpoint; of several the last milestones, unless `full`."""
    if full or len({(line["run"], line["checkpoint"]) for line in lines}) == 1:
        console().print(_all_numbers(lines))
        return
    grid, others = _last_milestones(lines)
    console().print(grid)
    if others:
        console().print(
            f"The last milestone of each run, and the first metric of each task. {others:,} more "
            "numbers: --full, --json, or evals.jsonl of each run."
        )


def _by_reason(failures: list[str]) -> list[str]:
    """One line for all checkpoints and tasks that failed for the same reason."""
    reasons: dict[str, list[str]] = {}
    for failure in failures:
        what, _, reason = failure.partition(": ")
        reasons.setdefault(reason, []).append(what)
    return [
        f"{what[0]}{f' and {len(what) - 1} more' if len(what) > 1 else ''}: {reason}"
        for reason, what in reasons.items()
    ]


def _all_numbers(lines: list[dict[str, Any]]) -> Grid:
    """A row a number."""
    return Grid(
        [
            Column("run", [_name(line) for line in lines], words=True),
            Column("seed", [_seed(line) for line in lines], once=True),
            Column("tokens", [_tokens(line) for line in lines], once=True),
            Column("task", [line["task"] for line in lines], words=True),
            Column("metric", [line["metric"] for line in lines], words=True),
            Column("value", [f"{line['value']:.4f}" for line in lines]),
            Column(
                "stderr",
                ["" if line["stderr"] is None else f"{line['stderr']:.4f}" for line in lines],
            ),
            Column("n", [f"{line['n']:,}" for line in lines], spare=1),
        ]
    )


def _last_milestones(lines: list[dict[str, Any]]) -> tuple[Grid, int]:
    """A row a run, its last milestone that has results, and a column a task with its first metric;
    and how many numbers are not in it."""
    last: dict[str, int] = {}
    for line in lines:
        last[line["run"]] = max(last.get(line["run"], 0), line["tokens"] or 0)
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    titles: dict[str, str] = {}
    for line in lines:
        if (line["tokens"] or 0) == last[line["run"]]:
            rows.setdefault(line["run"], {}).setdefault(line["task"], line)
            titles.setdefault(line["task"], f"{line['task']} {line['metric']}")
    firsts = [next(iter(row.values())) for row in rows.values()]
    columns = [
        Column("run", [_name(line) for line in firsts], words=True),
        Column("seed", [_seed(line) for line in firsts], once=True),
        Column("tokens", [_tokens(line) for line in firsts], once=True),
        *(
            Column(title, [_value(row.get(task)) for row in rows.values()])
            for task, title in titles.items()
        ),
    ]
    return Grid(columns), len(lines) - sum(map(len, rows.values()))


MOST = 1e4
"""Larger numbers, perplexities of models that know nothing, are shown with four digits."""


def _value(line: dict[str, Any] | None) -> str:
    if line is None:
        return ""
    spread = "" if line["stderr"] is None else f" ± {line['stderr']:.3f}"
    value = line["value"]
    return f"{value:.3f}{spread}" if abs(value) < MOST else f"{value:.4g}"


def _name(line: dict[str, Any]) -> str:
    return str(line["run"].rpartition("-")[0] or line["run"])


def _seed(line: dict[str, Any]) -> str:
    return "" if line["seed"] is None else str(line["seed"])


def _tokens(line: dict[str, Any]) -> str:
    return "" if line["tokens"] is None else f"{line['tokens']:,}"

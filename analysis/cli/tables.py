"""`linscale tables`: the paper's evaluation tables and their figures from a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from linscale.options import AsJson, print_json
from linscale.paragraph import one_paragraph
from linscale.terminal import console, say

if TYPE_CHECKING:
    from analysis.report.paper_tables import PaperTable

app = typer.Typer()


@app.command(epilog="Example: linscale tables runs/quickstart --number 4 --format latex")
def tables(
    directory: Annotated[Path, typer.Argument(help="Sweep directory, such as runs/quickstart.")],
    number: Annotated[
        list[int] | None, typer.Option("--number", "-n", help="4, 5, 6, 8 or 11 (default: all).")
    ] = None,
    kind: Annotated[str, typer.Option("--format", help="text, markdown, latex or csv.")] = "text",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Also write tables in all formats, and figures, here."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what `linscale evaluate` found as tables 4, 5, 6, 8 and 11 of arXiv 2406.16690.

    With --out, also figures: tasks against compute, accuracy against loss, heat maps of needles.
    """
    from analysis.errors import AnalysisError
    from analysis.io.evals import load_evals
    from analysis.io.records import load_sweep
    from analysis.report.paper_tables import FORMATS, paper_table, paper_tables
    from analysis.report.task_report import evaluations

    with one_paragraph():
        if kind not in ("text", *FORMATS):
            raise AnalysisError(f"--format {kind}: choose text, {', '.join(FORMATS)}")
        sweep = load_sweep(directory)
        evals = load_evals(directory, sweep)
        if not len(evals):
            raise AnalysisError(
                f"{directory}: nothing has been evaluated; run linscale evaluate {directory} "
                "--suite paper"
            )
        if number:
            found = [paper_table(each, evals, sweep.runs) for each in number]
        else:
            found = paper_tables(evals, sweep.runs)
        if as_json:
            print_json([table.to_json() for table in found])
        for table in [] if as_json else found:
            if kind == "text":
                _print(table)
            else:
                typer.echo(FORMATS[kind][1](table))
        if out is not None:
            for path in evaluations(directory, sweep).save(out):
                say(f"wrote {path}")


def _print(table: PaperTable) -> None:
    screen = console()
    screen.print(table.text())
    for note in table.notes:
        screen.print(note)
    screen.print()

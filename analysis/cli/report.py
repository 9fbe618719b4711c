"""`linscale report`: tables, figures and a page of a sweep, or of anybody's table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analysis.cli.source import OtherData
from linscale import selection
from linscale.options import AsJson, print_json
from linscale.paragraph import one_paragraph
from linscale.terminal import QUIET, console, level, tell

if TYPE_CHECKING:
    from analysis.io.sweep import Sweep

app = typer.Typer()
_COLUMN = "As for linscale fit."


@app.command(
    epilog="Examples: `linscale report runs/quickstart -o report`, "
    "`linscale report results.csv --group arch`"
)
def report(
    source: Annotated[Path, typer.Argument(help="Sweep, such as runs/quickstart, or a table.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Where to write (default DIR/report; beside a zip or "
                     "table)."),
    ] = None,
    loss: Annotated[str | None, typer.Option(help=_COLUMN)] = None,
    params: Annotated[str | None, typer.Option(help=_COLUMN)] = None,
    tokens: Annotated[str | None, typer.Option(help=_COLUMN)] = None,
    compute: Annotated[str | None, typer.Option(help=_COLUMN)] = None,
    group: Annotated[str | None, typer.Option(help=_COLUMN)] = None,
    runs: Annotated[str | None, typer.Option(help=_COLUMN)] = None,
    where: Annotated[list[str] | None, typer.Option(help=_COLUMN)] = None,
    last_per: Annotated[str | None, typer.Option(help=_COLUMN)] = None,
    best_per: Annotated[str | None, typer.Option(help=_COLUMN)] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="Architecture or group that the others are compared with (default llama, "
                     "else the first)."),
    ] = None,
    other_data: OtherData = False,
    only: Annotated[str | None, typer.Option(help=selection.HELP)] = None,
    bootstrap: Annotated[int, typer.Option(min=100, help="Refits over runs.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    style: Annotated[
        str,
        typer.Option(help="Where the figures will be printed: neurips, icml, icml-single, "
                     "icml-double, each with -serif if wanted; default house."),
    ] = "house",
    formats: Annotated[
        str, typer.Option("--format", help="Files of figures, of png, pdf and svg.")
    ] = "png,pdf",
    forecasts: Annotated[
        list[Path] | None,
        typer.Option("--forecast", help="Show and score this sealed forecast; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Write fits.json, tables (CSV), figures (PNG, PDF) and one self-contained index.html."""
    with one_paragraph():
        from rich.markup import escape

        from analysis.cli.source import conventions_of, read_source
        from analysis.io.sweep_files import is_table, report_folder
        from analysis.report.report import write_report

        chosen: dict[str, Any] = {"runs": runs, "where": where or (), "last_per": last_per,
                                  "best_per": best_per}  # fmt: skip
        named: dict[str, Any] = {"loss": loss, "params": params, "tokens": tokens,
                                 "compute": compute, "group": group}  # fmt: skip
        of_table = is_table(source)
        used: list[Sweep] = []
        with console(stderr=True).status("reading", spinner="dots") as status:
            if level() <= QUIET:
                status.stop()
            given = None
            if of_table or any(named.values()) or any(chosen.values()):
                given = read_source(
                    source, chosen=chosen, other_data=other_data, only=only, **named
                )
            page = write_report(
                source, out or report_folder(source), given=given if of_table else None,
                conventions=None if of_table else conventions_of(loss, params, compute),
                other_data=other_data, only=only, baseline=baseline, bootstrap=bootstrap, seed=seed,
                seals=forecasts or (), style=style,
                formats=[kind.strip() for kind in formats.split(",")],
                told=used.append,
                progress=lambda text: status.update(escape(text)),
            )  # fmt: skip
        excluded = used[0].exclusions.to_dict("records") if used else []
        left_out = [{k: str(row[k]) for k in ("run_id", "reason")} for row in excluded]
        if as_json:
            print_json({"page": str(page), "left_out": left_out})
            return
        for row in left_out:
            tell(f"left out: {row['run_id']}: {row['reason']}")
        tell(f"report: {page}")

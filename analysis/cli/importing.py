"""`linscale import`: what a tracker exports, as a table that every command reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from linscale.options import AsJson, print_json
from linscale.paragraph import one_paragraph
from linscale.terminal import tell

app = typer.Typer()
_COLUMN = "As for linscale fit."
COLUMNS = ("run_id", "arch", "size", "seed", "n_params", "tokens", "flops", "loss")
"""Of the table that is written, as far as the source has them."""


@app.command(
    "import",
    epilog="Examples: `linscale import wandb-export.csv -o points.csv`, "
    "`linscale import runs/mlruns --group arch`",
)
def import_(
    source: Annotated[
        Path,
        typer.Argument(help="What W&B, MLflow or trackio exports as CSV, JSON or JSON lines; "
                       "a folder of TensorBoard or MLflow."),
    ],
    loss: Annotated[str | None, typer.Option(help=_COLUMN)] = None,
    params: Annotated[str | None, typer.Option(help=_COLUMN)] = None,
    tokens: Annotated[str | None, typer.Option(help=_COLUMN)] = None,
    compute: Annotated[str | None, typer.Option(help=_COLUMN)] = None,
    group: Annotated[str | None, typer.Option(help=_COLUMN)] = None,
    runs: Annotated[str | None, typer.Option(help=_COLUMN)] = None,
    where: Annotated[list[str] | None, typer.Option(help=_COLUMN)] = None,
    last_per: Annotated[str | None, typer.Option(help=_COLUMN)] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Table to write (CSV); without it, only "
                                  "say what was found.")
    ] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Read runs from a tracker: say which column is what, and write a table to fit.

    `linscale fit`, `forecast` and `report` read the same sources at once; the table is for a look
    in between, and for what other programs read.
    """
    with one_paragraph():
        from analysis.errors import AnalysisError
        from analysis.io.staging import write_whole
        from analysis.io.tables import load_table

        sweep = load_table(
            source, loss=loss, params=params, tokens=tokens, compute=compute, group=group,
            runs=runs, where=where or (), last_per=last_per,
        )  # fmt: skip
        points = sweep.require_points().dropna(subset=["loss"])
        if not len(points):
            raise AnalysisError(f"{sweep.name}: no row has a loss; name its column with --loss")
        count = len(set(points["run_id"])) if "run_id" in points else len(points)
        if out is not None:
            kept = [name for name in COLUMNS if name in points and bool(points[name].notna().sum())]
            try:
                write_whole(out, points[kept].to_csv(index=False))
            except OSError as error:
                raise AnalysisError(f"{out} cannot be written: {error.strerror}") from error
        left_out = [{"run_id": str(r["run_id"]), "reason": str(r["reason"])}
                    for r in sweep.exclusions.to_dict("records")]  # fmt: skip
        tell(f"{sweep.name}: {sweep.conventions}")
        for note in sweep.notes:
            tell(note)
        for row in left_out:
            tell(f"left out: {row['run_id']}: {row['reason']}")
        tell(f"{len(points)} rows of {count} runs" + (f", written to {out}" if out else ""))
        if as_json:
            print_json({
                "source": sweep.name, "conventions": sweep.conventions, "notes": sweep.notes,
                "rows": len(points), "runs": count, "left_out": left_out,
                "out": None if out is None else str(out),
            })  # fmt: skip

"""`linscale inference`: the cheapest model of each architecture to train and to run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from linscale.options import AsJson, print_json
from linscale.table import Column, Grid
from linscale.terminal import console, say

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import pandas as pd

    from analysis.judge.inference import Serving

app = typer.Typer()
CONTEXTS = tuple(2**k for k in range(8, 21))
"""Contexts of the figure and the table behind it."""


@app.command(
    epilog="Example: linscale inference experiments/results/small_ladder.zip --loss 1.5 "
    "--demand 1e9 --context 16384 -o inference"
)
def inference(
    sweep: Annotated[
        Path, typer.Argument(help="Finished sweep, its directory or zip, or a table of runs.")
    ],
    loss: Annotated[
        float | None,
        typer.Option(help="Loss to reach (default: the lowest that every architecture has)."),
    ] = None,
    demand: Annotated[float, typer.Option(help="Tokens to be generated in all.")] = 1e12,
    context: Annotated[
        int, typer.Option(min=1, help="Context at which they are generated, in tokens.")
    ] = 16384,
    baseline: Annotated[
        str | None,
        typer.Option(help="Architecture to compare with (default llama, else the first)."),
    ] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="Refits for intervals.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    decoding: Annotated[
        str | None,
        typer.Option(help="Of a table: column of decoding FLOPs a token at the context (default "
                     "2 N, which leaves the context out)."),
    ] = None,
    kept: Annotated[
        str | None,
        typer.Option(help="Of a table: column of bytes of state and cache a sequence."),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", help="Of a table: loss=NAME, params=NAME, tokens=NAME, "
                     "compute=NAME or group=NAME; repeatable."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the table over contexts and its figure."),
    ] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Fewest training plus inference FLOPs for a loss and a demand, with bytes kept a sequence.

    Decoding is counted for each architecture as its models are built: attention grows with the
    context, a bounded state does not. Of a table, decoding is what its columns say.
    """
    from linscale.paragraph import one_paragraph

    with one_paragraph():
        _inference(sweep, loss, demand, context, baseline, bootstrap, seed, decoding, kept,
                   columns or [], out, as_json)  # fmt: skip


def _inference(
    sweep: Path, loss: float | None, demand: float, context: int, baseline: str | None,
    bootstrap: int, seed: int, decoding: str | None, kept: str | None, columns: list[str],
    out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    from analysis.errors import AnalysisError
    from analysis.io.frames import plain
    from analysis.io.records import load_sweep
    from analysis.io.sweep_files import is_table
    from analysis.judge.inference import deployments, serving_of_table
    from scaling.cli.sweep_models import models_of, question

    of_table = is_table(sweep)
    if of_table:
        from analysis.cli.source import read_source

        named = _named(columns)
        read = read_source(
            sweep, loss=named["loss"], params=named["params"], tokens=named["tokens"],
            compute=named["compute"], group=named["group"], chosen={},
        )  # fmt: skip
    elif decoding or kept or columns:
        raise AnalysisError("--decoding, --kept and --column are for tables: the models of a sweep "
                            "are counted as they are built")  # fmt: skip
    else:
        read = load_sweep(sweep)
    points = read.require_points()
    laws, loss, base = question(read, loss, baseline, bootstrap, seed, accounting=not of_table)
    configs = {} if of_table else models_of(sweep, read)
    if of_table:
        served = serving_of_table(points, context, decoding=decoding, kept=kept)
        if out is not None:
            raise AnalysisError("-o draws contexts from 256 to 1M tokens, and the columns of a "
                                "table are those of one: leave it out, or use --json")  # fmt: skip
    else:
        served = _served(configs, context)
    found = deployments(laws, loss, demand, served, base)
    everywhere: pd.DataFrame | None = None
    if out is not None:
        import pandas as pd

        parts = [deployments(laws, loss, demand, _served(configs, c), base) for c in CONTEXTS]
        everywhere = pd.concat(parts, ignore_index=True)
        _save(out, everywhere, base, f"{read.name}: loss {loss:.4g}, {demand:.3g} tokens generated")
    if as_json:
        record = {"sweep": read.name, "loss": loss, "demand": demand, "context": context,
                  "baseline": base, "conventions": read.conventions,
                  "models": plain(found)}  # fmt: skip
        print_json(record)
        return
    if of_table and decoding is None:
        typer.echo("decoding is taken as 2 N FLOPs a token, without attention over the context; "
                   "--decoding names a column that has it", err=True)  # fmt: skip
    _show(found, f"{read.name}: loss {loss:.4g}, {demand:.3g} tokens generated at a context of "
          f"{context:,}", base)  # fmt: skip


def _named(columns: list[str]) -> dict[str, str | None]:
    """What --column names, by the argument of `read_source`."""
    from analysis.errors import AnalysisError

    found: dict[str, str | None] = dict.fromkeys(("loss", "params", "tokens", "compute", "group"))
    for text in columns:
        role, equals, name = (part.strip() for part in text.partition("="))
        if role not in found or not equals:
            raise AnalysisError(f"--column {text}: give {', '.join(f'{k}=NAME' for k in found)}")
        found[role] = name
    return found


def _served(configs: dict[str, dict[int, Any]], context: int) -> dict[str, Serving]:
    """What decoding costs at a context, by architecture; bytes of half-precision caches and
    single-precision states."""
    import numpy as np

    from analysis.judge.inference import serving
    from models.accounting import decode_flops_per_token, kv_cache_bytes, state_bytes

    def column(values: list[float]) -> np.ndarray:
        return np.array(values, dtype=np.float64)

    return {
        name: serving(
            column([float(n) for n in models]),
            column([decode_flops_per_token(m, context)["total"] for m in models.values()]),
            column([float(state_bytes(m) + kv_cache_bytes(m, context)) for m in models.values()]),
            context,
        )
        for name, models in configs.items()
    }


def _save(out: Path, table: pd.DataFrame, baseline: str, title: str) -> None:
    from analysis.figures import style
    from analysis.figures.serving import serving

    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "inference.csv", index=False)
    style.save(serving(table, baseline=baseline), out / "inference", title=title,
               caption=f"{title}. Fewest training and inference FLOPs over those of the baseline, "
               "with 90 % intervals, and bytes that a sequence holds.", runs=[])  # fmt: skip
    say(f"wrote {out / 'inference.csv'} and {out / 'inference.png'}")


def _show(table: pd.DataFrame, title: str, baseline: str) -> None:
    from analysis.io.looks import look
    from linscale.si import si

    rows = [row for row in table.to_dict("records") if not row["note"]]
    columns = [
        Column("architecture", [look(str(r["arch"])).label for r in rows], words=True),
        Column("N", [si(r["n"]) for r in rows]),
        Column("D", [si(r["d"]) for r in rows]),
        Column("training", [f"{r['training']:.2e}" for r in rows], spare=2),
        Column("inference", [f"{r['inference']:.2e}" for r in rows], spare=1),
        Column("total", [f"{r['total']:.2e}" for r in rows]),
        Column(f"over {look(baseline).label}", [_ratio(r) for r in rows]),
        Column(
            "bytes a sequence",
            [f"{r['kept']:,.0f}" if r["kept"] == r["kept"] else "" for r in rows],
        ),
    ]
    screen = console()
    screen.print(Grid(columns, title=title))
    for row in table.to_dict("records"):
        label = look(str(row["arch"])).label
        if row["note"]:
            screen.print(f"{label}: {row['note']}", style="yellow")
        elif row["outside"]:
            screen.print(f"{label}, extrapolated: {row['outside']}.", style="yellow")


def _ratio(row: Mapping[Any, Any]) -> str:
    ratio = f"{row['ratio']:.3g}"
    if row.get("ratio_lo") == row.get("ratio_lo") and "ratio_lo" in row:
        ratio += f" [{row['ratio_lo']:.3g}, {row['ratio_hi']:.3g}]"
    return ratio

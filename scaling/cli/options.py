"""Arguments and options that several commands have, worded once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from linscale import selection
from linscale.options import AsJson as AsJson

File = Annotated[
    Path,
    typer.Argument(help="Experiment file (Python with runs()), or a built-in experiment's name."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Dotted overrides for every run, such as optim.lr=3e-4 seed=1."),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Sweep directory (default: runs/ and the file's name)."),
]
Toy = Annotated[bool, typer.Option("--toy", help="The experiment's small variant, for a CPU.")]
HyperLaw = Annotated[
    str,
    typer.Option(
        "--law",
        help="Learning rate and batch of every run: constant (as the file has them), deepseek or "
        "step (which does not come out of its authors' table: sweep around it). Overrides have the "
        "last word.",
    ),
]
Only = Annotated[str | None, typer.Option(help=selection.HELP)]
Device = Annotated[
    str, typer.Option(help="cpu, cuda or cuda:1 (default: the GPU where there is one).")
]
GpusPerNode = Annotated[int, typer.Option(help="Devices of a node of the cluster.")]

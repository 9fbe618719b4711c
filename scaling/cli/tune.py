"""`linscale tune`: rewrite the tuning tables of the Triton kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from linscale.options import AsJson, print_json
from linscale.terminal import say, tell

app = typer.Typer()


@app.command(
    epilog="Example: linscale tune   or, without a GPU: linscale tune --offline --arch sm_90"
)
def tune(
    arch: Annotated[str, typer.Option(help="With --offline: sm_80, sm_90, sm_100 or gfx942.")] = "",
    offline: Annotated[
        bool, typer.Option("--offline", help="Choose by compiling alone; needs no GPU.")
    ] = False,
    families: Annotated[
        str, typer.Option(help="Of scalar, phase, vector and delta, comma-separated.")
    ] = "scalar,phase,vector,delta",
    dims: Annotated[
        str, typer.Option(help="Head dimensions: of 16, 32, 64, 128 and 256, comma-separated.")
    ] = "16,32,64,128,256",
    jobs: Annotated[
        int, typer.Option(help="Processes that compile; 0 for one a processor core.")
    ] = 0,
    warps: Annotated[
        int, typer.Option(help="Tune the rows for LINSCALE_KERNEL_WARPS=N; 0: the default rows.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder (default: the checked-in tables).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Time the launch constants of each kernel on this GPU and rewrite its tuning tables."""
    import os

    from models.config import ConfigError

    if arch and not offline:
        raise ConfigError(
            f"--arch {arch} is for --offline: timing runs on this machine's own GPU. Add "
            "--offline, or leave --arch out."
        )
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    from models.kernels.tools import tune as tuning

    try:
        sizes = [int(dim) for dim in dims.split(",")]
        paths = tuning.tune(
            arch or None, offline=offline, families=families.split(","), dims=sizes, output=out,
            warps=warps,
            jobs=jobs or os.cpu_count() or 1, report=say,
        )  # fmt: skip
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for path in paths:
        tell(f"Wrote {path}.")
    if as_json:
        print_json({"files": [str(path) for path in paths]})

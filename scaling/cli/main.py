"""The `linscale` command: plan, run, status; fit and report from `analysis`.

Everything heavy is imported inside the commands, so that `linscale --help` answers at once.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from analysis.cli.commands import app as analysis_app
from analysis.cli.forecast import forecast_app
from analysis.cli.tables import app as tables_app
from linscale.code_search import search_also
from linscale.installation import missing, version
from linscale.paragraph import one_paragraph, show_error
from scaling.cli.adaptive import app as adaptive_app
from scaling.cli.blockwise import app as blockwise_app
from scaling.cli.checkpoint import app as checkpoint_app
from scaling.cli.clocks import app as clocks_app
from scaling.cli.data import app as data_app
from scaling.cli.early import app as early_app
from scaling.cli.evaluate import app as evaluation_app
from scaling.cli.gate import app as gate_app
from scaling.cli.inference import app as inference_app
from scaling.cli.linearize import app as linearization_app
from scaling.cli.log_to import app as log_to_app
from scaling.cli.plan import app as plan_app
from scaling.cli.plan import rungs_of
from scaling.cli.run import app as run_app
from scaling.cli.tune import app as tune_app
from scaling.cli.verbosity import Quiet, Verbose, before_the_command, choose_level
from scaling.cli.verify import app as verify_app

app = typer.Typer(
    name="linscale",
    help="Scaling laws for linear-complexity language models: plan, train, fit, compare.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    epilog="Start with: linscale plan experiments/quickstart.py",
)
app.add_typer(plan_app)
app.add_typer(run_app)
app.add_typer(adaptive_app)
app.add_typer(early_app)
app.add_typer(analysis_app)
app.add_typer(inference_app)
app.add_typer(clocks_app)
app.add_typer(forecast_app(rungs_of))
app.add_typer(blockwise_app)
app.add_typer(checkpoint_app)
app.add_typer(data_app, name="data")
app.add_typer(tune_app)
app.add_typer(verify_app)
app.add_typer(log_to_app)
app.add_typer(evaluation_app)
app.add_typer(gate_app)
app.add_typer(tables_app)
app.add_typer(linearization_app)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"linscale {version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
        ),
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    choose_level(quiet, verbose)


OWN_FAULT = 70
"""Exit code of an error that is Linscale's own; 70 is EX_SOFTWARE of sysexits.h."""
INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the number of SIGINT, as shells have it."""


def main() -> None:
    """Run the command line; AGENTS.md lists the exit codes."""
    os.environ["PYTHONSAFEPATH"] = "1"  # for every child, and theirs
    search_also(Path.cwd())
    try:
        with one_paragraph():
            app(before_the_command(sys.argv[1:]))
    except ModuleNotFoundError as error:
        sentence = missing(error)
        if sentence is None:
            raise
        show_error(" ".join(["linscale", *sys.argv[1:2], sentence]))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception:
        traceback.print_exc()
        show_error("this is a fault of Linscale's own; please report it with the lines above.")
        sys.exit(OWN_FAULT)


if __name__ == "__main__":
    main()

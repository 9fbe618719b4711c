"""The commands that need no torch: fit, report, optima, tuning, import."""

from __future__ import annotations

import typer

from analysis.cli.fit import app as fit_app
from analysis.cli.importing import app as importing_app
from analysis.cli.laws import app as laws_app
from analysis.cli.report import app as report_app

app = typer.Typer(
    help="Scaling laws from run records or anybody's table.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for each in (fit_app, report_app, laws_app, importing_app):
    app.add_typer(each)

"""`python -m analysis fit|report|forecast`: the analysis commands without the rest of the suite."""

from analysis.cli.fit import app
from analysis.cli.forecast import forecast_app
from analysis.cli.laws import app as laws_app
from analysis.cli.report import app as report_app

app.add_typer(report_app)
app.add_typer(laws_app)
app.add_typer(forecast_app(None))
app(prog_name="python -m analysis")

"""`python -m analysis fit|report|forecast`: the analysis commands without the rest of the suite."""

from analysis.cli.commands import app
from analysis.cli.forecast import forecast_app

app.add_typer(forecast_app(None))
app(prog_name="python -m analysis")

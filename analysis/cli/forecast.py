"""`linscale forecast`: predict runs not yet made, seal the forecast, score it when they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from linscale import selection
from linscale.options import AsJson, print_json
from linscale.paragraph import one_paragraph

if TYPE_CHECKING:
    from analysis.forecast.targets import Target
    from analysis.io.sweep import Sweep

Planner = Callable[[Path, bool, Path | None], list[dict[str, Any]]]
"""Rungs of an experiment file (its small variant; the directory of its runs), as `linscale plan
--json` gives them."""

_EXAMPLES = """Examples:

- `linscale forecast runs/small --for experiments/medium_ladder.py -o forecast.json`

- `linscale forecast anchors.csv --at C=1.19e23 --fix E=1.4 -o forecast.json`

- `linscale forecast results.csv --at N=1e9,D=2e10 --form chinchilla,gamma`

- `linscale forecast runs/medium_ladder --decays -o decays.json`

- `linscale forecast --score forecast.json runs/medium_ladder`
"""


def forecast_app(planner: Planner | None) -> typer.Typer:
    """The command; without a planner `--for` takes the JSON that `linscale plan --json` prints."""
    app = typer.Typer()

    @app.command(epilog=_EXAMPLES)
    def forecast(
        source: Annotated[Path, typer.Argument(help="CSV, TSV or JSON-lines table, or a sweep.")],
        experiment: Annotated[
            Path | None,
            typer.Option("--for", help="Experiment file, or what linscale plan --json printed: "
                         "every rung that is not finished is forecast."),
        ] = None,
        only: Annotated[
            str | None,
            typer.Option(help=f"With --for: {selection.HELP}"),
        ] = None,
        at: Annotated[
            list[str] | None,
            typer.Option(help="A point N=1e9,D=2e10, or a budget C=1.19e23; repeatable."),
        ] = None,
        decays: Annotated[
            bool,
            typer.Option("--decays", help="Forecast the loss that undecayed trunks of a sweep "
                         "reach once decayed, from a law of loss over tokens."),
        ] = False,
        hide: Annotated[
            str | None,
            typer.Option(help="With --decays: treat the decays of runs with this in their id as "
                         "unknown and score the forecast; * and ? stand for anything."),
        ] = None,
        form: Annotated[
            str | None,
            typer.Option(help="chinchilla, gamma, chinchilla_tied, chinchilla_no_e, power_c, "
                         "power_n, power_d (each also with _e). Several, joined by commas, are "
                         "mixed by a rolling hold-out. Default: chinchilla, or power_c_e of a "
                         "table with C alone."),
        ] = None,
        fix: Annotated[
            list[str] | None,
            typer.Option(help="Hold a parameter, as E=1.4; repeatable."),
        ] = None,
        scored: Annotated[
            list[Path] | None,
            typer.Option("--score", help="Score this sealed forecast against SOURCE; repeatable."),
        ] = None,
        loss: Annotated[str | None, typer.Option(help="As for linscale fit.")] = None,
        params: Annotated[str | None, typer.Option(help="As for linscale fit.")] = None,
        tokens: Annotated[str | None, typer.Option(help="As for linscale fit.")] = None,
        compute: Annotated[str | None, typer.Option(help="As for linscale fit.")] = None,
        group: Annotated[str | None, typer.Option(help="As for linscale fit.")] = None,
        runs: Annotated[
            Path | None,
            typer.Option(help="With --for: where its runs are recorded (default runs/<file "
                         "stem>), to see which exist."),
        ] = None,
        toy: Annotated[
            bool, typer.Option("--toy", help="With --for: the experiment's small variant.")
        ] = False,
        seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
        as_json: AsJson = False,
        out: Annotated[
            Path | None, typer.Option("--out", "-o", help="Seal the forecast into this new file.")
        ] = None,
    ) -> None:  # fmt: skip
        """Forecast the loss of runs not yet made, with intervals, and seal it; or score a seal.

        Every interval is for one further run. With -o the forecast is sealed: a hash over the rows
        used, the law, the conventions and the versions shows later that nothing was changed. With
        --score, sealed forecasts are compared with what SOURCE holds now; a broken seal is said,
        and ends with exit code 1.
        """
        from analysis.cli.source import read_source
        from analysis.errors import AnalysisError
        from analysis.report import forecast_terminal

        with one_paragraph():
            sweep = read_source(
                source,
                loss=loss,
                params=params,
                tokens=tokens,
                compute=compute,
                group=group,
                chosen={},
            )
            if scored:
                if given := [
                    name
                    for name, value in (
                        ("--for", experiment),
                        ("--at", at),
                        ("--form", form),
                        ("--fix", fix),
                        ("--decays", decays),
                        ("-o", out),
                    )
                    if value
                ]:
                    raise AnalysisError(f"--score reads a forecast and makes none: leave out "
                                        f"{', '.join(given)}")  # fmt: skip
                _score(scored, sweep, as_json)
                return
            if hide is not None and not decays:
                raise AnalysisError("--hide is for --decays: it names runs whose decays are taken "
                                    "as not known")  # fmt: skip
            from analysis.forecast.targets import PARAMETERS

            if decays:
                if experiment or at or form or fix or only:
                    raise AnalysisError("--decays asks for the sweep's own trunks: leave out "
                                        "--for, --only, --at, --form and --fix")  # fmt: skip
                body = _decays(sweep, source, hide, seed)
            else:
                body = _forecast(
                    sweep, source, experiment, only, at or [], form, fix or [], seed,
                    planner=planner, toy=toy, runs=runs,
                    # A column of a table says nothing of how rungs are counted.
                    parameters=params if params in PARAMETERS else "non_embedding",
                    compute=compute,
                )  # fmt: skip
            from analysis.forecast.seal import seal, write_seal

            record = seal(body)
            if out is not None:
                write_seal(out, record)
            if as_json:
                print_json(record)
            else:
                forecast_terminal.forecast(record, out)

    return app


def _forecast(
    sweep: Sweep, source: Path, experiment: Path | None, only: str | None, at: list[str],
    form: str | None, fix: list[str], seed: int, *, planner: Planner | None, toy: bool,
    runs: Path | None, parameters: str, compute: str | None,
) -> dict[str, Any]:  # fmt: skip
    """The body of a seal.

    Raises:
        AnalysisError: no target, or targets that cannot be placed or predicted.
    """
    from analysis.errors import AnalysisError
    from analysis.forecast.forecasting import forecast
    from analysis.forecast.rows import pinned_values
    from analysis.forecast.seal import file_digest, provenance
    from analysis.forecast.targets import at as target_at

    if experiment is None and not at:
        raise AnalysisError("nothing to forecast: give --for EXPERIMENT.py, --at N=1e9,D=2e10 or "
                            "--at C=1e23")  # fmt: skip
    if only and experiment is None:
        raise AnalysisError("--only chooses among the rungs of --for EXPERIMENT.py")
    targets = [target_at(text) for text in at]
    existed: dict[str, Any] = {"checked_in": [str(source)], "finished": [], "recorded": []}
    if experiment is not None:
        if compute not in (None, "exact") and not source.is_file():
            raise AnalysisError(f"--compute {compute}: rungs of --for are counted in the exact "
                                "convention; leave it out")  # fmt: skip
        rungs = _rungs(experiment, planner, toy, runs)
        new, existed = _unfinished(sweep, source, rungs, only, parameters, runs)
        targets += new
    pinned = pinned_values(fix)
    made = forecast(
        sweep, targets, forms=form.split(",") if form else None, pinned=pinned, seed=seed
    )
    existed["measured"] = [f"{f['group']}: {f['name']}" for f in made["forecasts"]
                           if f["measured_before"]]  # fmt: skip
    return {
        "sealed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "question": {
            "source": str(source), "source_sha256": file_digest(source),
            "for": None if experiment is None else str(experiment),
            "for_sha256": None if experiment is None else file_digest(experiment),
            "only": only, "at": at, "fix": fix,
        },
        "existed": existed,
        **provenance(Path.cwd()),
        **made,
    }  # fmt: skip


def _decays(sweep: Sweep, source: Path, hide: str | None, seed: int) -> dict[str, Any]:
    """The body of a seal over the decays of a sweep's trunks."""
    from analysis.errors import AnalysisError
    from analysis.forecast.decays import decay_forecast
    from analysis.forecast.seal import file_digest, provenance

    if not len(sweep.runs):
        raise AnalysisError(f"--decays: {source} is a table; a law of loss over tokens needs the "
                            "curves of a sweep")  # fmt: skip
    made = decay_forecast(sweep, hide, seed)
    known = [f"{f['group']}: {f['name']}" for f in made["forecasts"] if f["measured_before"]]
    return {
        "sealed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "question": {"source": str(source), "source_sha256": file_digest(source), "decays": True,
                     "hide": hide},
        "existed": {"checked_in": [str(source)], "finished": [], "recorded": [],
                    "measured": known},
        **provenance(Path.cwd()),
        **made,
    }  # fmt: skip


def _rungs(
    experiment: Path, planner: Planner | None, toy: bool, runs: Path | None
) -> list[dict[str, Any]]:
    from analysis.errors import AnalysisError

    if experiment.suffix == ".json":
        try:
            rungs = json.loads(experiment.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise AnalysisError(f"--for {experiment}: {error}") from error
        needed = {"run_id", "arch", "size", "horizons", "params_exact", "flops_per_token", "state"}
        if not isinstance(rungs, list) or not all(
            isinstance(r, dict) and needed <= r.keys() for r in rungs
        ):
            raise AnalysisError(f"--for {experiment}: not what linscale plan --json prints")
        return rungs
    if planner is None:
        raise AnalysisError(f"--for {experiment}: this command cannot plan experiments; use "
                            "linscale forecast, or the JSON of linscale plan --json")  # fmt: skip
    return planner(experiment, toy, runs)


def _unfinished(
    sweep: Sweep, source: Path, rungs: list[dict[str, Any]], only: str | None, parameters: str,
    runs: Path | None,
) -> tuple[list[Target], dict[str, Any]]:  # fmt: skip
    """Targets of the rungs that are not finished, and what was found of their runs."""
    from analysis.forecast.targets import rungs_as_targets

    states: dict[str, str] = {}
    if len(sweep.runs):
        states = {str(r["run_id"]): str(r["state"]) for r in sweep.runs.to_dict("records")}
    rungs = [{**r, "state": states.get(str(r["run_id"]), str(r["state"]))} for r in rungs]
    targets, done = rungs_as_targets(rungs, only, parameters)
    recorded = sorted({f"{t.run_id}: {t.state}" for t in targets if t.state != "planned"})
    places = [str(source), str(runs) if runs else "the directory of the experiment's runs"]
    return targets, {"checked_in": places, "finished": done, "recorded": recorded}


def _score(paths: list[Path], sweep: Sweep, as_json: bool) -> None:
    from analysis.forecast.scoring import Seal, score
    from analysis.forecast.seal import read_seal
    from analysis.report import forecast_terminal

    seals = [Seal(str(path), *read_seal(path)) for path in paths]
    scores = score(seals, sweep)
    if as_json:
        print_json(scores.as_dict())
    else:
        forecast_terminal.scores(scores)
    if scores.broken:
        raise typer.Exit(1)

"""`linscale fit`. Everything heavy is imported inside, so that --help answers at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analysis.cli.source import OtherData
from linscale.options import AsJson, print_json
from linscale.paragraph import one_paragraph

if TYPE_CHECKING:
    from analysis.fit.approaches import Approaches
    from analysis.fit.law_fit import LawFit
    from analysis.io.sweep import Sweep

app = typer.Typer()

_FIT_EXAMPLES = """Examples:

- `linscale fit results.csv --loss final_loss --params N --tokens D --group arch`

- `linscale fit results.csv --tokens 'tokens_b*1e9' --form gamma --json`

- `linscale fit results.csv --group arch --clusters size`

- `linscale fit runs/quickstart --params total --compute 6nd --bootstrap 4000`

- `linscale fit runs/isoflop --approaches --full`
"""


@app.command(epilog=_FIT_EXAMPLES)
def fit(
    source: Annotated[Path, typer.Argument(help="CSV, TSV or JSON-lines table, or a sweep: "
                                            "directory or zip.")],
    loss: Annotated[
        str | None,
        typer.Option(help="Loss column, or NAME,NAME for a law of each; for a sweep: validation "
                     "or train.")
    ] = None,
    params: Annotated[
        str | None,
        typer.Option(help="Column of N, as NAME or NAME*1e9; for a sweep: non_embedding, total or "
                     "paper."),
    ] = None,
    tokens: Annotated[str | None, typer.Option(help="Column of D, as NAME or NAME*1e9.")] = None,
    compute: Annotated[
        str | None, typer.Option(help="Column of C; for a sweep: exact, paper or 6nd.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Column with one law per value ('' for one law in all).")
    ] = None,
    runs: Annotated[
        str | None,
        typer.Option(help="Columns that tell runs apart, as NAME or NAME,NAME ('': each row)."),
    ] = None,
    unique: Annotated[
        str | None, typer.Option(help="Column of unique tokens, where data were repeated.")
    ] = None,
    total: Annotated[
        str | None, typer.Option(help="Column of total parameters, where N are active ones.")
    ] = None,
    bits: Annotated[str | None, typer.Option(help="Column of the bits of the weights.")] = None,
    share: Annotated[
        str | None, typer.Option(help="Column of the share of one source of the data.")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="Keep rows such as 'arch == tnl' or 'D >= 1e9'.")
    ] = None,
    last_per: Annotated[
        str | None, typer.Option(help="Keep the last row of each run: NAME or NAME,NAME.")
    ] = None,
    best_per: Annotated[
        str | None, typer.Option(help="Keep the lowest loss of each, such as N,D.")
    ] = None,
    clusters: Annotated[
        str | None,
        typer.Option(help="Column (or NAME,NAME) of what the bootstrap resamples (default: the "
                     "run, else each row). If its values recur in every group, as sizes or seeds "
                     "do, groups are compared in pairs."),
    ] = None,
    form: Annotated[
        str,
        typer.Option(help="chinchilla, chinchilla_tied, chinchilla_no_e, gamma, kaplan, "
                     "overtraining, size_exponent, power_c, power_n, power_d (each also with _e: "
                     "an irreducible loss) or broken_c; with further columns data_constrained, "
                     "experts, precision or mixture."),
    ] = "chinchilla",
    objective: Annotated[
        str,
        typer.Option(help="huber, lad, least_squares, logcosh or asymmetric (lower envelope) of "
                     "log residuals, or raw_least_squares of the loss itself."),
    ] = "huber",
    delta: Annotated[float, typer.Option(help="Width of huber, logcosh and asymmetric, in log "
                                         "loss.")] = 1e-3,
    below: Annotated[
        float, typer.Option(help="Share of runs that asymmetric leaves below the law.")
    ] = 0.1,
    fix: Annotated[
        list[str] | None,
        typer.Option(help="Hold a parameter, E=1.6, or make two exponents equal, alpha=beta; "
                     "repeatable."),
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Column of weights.")] = None,
    noise: Annotated[
        str | None, typer.Option(help="Column of the known standard deviation of each loss.")
    ] = None,
    keep_diverged: Annotated[
        bool, typer.Option("--keep-diverged", help="Fit losses far above their neighbours, too.")
    ] = False,
    other_data: OtherData = False,
    bootstrap: Annotated[
        int, typer.Option(min=0, help="Refits over runs for the intervals; 0 for none.")
    ] = 1000,
    approaches: Annotated[
        bool,
        typer.Option("--approaches", help="Also the envelope and IsoFLOP profiles, and where the "
                     "three disagree."),
    ] = False,
    baseline: Annotated[
        str | None, typer.Option(help="Group that the others are compared with (default llama, "
                                      "else the first).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    full: Annotated[
        bool, typer.Option("--full", help="Print the whole sensitivity table and checklist.")
    ] = False,
    as_json: AsJson = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Save the fits, with every draw, as JSON.")
    ] = None,
) -> None:  # fmt: skip
    """Fit a scaling law with intervals to a table of runs or to a sweep.

    Columns that are not named are guessed, and the guess is printed. Rows that cannot be used are
    left out with their reason. Several groups are also compared: equal-loss compute, where their
    frontiers cross, and whether they share their exponents.
    """
    with one_paragraph():
        from analysis.cli.source import read_source
        from analysis.judge.beside import beside, compare_groups, record_of, shared_scatter
        from analysis.report import terminal

        held = _held(fix or [])
        options: dict[str, Any] = {
            "objective": objective, "delta": delta, "below": below, "fix": held,
            "weights": weights, "noise": noise, "keep_diverged": keep_diverged,
        }  # fmt: skip
        _check_choices(form, objective, delta, below, bootstrap)
        chosen = {"unique": unique, "total": total, "bits": bits, "share": share, "runs": runs,
                  "where": where or (), "last_per": last_per, "best_per": best_per}  # fmt: skip
        sweep = read_source(
            source, loss=loss, params=params, tokens=tokens, compute=compute, group=group,
            chosen=chosen, other_data=other_data, several=True,
        )  # fmt: skip
        options["accounting"] = len(sweep.runs) > 0
        unit = _clusters(sweep, clusters)
        with _progress(bootstrap, quiet=as_json) as progress:
            fits, failures = _fit_each(
                sweep, form, progress,
                options | {"clusters": unit, "bootstrap": bootstrap, "seed": seed},
            )  # fmt: skip
        other = _approaches(sweep, fits, bootstrap, seed) if approaches else {}
        extras = {name: beside(each, sweep, name, **options) for name, each in fits.items()}
        # Losses of other text are not compared at one compute.
        compared = None if sweep.targets else compare_groups(fits, baseline=baseline)
        if out is not None:
            full_record = {name: json.loads(each.to_json()) for name, each in fits.items()}
            _write(out, json.dumps(full_record))
        if as_json:
            record = record_of(sweep, fits, failures, extras, compared, other)
            print_json(record)
        else:
            terminal.fits(sweep, fits, failures, extras, full=full)
            terminal.targets(shared_scatter(sweep, fits))
            terminal.comparison(compared)
            terminal.approaches(other)


def plan_refinement(
    rungs: list[dict[str, Any]], directory: Path, *, quantity: str, budget: float | None,
    as_json: bool,
) -> None:  # fmt: skip
    """What `linscale plan FILE --refine DIR` prints: candidate rungs, most informative first.

    Args:
        rungs: of the experiment file, as `linscale plan --json` gives them.
        directory: a sweep whose finished runs are the laws so far.
        quantity: what to determine better (analysis.judge.design.quantity).
        budget: FLOPs to spend; None ranks only.
        as_json: print JSON.
    """
    with one_paragraph():
        from analysis.io.records import load_sweep
        from analysis.judge.refine import candidates_of, refine
        from analysis.report import terminal

        sweep = load_sweep(directory)
        result = refine(sweep, candidates_of(rungs), quantity=quantity, budget=budget)
        if as_json:
            print_json(result.as_dict())
        else:
            terminal.refinement(sweep, result)


def _held(texts: list[str]) -> dict[str, float | str]:
    """What --fix holds: E=1.6 a value, alpha=beta another exponent."""
    from analysis.errors import AnalysisError

    held: dict[str, float | str] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise AnalysisError(f"--fix {text}: give NAME=VALUE, as E=1.6, or alpha=beta")
        try:
            held[name] = float(value)
        except ValueError:
            held[name] = value
    return held


def _check_choices(form: str, objective: Any, delta: float, below: float, bootstrap: int) -> None:
    """Raises AnalysisError once for a wrong option, instead of once for every group."""
    from analysis.errors import AnalysisError
    from analysis.fit.robust import Robust
    from analysis.laws.registry import get_law

    get_law(form)
    Robust(objective, delta, below)
    if bootstrap == 1:
        raise AnalysisError("--bootstrap 1 gives no interval: 1000 is usual, 0 for none")


def _clusters(sweep: Sweep, asked: str | None) -> str | None:
    """The column that the bootstrap resamples, of which the sweep's first note tells; in a sweep
    runs of one size and seed are drawn together in every architecture.

    Several columns, separated by commas, are joined into one.
    """
    from analysis.errors import AnalysisError
    from analysis.io.frames import words

    points, parts = sweep.points, [p.strip() for p in asked.split(",")] if asked else []
    if asked is not None and asked in points:
        parts = [asked]
    missing = [part for part in parts if part not in points]
    if missing:
        raise AnalysisError(f"no column {missing[0]!r} for --clusters; {sweep.name} has "
                            f"{', '.join(map(str, points.columns))}")  # fmt: skip
    if asked and len(parts) > 1:
        points[asked] = [" ".join(row) for row in zip(*(words(points, p) for p in parts),
                                                      strict=True)]  # fmt: skip
    unit = asked or ("size_seed" if "size_seed" in points else None)
    name: str = unit or "run_id"
    if name in points and len(points):
        count = len(set(words(points, name)))
        what = f"{count} values of {name!r}" if unit else f"{count} runs"
        if not unit and count == len(points) and "size_seed" not in points:
            what = f"{count} runs, a row each"
        sweep.notes.insert(0, f"{len(points)} rows; the unit of resampling: {what}")
    return unit


def _fit_each(
    sweep: Sweep, form: str, progress: Callable[[str, int, int], None] | None,
    options: dict[str, Any],
) -> tuple[dict[str, LawFit], dict[str, str]]:  # fmt: skip
    """A fit of every group, and the reasons of those that cannot be fitted.

    Raises:
        AnalysisError: none can.
    """
    from analysis.errors import AnalysisError, alike
    from analysis.fit.fitting import fit_law
    from analysis.io.frames import groups, where

    points = sweep.require_points()
    fits: dict[str, LawFit] = {}
    failures: dict[str, str] = {}
    for name in groups(points, "arch"):
        step = partial(progress, name) if progress is not None else None
        try:
            fits[name] = fit_law(form, where(points, arch=name), progress=step, **options)
        except AnalysisError as error:
            failures[name] = str(error)
    if not fits:
        reasons = (why if names == "all" else f"{names}: {why}" for names, why in alike(failures))
        raise AnalysisError("; ".join(reasons))
    return fits, failures


def _approaches(
    sweep: Sweep, fits: dict[str, LawFit], bootstrap: int, seed: int
) -> dict[str, Approaches]:
    """The three approaches for every group whose law could be fitted."""
    from analysis.fit.approaches import three_approaches
    from analysis.io.frames import where

    return {
        name: three_approaches(
            where(sweep.points, arch=name), law=fit, bootstrap=bootstrap, seed=seed
        )
        for name, fit in fits.items()
    }


@contextmanager
def _progress(samples: int, *, quiet: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """A bar for bootstraps long enough to want one."""
    if quiet or samples < 2000:
        yield None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def advance(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(f"bootstrap {escape(name)}", total=total)
            bar.update(tasks[name], completed=done)

        yield advance


def _write(path: Path, text: str) -> None:
    from analysis.errors import AnalysisError
    from analysis.io.staging import write_whole

    try:
        write_whole(path, text)
    except OSError as error:
        raise AnalysisError(f"{path} cannot be written: {error.strerror}") from error

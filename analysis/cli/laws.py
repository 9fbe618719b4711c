"""`linscale optima` and `linscale tuning`: laws of optima, and of the best hyper-parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from linscale.options import AsJson, print_json
from linscale.paragraph import one_paragraph
from linscale.terminal import console

if TYPE_CHECKING:
    from analysis.io.sweep import Sweep

app = typer.Typer()
_Law = TypeVar("_Law")
_Column = typer.Option(help="Column, as for linscale fit.")


@app.command(epilog="Example: linscale optima optima.csv --compute C --params N_opt --group arch")
def optima(
    table: Annotated[Path, typer.Argument(help="A row an optimum: C and N*, D* or both.")],
    compute: Annotated[str | None, _Column] = None,
    params: Annotated[str | None, _Column] = None,
    tokens: Annotated[str | None, _Column] = None,
    group: Annotated[str | None, _Column] = None,
    where: Annotated[list[str] | None, typer.Option(help="Rows, as for linscale fit.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fit N*(C) and D*(C) to optima that somebody has found: a, b and their intervals."""
    with one_paragraph():
        from analysis.io.frames import groups
        from analysis.io.frames import where as where_
        from analysis.io.tables import load_table
        from analysis.judge.optima import optima_law, several_at_one_budget

        sweep = load_table(table, loss="", compute=compute, params=params, tokens=tokens,
                           group=group, where=where or ())  # fmt: skip
        points = sweep.require_points()
        laws, failures = _each(
            {g: partial(optima_law, where_(points, arch=g)) for g in groups(points, "arch")}
        )
        doubts = several_at_one_budget(points)
        if as_json:
            record = {g: law.as_dict() for g, law in laws.items()}
            print_json({"source": sweep.name, "notes": [*sweep.notes, *doubts],
                        "laws": record, "not_fitted": failures})  # fmt: skip
            return
        _head(sweep, failures)
        for text in doubts:
            _say(text)
        for name, law in laws.items():
            parts: list[str] = []
            for key, line, star in (("a", law.n, "N*"), ("b", law.d, "D*")):
                low, high = law.interval(key)
                reach = f" [{low:.3f}, {high:.3f}]" if low == low else " (two optima: no interval)"
                parts.append(f"{star} = {line.coefficient:.4g} C^{line.exponent:.3f}{reach}")
            _say(f"{name}, {law.budgets} optima: {'; '.join(parts)}")
            if law.derived:
                _say(f"{name}: {law.derived} was computed by C = 6 N D, so that a + b = 1")


@app.command(epilog="Example: linscale tuning sweep.csv --setting lr")
def tuning(
    table: Annotated[Path, typer.Argument(help="Runs that sweep a setting at several N and D.")],
    setting: Annotated[
        str | None, typer.Option(help="Column of the setting (default: the one that is swept).")
    ] = None,
    loss: Annotated[str | None, _Column] = None,
    params: Annotated[str | None, _Column] = None,
    tokens: Annotated[str | None, _Column] = None,
    group: Annotated[str | None, _Column] = None,
    where: Annotated[list[str] | None, typer.Option(help="Rows, as for linscale fit.")] = None,
    bootstrap: Annotated[int, typer.Option(min=100, help="Resamplings for intervals.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Fit the best learning rate or batch as a function of N and D, and say what is identified."""
    with one_paragraph():
        from analysis.errors import AnalysisError
        from analysis.io.columns import listed
        from analysis.io.frames import groups
        from analysis.io.frames import where as where_
        from analysis.io.table_warnings import SETTINGS, swept
        from analysis.io.tables import load_table
        from analysis.judge.tuning_law import tuning_law

        sweep = load_table(table, loss=loss, params=params, tokens=tokens, group=group,
                           where=where or ())  # fmt: skip
        points = sweep.require_points()
        names = [setting] if setting else swept(points)
        if not names:
            raise AnalysisError(
                "no column is known to be swept (such as "
                f"{', '.join(SETTINGS[:4])}); name it with --setting. Columns: {listed(points)}"
            )
        laws, failures = _each({
            f"{g}: {name}" if g != "all" else name:
                partial(tuning_law, where_(points, arch=g), name, bootstrap=bootstrap, seed=seed)
            for g in groups(points, "arch") for name in names
        })  # fmt: skip
        if as_json:
            record = {key: law.as_dict() for key, law in laws.items()}
            print_json({"source": sweep.name, "laws": record,
                                          "not_fitted": failures})  # fmt: skip
            return
        _head(sweep, failures)
        for key, law in laws.items():
            for sentence in law.describe():
                _say(f"{key}: {sentence}")


def _each(fits: dict[str, Callable[[], _Law]]) -> tuple[dict[str, _Law], dict[str, str]]:
    """What could be fitted, and why the rest could not.

    Raises:
        AnalysisError: nothing could.
    """
    from analysis.errors import AnalysisError

    laws: dict[str, _Law] = {}
    failures: dict[str, str] = {}
    for name, fit in fits.items():
        try:
            laws[name] = fit()
        except AnalysisError as error:
            failures[name] = str(error)
    if not laws:
        raise AnalysisError("; ".join(f"{name}: {why}" for name, why in failures.items()))
    return laws, failures


def _head(sweep: Sweep, failures: dict[str, str]) -> None:
    _say(f"{sweep.name}: {sweep.conventions}")
    for note in sweep.notes:
        if not note.startswith("WARNING"):
            _say(note)
    for row in sweep.exclusions.to_dict("records"):
        _say(f"left out: {row['run_id']}: {row['reason']}")
    for name, why in failures.items():
        _say(f"not fitted: {name}: {why}")


def _say(text: str) -> None:
    console().print(text)

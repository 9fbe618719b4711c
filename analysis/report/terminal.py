"""What the commands print: tables, warnings, comparisons, compact unless asked for more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich.text import Text

from analysis.errors import alike, worth_reading
from analysis.io.frames import numbers, where, words
from analysis.judge.checklist import NOT_RECORDED
from analysis.judge.refine import shrinkage
from analysis.units import LEVEL
from linscale.table import Column, Grid
from linscale.terminal import console as _console

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from analysis.fit.approaches import Approaches
    from analysis.fit.law_fit import LawFit
    from analysis.io.sweep import Sweep
    from analysis.judge.beside import Beside, Comparison
    from analysis.judge.noise import Common
    from analysis.judge.refine import Refinement


_MOST_LISTED = 12
"""Exclusions are listed one by one up to here."""


def refinement(sweep: Sweep, result: Refinement) -> None:
    """Candidate runs, most informative first."""
    console = _console()
    rows = result.frame.to_dict("records")
    columns = [
        Column("run", [str(r["run_id"]).rpartition("-")[0] for r in rows], words=True),
        Column("seed", [f"{r['seed']}" for r in rows], once=True),
        Column("FLOPs", [f"{r['cost']:.2e}" for r in rows]),
        Column("± now", [f"{r['now']:.3g}" for r in rows], spare=1),
        Column("± with it", [f"{r['alone']:.3g}" for r in rows]),
        Column("shrinks by", [f"{r['gain']:.1%}" for r in rows]),
        Column("per FLOP", [f"{r['gain_per_flop']:.2f}" for r in rows], spare=2),
        Column("plan", [str(r["order"]) if r["order"] else "" for r in rows]),
    ]
    title = f"runs that would narrow {result.quantity}, given {sweep.name}"
    console.print(Grid(columns, title=title))
    for arch, (now, after) in shrinkage(result.frame).items():
        if result.budget is not None:
            console.print(
                f"{arch}: the plan narrows {result.quantity} from ± {now:.3g} to ± {after:.3g} "
                f"({LEVEL:.0%} intervals of the linearised law).",
            )
    for what, why in result.left_out.items():
        console.print(f"left out: {what}: {why}", style="yellow")


def fits(
    sweep: Sweep, found: Mapping[str, LawFit], failures: Mapping[str, str],
    extras: Mapping[str, Beside], *, full: bool,
) -> None:  # fmt: skip
    """Every group's law, what was left out, and what stands beside each fit."""
    console = _console()
    console.print(f"{sweep.name}: {sweep.conventions}")
    for note in sweep.notes:
        console.print(note)
    for text in _left_out(sweep.exclusions):
        console.print(f"left out: {text}", style="yellow")
    for names, why in alike(failures):
        console.print(f"not fitted: {names}: {why}", style="yellow")
    shared = _shared_warnings(found)
    answered = {name: _answered(extras[name].checklist) for name in found}
    for name, each in found.items():
        obs = each.observations
        console.print(
            f"\n{name}: {each.law.formula}, {len(obs.loss)} points of {len(obs.labels)} runs",
            style="bold",
        )
        console.print(_fit_table(each))
        quality = each.criteria()
        if "a" in each.params:
            console.print(f"a, b, N* and D*: {each.compute_model.describe()}")
        console.print(
            f"rms error {quality['rms']:.2%}, AICc {quality['aicc']:.1f}; {each.evidence.reached} "
            f"of {each.evidence.starts} starts reached this optimum; condition "
            f"{each.evidence.condition:.0f}",
        )
        for warning in worth_reading(each.warnings):
            if str(warning) not in shared:
                _warn(console, str(warning))
        if (noise := extras[name].noise) is not None:
            console.print(f"{noise.describe()}.")
        if (curves := extras[name].collapse) is not None:
            console.print(f"{curves.describe()}.")
        _rolling(console, extras[name])
        _choices(console, extras[name].sensitivity, each, full)
        if full or len(set(answered.values())) > 1:
            console.print(answered[name])
        if full:
            _checklist(console, extras[name].checklist)
    for text in shared:
        _warn(console, f"of every group: {text}")
    if not full and len(set(answered.values())) == 1:
        of_all = "of every group: " if len(answered) > 1 else ""
        console.print(of_all + next(iter(answered.values())))
    if not full:
        console.print("\n--full prints every choice and the checklist.", style="dim")


def targets(found: Mapping[str, Common]) -> None:
    """What the residuals of several losses of a run share."""
    console = _console()
    for group, each in found.items():
        console.print(f"\n{'' if group == 'all' else f'{group}: '}{each.describe()}.")


def _shared_warnings(found: Mapping[str, LawFit]) -> list[str]:
    """Warnings that are the same for every one of several groups: they are said once."""
    if len(found) < 2:
        return []
    first, *others = ([str(w) for w in worth_reading(each.warnings)] for each in found.values())
    return [text for text in first if all(text in other for other in others)]


def _left_out(exclusions: pd.DataFrame) -> list[str]:
    """Every exclusion with its reason; of many, how often each reason was the one."""
    if len(exclusions) <= _MOST_LISTED:
        return [f"{r['run_id']}: {r['reason']}" for r in exclusions.to_dict("records")]
    counted = exclusions["reason"].value_counts()
    return [f"{count} x {reason}" for reason, count in counted.items()]


def _rolling(console: Console, extra: Beside) -> None:
    """What the cheaper runs said about the dearer ones."""
    if extra.rolling is not None:
        console.print(" ".join(extra.rolling.describe()))
    elif extra.no_rolling:
        console.print(f"no rolling hold-out: {extra.no_rolling}")


def _choices(console: Console, table: pd.DataFrame, fit: LawFit, full: bool) -> None:
    """How far other choices move the answer: one line, or all of them."""
    name = "a" if "a" in fit.params else fit.law.exponents[0]
    values = numbers(table, name)
    shift = np.abs(numbers(table, "change"))
    if np.nanmax(shift) > 0:
        row = table.iloc[int(np.nanargmax(shift))]
        far = f" ({row['shift']:+.1f} standard errors)" if np.isfinite(row["shift"]) else ""
        console.print(
            f"other choices: {name} from {np.nanmin(values):.3f} to {np.nanmax(values):.3f} over "
            f"{len(table) - 1}; farthest: {row['choice']}, {row['setting']}{far}",
        )
    if not full:
        return
    names = [*fit.law.exponents, *(["E"] if fit.law.has_floor else [])]
    names += ["a"] if "a" in fit.params else []
    rows = table.to_dict("records")

    def column(title: str, key: str, form: str, spare: int = 0) -> Column:
        return Column(title, [format(r[key], form) if pd.notna(r[key]) else "" for r in rows],
                      spare=spare)  # fmt: skip

    columns = [
        Column("choice", [str(r["choice"]) for r in rows], words=True),
        Column("setting", [str(r["setting"]) for r in rows], words=True),
        column("points", "points", ".0f", spare=1),
        *(column(each, each, ".4g") for each in names),
        column("shift / s.e.", "shift", "+.1f"),
        Column("note", [str(r["note"]) for r in rows], words=True, spare=2),
    ]
    console.print(Grid(columns, title="sensitivity"))


def _answered(table: pd.DataFrame) -> str:
    """How much of the reporting checklist is open."""
    answers = np.asarray(words(table, "answer"))
    open_ = [q for q, a in zip(words(table, "question"), answers, strict=True)
             if a == NOT_RECORDED]  # fmt: skip
    text = f"checklist: {len(answers) - len(open_)} of {len(answers)} questions answered"
    if open_:
        text += f"; the data do not say: {' '.join(open_)}"
    return text


def _checklist(console: Console, table: pd.DataFrame) -> None:
    """All of the reporting checklist."""
    rows: list[tuple[str, str, str]] = []
    for section in dict.fromkeys(words(table, "section")):
        for place, row in enumerate(where(table, section=section).to_dict("records")):
            rows.append(("" if place else section, row["question"], str(row["answer"])))
    titles = ("section", "question", "answer")
    console.print(Grid(
        (Column(title, cells, words=True)
         for title, cells in zip(titles, map(list, zip(*rows, strict=True)), strict=True)),
        title="checklist",
    ))  # fmt: skip


def comparison(result: Comparison | None) -> None:
    """Equal-loss compute, crossings and shared exponents of several groups."""
    if result is None:
        return
    console = _console()
    console.print(f"\ncompared with {result.baseline}:", style="bold")
    for each in result.multipliers.values():
        console.print(f"{each.verdict} {each.crossing_words}")
    for what, why in alike(result.failures):
        console.print(f"not compared: {what}: {why}", style="yellow")
    if result.shared is not None:
        console.print(result.shared.verdict)
    codes = {w.code: w for each in result.multipliers.values() for w in each.warnings}
    for warning in codes.values():
        _warn(console, str(warning))


def _fit_table(fit: LawFit) -> Grid:
    rows = fit.table(LEVEL).to_dict("records")
    columns = [
        Column("parameter", [str(r["parameter"]) for r in rows], words=True),
        Column("value", [f"{r['value']:.5g}" for r in rows]),
    ]
    if fit.draws is not None:
        # Where it is wider than the interval, a few refits far away make up all of it.
        errors = ["" if r["se"] > r["hi"] - r["lo"] else f"{r['se']:.2g}" for r in rows]
        columns += [
            Column("standard error", errors, spare=1),
            Column(f"{LEVEL:.0%} interval", [f"{r['lo']:.5g} … {r['hi']:.5g}" for r in rows]),
        ]
    return Grid(columns)


def approaches(results: dict[str, Approaches]) -> None:
    """What each of the three approaches says."""
    console = _console()
    for name, result in results.items():
        rows = result.frame.to_dict("records")
        columns = [
            Column("approach", [str(r["approach"]) for r in rows], words=True),
            *(Column(title, [_with_interval(r, key, form) for r in rows], spare=spare)
              for title, key, form, spare in
              (("a", "a", ".3f", 0), ("N*", "n", ".3g", 0), ("D*", "d", ".3g", 1))),
        ]  # fmt: skip
        console.print()
        title = f"{name}: N* ~ C^a, and N*, D* at {result.at:.3g} FLOPs"
        console.print(Grid(columns, title=title))
        for row in rows:
            if row["note"]:
                console.print(f"{row['approach']}: {row['note']}")
        if result.parametric is not None:
            console.print(f"approach 3: {result.parametric.compute_model.describe()}")
        for warning in result.warnings:
            _warn(console, str(warning))


def _with_interval(row: dict[Any, Any], key: str, form: str) -> str:
    """A value and its interval, as far as the row has them."""
    value, low = row.get(key), row.get(f"{key}_lo")
    if value is None or value != value:
        return ""
    text = format(value, form)
    return (
        text
        if low is None or low != low
        else (f"{text} ({format(low, form)} … {format(row[f'{key}_hi'], form)})")
    )


def _warn(console: Console, text: str) -> None:
    console.print(Text.assemble(("warning: ", "bold yellow"), text))

"""What the commands print: tables, warnings, comparisons, compact unless asked for more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis.io.frames import numbers, where, words
from analysis.judge.checklist import NOT_RECORDED
from analysis.judge.refine import shrinkage
from analysis.units import LEVEL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from analysis.fit.approaches import Approaches
    from analysis.fit.law_fit import LawFit
    from analysis.io.sweep import Sweep
    from analysis.judge.beside import Beside, Comparison
    from analysis.judge.noise import Common
    from analysis.judge.refine import Refinement


_MOST_LISTED = 12
"""Exclusions are listed one by one up to here."""


def _console() -> Console:
    """Prints names of columns and groups as they are: "loss [nats]" is not markup."""
    return Console(markup=False, emoji=False, highlight=False)


def refinement(sweep: Sweep, result: Refinement) -> None:
    """Candidate runs, most informative first."""
    console = _console()
    table = Table(
        title=f"runs that would narrow {result.quantity}, given {sweep.name}", title_justify="left"
    )
    for name in ("run", "FLOPs", "± now", "± with it", "shrinks by", "per FLOP", "plan"):
        table.add_column(name, justify="left" if name == "run" else "right")
    for row in result.frame.to_dict("records"):
        table.add_row(
            str(row["run_id"]).rpartition("-")[0], f"{row['cost']:.2e}", f"{row['now']:.3g}",
            f"{row['alone']:.3g}", f"{row['gain']:.1%}", f"{row['gain_per_flop']:.2f}",
            str(row["order"]) if row["order"] else "",
        )  # fmt: skip
    console.print(table)
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
    for name, why in failures.items():
        console.print(f"not fitted: {name}: {why}", style="yellow")
    shared = _shared_warnings(found)
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
        for warning in each.warnings:
            if str(warning) not in shared:
                _warn(console, str(warning))
        if (noise := extras[name].noise) is not None:
            console.print(f"{noise.describe()}.")
        if (curves := extras[name].collapse) is not None:
            console.print(f"{curves.describe()}.")
        _rolling(console, extras[name])
        _choices(console, extras[name].sensitivity, each, full)
        _checklist(console, extras[name].checklist, full)
    for text in shared:
        _warn(console, f"of every group: {text}")
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
    first, *others = ([str(w) for w in each.warnings] for each in found.values())
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
    shown = Table(title="sensitivity", title_justify="left")
    columns = [*fit.law.exponents, *(["E"] if fit.law.has_floor else [])]
    columns += ["a"] if "a" in fit.params else []
    for title in ("choice", "setting", "points", *columns, "shift / s.e.", "note"):
        shown.add_column(title, justify="left" if title in ("choice", "setting", "note") else
                         "right")  # fmt: skip
    for row in table.to_dict("records"):
        cells = [f"{row[c]:.4g}" if pd.notna(row[c]) else "" for c in columns]
        moved = f"{row['shift']:+.1f}" if pd.notna(row["shift"]) else ""
        count = f"{row['points']:.0f}" if pd.notna(row["points"]) else ""
        shown.add_row(row["choice"], row["setting"], count, *cells, moved, row["note"])
    console.print(shown)


def _checklist(console: Console, table: pd.DataFrame, full: bool) -> None:
    """The reporting checklist: how much of it is open, or all of it."""
    answers = np.asarray(words(table, "answer"))
    open_ = [q for q, a in zip(words(table, "question"), answers, strict=True)
             if a == NOT_RECORDED]  # fmt: skip
    text = f"checklist: {len(answers) - len(open_)} of {len(answers)} questions answered"
    if open_:
        text += f"; the data do not say: {' '.join(open_)}"
    console.print(text)
    if not full:
        return
    shown = Table(title="checklist", title_justify="left", show_lines=False)
    for title in ("section", "question", "answer"):
        shown.add_column(title)
    for section in dict.fromkeys(words(table, "section")):
        for row in where(table, section=section).to_dict("records"):
            shown.add_row(section, row["question"], str(row["answer"]))
            section = ""
    console.print(shown)


def comparison(result: Comparison | None) -> None:
    """Equal-loss compute, crossings and shared exponents of several groups."""
    if result is None:
        return
    console = _console()
    console.print(f"\ncompared with {result.baseline}:", style="bold")
    for each in result.multipliers.values():
        console.print(f"{each.verdict} {each.crossing_words}")
    for text in dict.fromkeys(w for each in result.multipliers.values() for w in each.compute):
        console.print(f"frontiers: {text}")
    for what, why in result.failures.items():
        console.print(f"not compared: {what}: {why}", style="yellow")
    if result.shared is not None:
        console.print(result.shared.verdict)
    codes = {w.code: w for each in result.multipliers.values() for w in each.warnings}
    for warning in codes.values():
        _warn(console, str(warning))


def _fit_table(fit: LawFit) -> Table:
    table = Table()
    table.add_column("parameter")
    table.add_column("value", justify="right")
    frame = fit.table(LEVEL)
    if fit.draws is not None:
        table.add_column("standard error", justify="right")
        table.add_column(f"{LEVEL:.0%} interval", justify="right")
    for row in frame.to_dict("records"):
        cells = [str(row["parameter"]), f"{row['value']:.5g}"]
        if fit.draws is not None:
            wide = row["se"] > row["hi"] - row["lo"]  # a few refits far away make up all of it
            cells += ["" if wide else f"{row['se']:.2g}", f"{row['lo']:.5g} … {row['hi']:.5g}"]
        table.add_row(*cells)
    return table


def approaches(results: dict[str, Approaches]) -> None:
    """What each of the three approaches says."""
    console = _console()
    for name, result in results.items():
        table = Table(title=f"{name}: N* ~ C^a, and N*, D* at {result.at:.3g} FLOPs",
                      title_justify="left")  # fmt: skip
        for title in ("approach", "a", "N*", "D*", "note"):
            table.add_column(title, justify="left" if title in ("approach", "note") else "right")
        for row in result.frame.to_dict("records"):
            cells = [_with_interval(row, key, form) for key, form in
                     (("a", ".3f"), ("n", ".3g"), ("d", ".3g"))]  # fmt: skip
            table.add_row(str(row["approach"]), *cells, str(row["note"]))
        console.print()
        console.print(table)
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

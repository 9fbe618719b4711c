"""What `linscale forecast` prints: forecasts with their intervals and doubts, and their scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.forecast.baselines import NAMES
from analysis.io.frames import where
from linscale.table import Column, Grid
from linscale.terminal import console as _console

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.forecast.scoring import Scores


def forecast(record: Mapping[str, Any], path: Path | None) -> None:
    """A forecast by group: law, calibration, predictions, frontier, doubts."""
    console = _console()
    console.print(f"{record['data']['source']}: {record['conventions']}")
    for note in record["notes"]:
        console.print(note)
    shared = _shared_notes(list(record["groups"].values()))
    for name, group in record["groups"].items():
        own = {**group, "notes": [note for note in group["notes"] if note not in shared]}
        _group(console, name, own, [f for f in record["forecasts"] if f["group"] == name])
    for note in shared:
        console.print(f"of every group: {note}", style="yellow")
    for text in record["existed"]["measured"]:
        console.print(f"not a forecast: {text} is measured in the source already", style="yellow")
    for text in record["existed"]["recorded"]:
        console.print(f"begun before this forecast: {text}", style="yellow")
    if path is None:
        console.print("\nNot sealed: -o FILE.json seals it.", style="dim")
    else:
        revision = record["git_revision"]
        where = f", git {revision[:9]}" if revision else ""
        changed = " (with uncommitted changes)" if record["git_changes"] else ""
        console.print(
            f"\nsealed: {path}, {record['sealed_at']}{where}{changed}, sha256 {record['seal'][:16]}"
        )


def _shared_notes(groups: list[Mapping[str, Any]]) -> list[str]:
    """Notes that are the same for every one of several groups: they are said once."""
    if len(groups) < 2:
        return []
    first, *others = groups
    return [note for note in first["notes"] if all(note in other["notes"] for other in others)]


def _group(
    console: Console, name: str, group: Mapping[str, Any], forecasts: list[Mapping[str, Any]]
) -> None:
    shared = "" if group["shared_effect"] == "nothing" else (
        f", an effect of each {group['shared_effect']}"
    )  # fmt: skip
    console.print(f"\n{name}: {group['rows']} rows of {group['sizes']} sizes{shared}", style="bold")
    several = len(group["laws"]) > 1
    for form, law in group["laws"].items():
        weight = f" (weight {law['weight']:.0%})" if several else ""
        told = ", ".join(_parameter(k, v) for k, v in law["parameters"].items()
                         if k not in ("A", "B"))  # fmt: skip
        console.print(f"{form}{weight}: {told}; noise {law['noise']:.2%}, misfit "
                      f"{law['misfit']:.1%}")  # fmt: skip
    for note in group["notes"]:
        console.print(note, style="yellow")
    _calibration(console, group["calibration"])
    splits = [f" (N={f['n']:.2g}, D={f['d']:.2g})" if f["best_split"] else "" for f in forecasts]
    columns = [
        Column("forecast of", [f["name"] + s for f, s in zip(forecasts, splits, strict=True)],
               words=True),
        Column("leap", [f"{f['leap']:.3g}x" for f in forecasts]),
        Column("loss", [f"{f['loss']:.4g}" for f in forecasts]),
        Column("50 %", [_span(f["interval_50"]) for f in forecasts], spare=1),
        Column("90 %", [_span(f["interval_90"]) for f in forecasts]),
    ]  # fmt: skip
    console.print(Grid(columns))
    for each in forecasts:
        for doubt in each["doubts"]:
            console.print(f"{each['name']}: {doubt}", style="yellow")
    _frontier(console, group["frontier"])


def _calibration(console: Console, told: Mapping[str, Any]) -> None:
    if told["forecasts"]:
        low, high = told["binomial_90%"]
        console.print(
            f"rolling hold-out: {told['inside_90%']} of {told['forecasts']} losses "
            f"({told['independent']} runs or sizes) in their 90 % interval, so {low:.0%} to "
            f"{high:.0%}; up to {told['largest_leap']:.2g}x the compute known"
        )
    if told["too_few"]:
        console.print(told["too_few"], style="yellow")


def _frontier(console: Console, rows: list[Mapping[str, Any]]) -> None:
    if not rows:
        return
    columns = [Column("C", [f"{r['c']:.2e}" for r in rows])]
    if "n" in rows[0]:
        columns += [
            Column("N", [f"{r['n']:.2g} {_range(r, 'n', 2)}".strip() for r in rows]),
            Column("D", [f"{r['d']:.2g}" for r in rows]),
        ]
    losses = [f"{r['loss']:.4g} {_range(r, 'loss', 4)}".strip() for r in rows]
    columns.append(Column("loss", losses))
    console.print(Grid(columns, title="compute-optimal frontier of the law (90 %)"))


def _range(row: Mapping[str, Any], key: str, digits: int) -> str:
    low, high = row.get(f"{key}_lo"), row.get(f"{key}_hi")
    return "" if low is None or high is None else f"[{low:.{digits}g}, {high:.{digits}g}]"


def _parameter(name: str, value: Mapping[str, Any]) -> str:
    if value["lo"] is None:
        return f"{name} = {value['value']:.4g}"
    return f"{name} = {value['value']:.4g} [{value['lo']:.4g}, {value['hi']:.4g}]"


def _span(bounds: list[float] | None) -> str:
    return "none" if bounds is None else f"{bounds[0]:.4g}-{bounds[1]:.4g}"


def scores(found: Scores) -> None:
    """Every outcome beside its forecast, then the seals with their summaries."""
    console = _console()
    for each in found.seals:
        pinned = ", ".join(f"{k} pinned at {v:g}" for k, v in each["pinned"].items())
        console.print(
            f"{each['name']}: sealed {each['sealed_at']}, {', '.join(each['form'])}"
            + (f", {pinned}" if pinned else ""),
            style="bold",
        )
        for text in each["broken"]:
            console.print(f"BROKEN SEAL: {text}", style="bold red")
        if each["inputs"] == "not in this source":
            console.print("its rows are not in this source: whether they changed was not checked")
        elif each["inputs"] == "intact" and not each["broken"]:
            console.print("seal intact: the file and the rows it used are unchanged")
        if len(found.table) and len(own := where(found.table, seal=each["name"])):
            _outcomes(console, own.to_dict("records"))
        _summary(console, each["summary"])
        if each["waiting"]:
            console.print(f"{len(each['waiting'])} forecast(s) without an outcome yet")
    if len(found.seals) > 1 and len(found.table):
        _over_time(console, found)


def _outcomes(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    mark = {True: "yes", False: "no", None: "-"}
    columns = [
        Column("forecast of", [_question(r) for r in rows], words=True),
        Column("leap", [f"{r['leap']:.3g}x" for r in rows], spare=1),
        Column("loss", [f"{r['forecast']:.4g}" for r in rows]),
        Column("90 %", [_interval_90(r) for r in rows]),
        Column("observed", [f"{r['observed']:.4g}" for r in rows]),
        Column("error", [f"{r['error']:+.2f}%" for r in rows]),
        Column("in 50/90", [f"{mark[r['in_50']]}/{mark[r['in_90']]}" for r in rows]),
    ]
    console.print(Grid(columns))


def _question(row: Mapping[str, Any]) -> str:
    """What was forecast, with its group where the question does not begin with it."""
    named = row["group"] == "all" or row["question"].startswith(str(row["group"]))
    older = " (older than the seal)" if row["older"] else ""
    return f"{'' if named else row['group'] + ': '}{row['question']}{older}"


def _interval_90(row: Mapping[Any, Any]) -> str:
    return "none" if math.isnan(row["lo_90"]) else f"{row['lo_90']:.4g}-{row['hi_90']:.4g}"


def _summary(console: Console, told: Mapping[str, Any]) -> None:
    if not told["outcomes"]:
        console.print("no outcome in this source yet")
        return
    text = (f"{told['outcomes']} outcome(s): mean error {told['mean_error']:+.2f} %, mean size "
            f"{told['mean_size']:.2f} %")  # fmt: skip
    if "crps" in told:
        text += f", CRPS {told['crps']:.2f} % of loss"
    console.print(text)
    for level in ("50", "90"):
        if f"inside_{level}" in told:
            inside, count = told[f"inside_{level}"]
            low, high = told[f"binomial_{level}"]
            console.print(f"{level} % interval: {inside} of {count} inside; the coverage lies "
                          f"between {low:.0%} and {high:.0%}")  # fmt: skip
    others = ", ".join(f"{NAMES[k]} {v:.2f} %" for k, v in told["baselines"].items()
                       if v is not None)  # fmt: skip
    console.print(f"baselines, mean size of error: {others}")


def _over_time(console: Console, found: Scores) -> None:
    """The same question as it was forecast at different times."""
    frame = found.table.sort_values(["group", "question", "run_id", "sealed_at"])
    rows = frame.to_dict("records")
    columns = [
        Column("forecast of", [str(r["question"]) for r in rows], words=True),
        Column("sealed", [str(r["sealed_at"])[5:16] for r in rows]),
        Column("forecast", [f"{r['forecast']:.4g}" for r in rows]),
        Column("90 %", [_interval_90(r) for r in rows]),
        Column("observed", [f"{r['observed']:.4g}" for r in rows]),
        Column("error", [f"{r['error']:+.2f}%" for r in rows]),
        Column("CRPS", ["" if math.isnan(r["crps"]) else f"{r['crps']:.2f}" for r in rows],
               spare=1),
    ]  # fmt: skip
    console.print(Grid(columns, title="the same question over time"))

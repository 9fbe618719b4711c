"""A page for every run of a report: its curve, milestones, evaluations, configuration, machine.

    write_runs(sweep, sweep_dir, out) -> out/runs/<run_id>.html, named in the report

Everything comes from the run's record, so a run that was excluded has a page too: that is where one
looks for the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from analysis.figures import style
from analysis.figures.curves import smooth
from analysis.figures.hover import points, svg
from analysis.io.frames import numbers, rows, take, where, words
from analysis.io.jsonlines import read_records
from analysis.io.looks import look
from analysis.io.sweep import Sweep
from analysis.io.sweep_files import Place, open_sweep
from analysis.report.page import Page, bold
from linscale.json_reader import COUNT, BadRecord, as_number, find_object
from linscale.si import si
from linscale.texts import clean

FOLDER = "runs"
_MILESTONES = {
    "tokens": "tokens", "flops": "FLOPs", "train_loss": "training loss",
    "val_loss": "validation loss", "val_loss_std": "± (std over blocks)", "val_bpb": "bits/byte",
    "decayed": "decayed", "sha256": "sha256",
}  # fmt: skip
_EVALS = {"tokens": "tokens", "task": "task", "metric": "metric", "value": "value",
          "stderr": "±", "n": "n"}  # fmt: skip


def run_page(run_id: str) -> str:
    """Path of a run's page, relative to the report."""
    return f"{FOLDER}/{re.sub(r'[^A-Za-z0-9._-]', '_', run_id)}.html"


def write_runs(
    sweep: Sweep, sweep_dir: str | Path, out: Path, say: Callable[[str], None]
) -> dict[str, str]:
    """Writes a page for every run directory of the sweep.

    Args:
        sweep: what `load_sweep` read.
        sweep_dir: where it was read from.
        out: directory of the report.
        say: told which page is being written.

    Returns:
        run id -> path of its page, relative to `out`.
    """
    written: dict[str, str] = {}
    described = {str(run["run_id"]): run for run in sweep.runs.to_dict("records")}
    reasons: dict[str, list[str]] = {}
    for row in sweep.exclusions.to_dict("records"):
        reasons.setdefault(str(row["run_id"]), []).append(str(row["reason"]))
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    files = open_sweep(sweep_dir)
    for run_id in sorted({*described, *reasons}):
        record = files / run_id
        if not (record / "config.json").is_file():
            continue
        say(f"page of {run_id}")
        page = _page(run_id, described.get(run_id, {}), reasons.get(run_id, []), record, sweep)
        written[run_id] = run_page(run_id)
        (out / written[run_id]).write_text(page.render(), encoding="utf-8")
    return written


def _page(
    run_id: str, run: Mapping[Any, Any], reasons: list[str], record: Place, sweep: Sweep
) -> Page:
    page = Page(run_id)
    page.text(f"A run of {sweep.name}.", soft=True)
    page.text(_state(record))
    if reasons:
        page.box("Left out of the fits", dict.fromkeys(reasons))
    curve = where(sweep.curves, run_id=run_id)
    milestones = _lines(record / "milestones.jsonl", _MILESTONES)
    if len(curve) or len(milestones):
        page.section("Loss")
        figure = _curve(str(run.get("arch", "all")), curve, milestones)
        page.figure(
            svg(figure, "curve"), "Training loss (line: median over a twentieth of a decade) and "
            "validation loss at each milestone.", wide=False,
        )  # fmt: skip
    if len(milestones):
        page.section("Milestones")
        table = _chosen(milestones, _MILESTONES)
        if "sha256" in table:
            table["sha256"] = table["sha256"].astype(str).str[:12]
        page.table(table, caption="sha256: first digits, of the weights.")
    evaluations = _lines(record / "evals.jsonl", _EVALS)
    if len(evaluations):
        page.section("Evaluations")
        page.table(_chosen(evaluations, _EVALS))
    page.section("Configuration")
    page.table(_pairs(record / "config.json"))
    page.section("Size and cost")
    page.table(_pairs(record / "accounting.json"), caption="FLOPs: of training, per token.")
    page.section("Environment")
    page.table(_pairs(record / "environment.json"))
    return page


def _curve(arch: str, curve: pd.DataFrame, milestones: pd.DataFrame) -> Figure:
    """Loss against tokens. Margins are fixed: a layout engine would take most of the time."""
    with style.context():
        figure, axes = style.panels(1, 1, width=style.SINGLE, height=2.9)
        figure.set_layout_engine(None)
        ax = axes[0, 0]
        ax.set_position((0.13, 0.16, 0.84, 0.8))
        train = where(curve, split="train") if len(curve) else curve
        train = _drawable(train, "loss") if len(train) else train
        if {"tokens", "val_loss"} <= set(milestones):
            milestones = _drawable(milestones, "val_loss")
        for segment in dict.fromkeys(words(train, "segment") if len(train) else ()):
            part = where(train, segment=segment)
            x, y = smooth(numbers(part, "tokens"), numbers(part, "loss"))
            width = 0.8 if segment.startswith("decay") else 1.3
            ax.plot(x, y, color=look(arch).color, linewidth=width)
        if len(milestones) and {"tokens", "val_loss"} <= set(milestones):
            x, y = numbers(milestones, "tokens"), numbers(milestones, "val_loss")
            texts = [f"{si(a)} tokens: validation loss {b:.4f}"
                     for a, b in zip(x, y, strict=True)]  # fmt: skip
            points(ax, x, y, group=arch, among=(), texts=texts, edgecolors="white")
            ax.set_xlim(float(np.nanmin(x)) / 10, float(np.nanmax(x)) * 1.2)
            finite = y[np.isfinite(y)]
            if len(finite):
                ax.set_ylim(0.93 * finite.min(), 1.8 * finite.max())
        ax.set(xlabel="tokens", ylabel="loss (nats per token)")
        for which, counts in (("x", True), ("y", False)):
            style.log_axis(ax, which, si=counts)
            # There are hundreds of these pages; half of their time was that of unnamed ticks.
            getattr(ax, f"{which}axis").set_minor_locator(NullLocator())
        return figure


def _drawable(frame: pd.DataFrame, loss: str) -> pd.DataFrame:
    """The rows that logarithmic axes can show."""
    x, y = numbers(frame, "tokens"), numbers(frame, loss)
    return rows(frame, (x > 0) & (x <= COUNT) & (y > 0) & (y < 1e30))


def _chosen(frame: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """Some columns under other names, as far as the record has them."""
    return take(frame, {c: name for c, name in columns.items() if c in frame})


def _state(record: Place) -> str:
    """State and reason, as status.json has them."""
    try:
        status = find_object(record / "status.json")
        state, reason = status.word("state", "unknown"), status.word("reason", "")
    except BadRecord as error:
        state, reason = "unknown", str(error)
    return f"State: {bold(state)}{f', {reason}' if reason else '.'}"


def _lines(path: Place, columns: Mapping[str, str]) -> pd.DataFrame:
    """Records of a file, as far as they hold numbers, texts, true and false."""
    records, _ = read_records(path)
    kept = {name for record in records for name in record if name in columns}
    found = {name: [_cell(record.get(name)) for record in records] for name in kept}
    frame = pd.DataFrame({name: found[name] for name in columns if name in found})
    for name in ("tokens", "val_loss"):
        if name in frame:
            frame[name] = [as_number(value) for value in frame[name]]
    return frame


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    return value if isinstance(value, bool) or value is None else as_number(value)


def _pairs(path: Place) -> pd.DataFrame:
    """The fields of a file with an object, or why there are none."""
    try:
        flat = _flat(find_object(path).values)
    except BadRecord as error:
        flat = {path.name: str(error)}
    return pd.DataFrame({"field": list(flat), "value": [_text(v) for v in flat.values()]})


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else clean(str(value))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[clean(f"{prefix}{name}")] = value
    return flat

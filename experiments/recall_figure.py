"""Table and figure of a recall sweep: accuracy against the size of the state.

    python -m experiments.recall_figure runs/recall-toy [--write]
    python -m experiments.recall_figure experiments/results/recall/recall.csv

Prints the law of recall of every architecture too (`analysis.judge.recall_law`), where pairs were
asked for. Reads the run records and the `recall` lines of evals.jsonl; `--write` keeps the dated
table in experiments/results/recall, from which `make figures` draws the published figure.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from analysis.figures import style
from analysis.io.jsonlines import read_records
from analysis.io.looks import learn, look, ordered
from analysis.io.sweep_files import names_of_runs, open_sweep
from analysis.judge.recall_law import RecallLaw, recall_laws
from linscale.errors import LinscaleError
from models.accounting import kv_cache_bytes, state_bytes
from models.architecture import BUILT_IN, find
from scaling.config.run import RunConfig
from scaling.data.recall_tasks import SPECIAL, Recall, parse

RESULTS = Path(__file__).parent / "results" / "recall"
VERBS = {
    "mqar": "to recall",
    "noisy": "to recall",
    "compositional": "to compose",
    "copying": "to copy",
    "induction": "to induce",
}


def state_numbers(config: RunConfig) -> int:
    """Numbers that the model carries after a training sequence, over all layers."""
    held = kv_cache_bytes(config.model, config.data.sequence_length, itemsize=1)
    return state_bytes(config.model, itemsize=1) + held


def table(sweep: Path) -> list[dict[str, Any]]:
    """One row for every run and load, by architecture and state.

    Raises:
        LinscaleError: a run has not been evaluated.
    """
    rows: list[dict[str, Any]] = []
    files = open_sweep(sweep)
    for run in names_of_runs(files):
        path = files / run
        values = json.loads((path / "config.json").read_bytes())
        for key in ("schema", "run_id", "sweep"):
            del values[key]
        config = RunConfig.from_json(values)
        task = parse(config.data.corpus)
        found, _ = read_records(path / "evals.jsonl")
        found = [line for line in found if line["task"] == "recall" and "@" not in line["metric"]]
        if not found:
            raise LinscaleError(
                f"{path}: has no accuracy; run `linscale evaluate {sweep} --tasks recall`."
            )
        environment = json.loads((path / "environment.json").read_bytes())
        accounting = json.loads((path / "accounting.json").read_bytes())
        status = json.loads((path / "status.json").read_bytes())
        for line in found:
            load = int(line["metric"].removeprefix("accuracy").removeprefix(" of ") or task.load)
            rows.append(
                {
                    "date": status["updated"][:10],
                    "run": run,
                    "arch": config.model.group,
                    "seed": config.seed,
                    "head_dim": config.model.head_dim,
                    "state_numbers": state_numbers(config),
                    "width": config.model.dim,
                    "values": values_of(task),
                    "parameters": accounting["n_total"],
                    "task": config.data.corpus,
                    "load": load,
                    "accuracy": round(line["value"], 4),
                    "stderr": round(line["stderr"], 4),
                    "sequences": line["n"],
                    "tokens": line["tokens"],
                    "git_revision": environment["git_revision"],
                    "torch": environment["torch"],
                }
            )
    order = ordered(row["arch"] for row in rows)
    return sorted(
        rows,
        key=lambda r: (r["task"], order.index(r["arch"]), r["state_numbers"], r["seed"], r["load"]),
    )


def values_of(task: Recall) -> int:
    """Values that an answer is among: for pairs half of the symbols, the others being keys."""
    symbols = task.vocab - SPECIAL
    return symbols // 2 if task.task == "mqar" else symbols


def chance(corpus: str, load: int) -> float:
    """Accuracy of guessing: among the values that are there, or among all symbols."""
    task = parse(corpus)
    return 1 / load if task.task == "mqar" else 1 / values_of(task)


def figure(rows: list[dict[str, Any]]) -> Figure:
    """A panel for each task and load, a line for each seed; bars are two standard errors, the
    dotted line is chance."""
    cases = sorted({(row["task"], row["load"]) for row in rows})
    archs = ordered(row["arch"] for row in rows)
    learn_built_in(archs)
    seeds = sorted({row.get("seed", 0) for row in rows})
    with style.context():
        drawn, panels = style.panels(
            1, len(cases), width=style.DOUBLE, height=2.7, sharex=True, sharey=True
        )
        states = [row["state_numbers"] for row in rows]
        ticks = [4**i for i in range(16) if min(states) / 2 <= 4**i <= max(states)]
        for axes, (task, load) in zip(panels.flat, cases, strict=True):
            for arch, seed in product(archs, seeds):
                wanted = (task, load, arch, seed)
                mine = [
                    row
                    for row in rows
                    if (row["task"], row["load"], row["arch"], row.get("seed", 0)) == wanted
                ]
                if not mine:
                    continue
                kind = look(arch, archs)
                axes.errorbar(
                    [row["state_numbers"] for row in mine],
                    [row["accuracy"] for row in mine],
                    [2 * row["stderr"] for row in mine],
                    color=kind.color,
                    marker=kind.marker,
                    markersize=7 if arch == "llama" else 4.5,  # seen below another one
                    label=kind.label if seed == seeds[0] else None,
                )
            axes.axhline(chance(task, load), color="0.5", linestyle=":", linewidth=0.8)
            axes.set(xscale="log", ylim=(0, 1.03), xlabel="state (numbers)")
            axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_title(f"{load} {VERBS[parse(task).task]}")
        panels.flat[0].set_ylabel("accuracy")
        handles, labels = panels.flat[0].get_legend_handles_labels()
        columns = min(len(labels), 5)
        drawn.legend(handles, labels, loc="outside upper center", ncols=columns)
        return style.finish(drawn)


def learn_built_in(groups: Iterable[str]) -> None:
    """Draw built-in architectures in their own looks, and patterns with their labels, in figures
    from tables without records."""
    for name in BUILT_IN:
        kind = find(name)
        learn(name, {"label": kind.label, "colour": kind.colour, "marker": kind.marker})
    for group in groups:
        words = re.split(r"(\w+)", group)
        if group not in BUILT_IN and any(word in BUILT_IN for word in words):
            labels = [find(word).label if word in BUILT_IN else word for word in words]
            learn(group, {"label": "".join(labels)})


def describe(law: RecallLaw) -> str:
    """A law in words."""
    interval = "" if law.lo is None else f", {law.level:.0%} interval {law.lo:.2g} to {law.hi:.2g}"
    if not law.determined:
        return f"{law.arch}: these accuracies do not determine the law of recall"
    return (
        f"{law.arch}: a pair takes a = {law.a:.2g}{interval} ({law.runs} runs). Deviance a case "
        f"{law.deviance:.1f}; of one accuracy {law.null:.1f}, of guessing {law.guessing:.1f}; "
        f"accuracies are off by {law.error:.2f}."
    )


def main() -> None:
    """Print the table; `--write` keeps it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sweep", type=Path, help="sweep, or a table that was kept")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept = arguments.sweep.suffix == ".csv"
    rows = pd.read_csv(arguments.sweep).to_dict("records") if kept else table(arguments.sweep)
    for row in rows:
        print(
            f"{row['task']}  {row['arch']:11} state {row['state_numbers']:7,}  seed {row['seed']}  "
            f"load {row['load']:3}  accuracy {row['accuracy']:.3f} +- {row['stderr']:.3f}"
        )
    pairs = pd.DataFrame([row for row in rows if parse(row["task"]).task == "mqar"])
    for law in recall_laws(pairs).values() if len(pairs) else ():
        print(describe(law))
    if arguments.write:
        RESULTS.mkdir(parents=True, exist_ok=True)
        name = open_sweep(arguments.sweep.resolve()).name.removesuffix("-toy")
        with (RESULTS / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()

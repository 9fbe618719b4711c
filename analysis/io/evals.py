"""evals.jsonl of a sweep, joined to what each checkpoint cost.

    <sweep>/<run_id>/evals.jsonl  ->  a row each number, with arch, size, n_params, tokens, flops

Averages over tasks:

- Commonsense reasoning, arXiv 2406.16690, section 3.4: the plain mean over seven tasks of accuracy,
  or of accuracy normalised by length; only where all seven are there.
- SCROLLS as that paper prints it: the plain mean of all numbers of the seven data sets that are
  there, each ROUGE counting as one (its appendix prints 13; means of its rows agree).
- SCROLLS as the benchmark defines it (arXiv 2201.03533, section 4): the mean over the seven data
  sets of one score each, which for summaries is the geometric mean of ROUGE-1, -2 and -L; only
  where all seven are there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.io.jsonlines import read_records
from analysis.io.records import path_flops
from analysis.io.sweep import Sweep
from analysis.io.sweep_files import open_sweep
from linscale.json_reader import BadRecord, Fields
from linscale.texts import clean

CSR: dict[str, str] = {
    "boolq": "acc",
    "piqa": "acc",
    "hellaswag": "acc_norm",
    "winogrande": "acc",
    "arc_easy": "acc",
    "arc_challenge": "acc_norm",
    "openbookqa": "acc_norm",
}
"""Task -> metric of the average of commonsense reasoning."""
_ROUGE = ("rouge1", "rouge2", "rougeL")
SCROLLS: dict[str, tuple[str, ...]] = {
    "scrolls_govreport": _ROUGE,
    "scrolls_summscreenfd": _ROUGE,
    "scrolls_qmsum": _ROUGE,
    "scrolls_qasper": ("f1",),
    "scrolls_narrativeqa": ("f1",),
    "scrolls_quality": ("em",),
    "scrolls_contractnli": ("em",),
}
"""Task -> metrics of SCROLLS, in percent, in the order of the paper's table 8."""
_FIELDS = ("task", "metric", "value", "stderr", "n", "tokens", "checkpoint", "settings", "grid")


def load_evals(directory: str | Path, sweep: Sweep) -> pd.DataFrame:
    """Every number of the runs of a sweep.

    Args:
        directory: the sweep that was read.
        sweep: from `analysis.io.records.load_sweep` of it; its conventions hold for n_params,
        flops.

    Returns:
        run_id, arch, size, seed, n_params, flops and the fields of evals.jsonl; `settings` as text,
        `grid` None for most. Of a task evaluated twice alike the last number counts. Lines that
        hold something else are left out and told in the sweep's notes.
    """
    rows: list[dict[str, Any]] = []
    files = open_sweep(directory)
    for run in sweep.runs.to_dict("records"):
        records, torn = read_records(files / str(run["run_id"]) / "evals.jsonl")
        bad = [f"{torn} unreadable line(s)"] if torn else []
        for record in records:
            row = {name: run[name] for name in ("run_id", "arch", "size", "seed", "n_params")}
            try:
                row |= _read(Fields(record, "evals.jsonl"))
            except BadRecord as error:
                bad.append(str(error))
                continue
            row["flops"] = float(path_flops(row["tokens"], run, run["counting"]))
            rows.append(row)
        notes = [f"{run['run_id']}: {why}; left out" for why in dict.fromkeys(bad)]
        sweep.notes.extend(note for note in notes if note not in sweep.notes)
    columns = ["run_id", "arch", "size", "seed", "n_params", "flops", *_FIELDS]
    frame = pd.DataFrame(rows, columns=columns)
    alike = ["run_id", "checkpoint", "task", "metric", "settings"]
    return frame.drop_duplicates(alike, keep="last", ignore_index=True)


def _read(record: Fields) -> dict[str, Any]:
    """The fields of a line.

    Raises:
        BadRecord: one is missing, or is not what it should be.
    """
    return {
        "task": record.word("task"),
        "metric": record.word("metric"),
        "value": record.number("value"),
        "stderr": record.number("stderr", math.nan) if record.has("stderr") else None,
        "n": record.whole("n", 0) if record.has("n") else None,
        "tokens": record.whole("tokens", 0, default=0),
        "checkpoint": record.word("checkpoint", "") or None,
        "settings": clean(str(record.values.get("settings")), 10_000),
        "grid": _grid(record.part("grid")) if record.has("grid") else None,
    }


def _grid(record: Fields) -> dict[str, Any]:
    """Lengths, depths, and a score for each depth and length."""
    found = {name: record.values.get(name) for name in ("lengths", "depths", "scores")}
    try:
        shape = np.array(found["scores"], dtype=np.float64).shape
        lengths, depths = (np.array(found[k], dtype=np.float64) for k in ("lengths", "depths"))
    except (TypeError, ValueError, OverflowError):
        raise BadRecord(f"{record.where} holds something else than numbers") from None
    sides = (*lengths.shape, *depths.shape)
    if lengths.ndim != 1 or depths.ndim != 1 or sorted(shape) != sorted(sides):
        raise BadRecord(f"{record.where}: its scores do not go with its lengths and depths")
    if not all(np.isfinite(x).all() for x in (lengths, depths)) or not len(lengths) * len(depths):
        raise BadRecord(f"{record.where}: a length or depth is no number")
    return found


def csr_average(evals: pd.DataFrame, tasks: Mapping[str, str] = CSR) -> pd.DataFrame:
    """Plain mean over tasks, for the checkpoints that have them all.

    Args:
        evals: from `load_evals`.
        tasks: task -> metric; fewer than the seven are another average, so say which.

    Returns:
        run_id, arch, size, n_params, checkpoint, tokens, flops, csr and stderr (of the mean, with
        the tasks' own as independent; NaN where one has none).
    """
    wanted = evals["task"].map(lambda task: tasks.get(task)) == evals["metric"]
    where = ["run_id", "arch", "size", "n_params", "checkpoint", "tokens", "flops"]
    found: Any = evals[wanted]
    last: Any = found.drop_duplicates([*where, "task"], keep="last")
    errors: Any = pd.to_numeric(last["stderr"], errors="coerce")
    means = (
        last.assign(variance=errors**2)
        .groupby(where)
        .agg(
            csr=("value", "mean"),
            stderr=("variance", lambda v: math.sqrt(v.sum(skipna=False)) / len(v)),
            tasks=("value", "count"),
        )
        .reset_index()
    )
    return means[means["tasks"] == len(tasks)].drop(columns="tasks").reset_index(drop=True)


def latest(evals: pd.DataFrame) -> pd.DataFrame:
    """One number a metric and checkpoint: of a task evaluated with several settings, the last."""
    alike = ["run_id", "checkpoint", "task", "metric"]
    return evals.drop_duplicates(alike, keep="last", ignore_index=True)


def scrolls_paper(values: Mapping[tuple[str, str], float]) -> float:
    """The paper's average of (task, metric) -> percent, over what is there; NaN for nothing."""
    there = [values[t, m] for t, metrics in SCROLLS.items() for m in metrics if (t, m) in values]
    return sum(there) / len(there) if there else math.nan


def scrolls_official(values: Mapping[tuple[str, str], float]) -> float:
    """The benchmark's score of (task, metric) -> percent; NaN where a number is missing."""
    scores = [
        math.prod(values.get((task, metric), math.nan) for metric in metrics) ** (1 / len(metrics))
        for task, metrics in SCROLLS.items()
    ]
    return sum(scores) / len(scores)

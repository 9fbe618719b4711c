"""evals.jsonl of a sweep, joined to what each checkpoint cost.

    <sweep>/<run_id>/evals.jsonl  ->  a row each number, with arch, size, n_params, tokens, flops

The average of commonsense reasoning is that of arXiv 2406.16690, section 3.4: the plain mean over
seven tasks of accuracy, or of accuracy normalised by length; it is there only where all seven are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from analysis.jsonlines import read_records
from analysis.records import Sweep

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
_FIELDS = ("task", "metric", "value", "stderr", "n", "tokens", "checkpoint", "settings")


def load_evals(directory: str | Path, sweep: Sweep) -> pd.DataFrame:
    """Every number of the runs of a sweep.

    Args:
        directory: the sweep that was read.
        sweep: from `analysis.records.load_sweep` of it; its conventions hold for n_params, flops.

    Returns:
        run_id, arch, size, seed, n_params, flops and the fields of evals.jsonl; `settings` as text.
        Of a task evaluated twice alike the last number counts.
    """
    rows: list[dict[str, Any]] = []
    for run in sweep.runs.to_dict("records"):
        records, _ = read_records(Path(directory) / str(run["run_id"]) / "evals.jsonl")
        for record in records:
            row = {name: run[name] for name in ("run_id", "arch", "size", "seed", "n_params")}
            row |= {name: record.get(name) for name in _FIELDS}
            row["settings"] = str(record.get("settings"))
            row["flops"] = float(record["tokens"] or 0) * run["flops_per_token"]
            rows.append(row)
    columns = ["run_id", "arch", "size", "seed", "n_params", "flops", *_FIELDS]
    frame = pd.DataFrame(rows, columns=columns)
    alike = ["run_id", "checkpoint", "task", "metric", "settings"]
    return frame.drop_duplicates(alike, keep="last", ignore_index=True)


def csr_average(evals: pd.DataFrame) -> pd.DataFrame:
    """One row a checkpoint that has all seven tasks: run_id, arch, size, tokens, flops, csr."""
    wanted = evals["task"].map(lambda task: CSR.get(task)) == evals["metric"]
    where = ["run_id", "arch", "size", "checkpoint", "tokens", "flops"]
    found: Any = evals[wanted]
    tasks = found.drop_duplicates([*where, "task"], keep="last")
    means = tasks.groupby(where, as_index=False).agg(
        csr=("value", "mean"), tasks=("value", "count")
    )
    return means[means["tasks"] == len(CSR)].drop(columns="tasks").reset_index(drop=True)

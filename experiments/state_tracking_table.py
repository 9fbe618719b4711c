"""Table of a state-tracking sweep: accuracy by mixer, task and length of the sequences.

    python -m experiments.state_tracking_table runs/state_tracking-toy [-o FILE.csv]
    python -m experiments.state_tracking_table experiments/results/recall/state_tracking.csv

Reads the run records and the `recall` lines of evals.jsonl, or the table that `-o` writes. Cells
are percentages, the range over seeds; the last line is what guessing gives.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd

from analysis.io.jsonlines import read_records
from analysis.io.sweep_files import names_of_runs, open_sweep
from experiments.state_tracking import MIXERS, TASKS
from linscale.errors import LinscaleError

COLUMNS = ("task", "mixer", "seed", "length", "accuracy")


def table(sweep: Path) -> pd.DataFrame:
    """One row for every run and length.

    Raises:
        LinscaleError: a run has not been evaluated.
    """
    rows: list[tuple[object, ...]] = []
    files = open_sweep(sweep)
    for run in names_of_runs(files):
        config = json.loads((files / run / "config.json").read_bytes())
        task, _, rest = str(config["name"]).partition("-")
        mixer = rest.rpartition("-s")[0]
        found, _ = read_records(files / run / "evals.jsonl")
        found = [line for line in found if line["task"] == "recall"]
        trained = int(config["data"]["sequence_length"])
        values = {
            int(str(line["metric"]).partition("@")[2] or trained): float(line["value"])
            for line in found
            if str(line["metric"]).partition("@")[0] == "accuracy"
        }
        if not values:
            raise LinscaleError(
                f"{run}: has no accuracy; run `linscale evaluate {sweep} --tasks recall "
                "--lengths 32,64,128`."
            )
        rows += [(task, mixer, config["seed"], n, x) for n, x in sorted(values.items())]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def markdown(frame: pd.DataFrame) -> str:
    """The table of a page."""
    lengths = sorted(set(frame["length"]))
    heads = [f"{task}, {n}" for task in TASKS for n in lengths]
    lines = ["| mixer | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for mixer in MIXERS:
        cells: list[str] = []
        for task in TASKS:
            for length in lengths:
                own = frame[
                    (frame["mixer"] == mixer)
                    & (frame["task"] == task)
                    & (frame["length"] == length)
                ]
                values = 100 * own["accuracy"]
                if not len(values):
                    cells.append("not run")
                    continue
                low, high = f"{values.min():.0f}", f"{values.max():.0f}"
                cells.append(low if low == high else f"{low}-{high}")
        lines.append(f"| {mixer} | " + " | ".join(cells) + " |")
    guess = [f"{100 / TASKS[task]:.3g}" for task in TASKS for _ in lengths]
    return "\n".join([*lines, "| guessing | " + " | ".join(guess) + " |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="sweep, or the table kept of one")
    parser.add_argument("-o", "--out", type=Path, help="keep the table here")
    args = parser.parse_args()
    source: Path = args.source
    frame = pd.read_csv(source) if source.suffix == ".csv" else table(source)
    if args.out is not None:
        frame.to_csv(args.out, index=False)
    print(markdown(frame))


if __name__ == "__main__":
    main()

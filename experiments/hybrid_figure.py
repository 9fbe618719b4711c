"""Figure and tables of the hybrids: loss and recall against the share of softmax layers.

    python -m experiments.hybrid_figure runs/hybrid_ratio-toy runs/hybrid_recall-toy [-o FILE]

The sweeps may be directories or kept zip files. Prints the best share at each budget with its
interval, what each share is worth in compute, and the accuracies.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from analysis.figures import shares, style
from analysis.io.frames import numbers, take, where, words
from analysis.io.jsonlines import read_records
from analysis.io.records import load_sweep
from analysis.io.sweep import Sweep
from analysis.io.sweep_files import names_of_runs, open_sweep
from analysis.judge.shares import Shares, shares_of
from analysis.units import LEVEL
from linscale.errors import LinscaleError
from linscale.layer_groups import group, softmax_share
from scaling.data.recall_tasks import parse

DRAWS = 300


def recall_table(sweep: Path) -> pd.DataFrame:
    """Accuracy of every run: family, ratio, task, accuracy, stderr.

    Raises:
        LinscaleError: a run has not been evaluated.
    """
    rows: list[dict[str, object]] = []
    files = open_sweep(sweep)
    for run in names_of_runs(files):
        config = json.loads((files / run / "config.json").read_bytes())
        model, corpus = config["model"], config["data"]["corpus"]
        lines, _ = read_records(files / run / "evals.jsonl")
        found = [x for x in lines if x["task"] == "recall" and x["metric"] == "accuracy"]
        if not found:
            raise LinscaleError(
                f"{sweep}: {run} has no accuracy; run `linscale evaluate {sweep} --tasks recall`."
            )
        kind = group(model["arch"], model.get("mixers"))
        if (read := softmax_share(kind)) is None:
            raise LinscaleError(f"{sweep}: {run} is of {kind}, which is no pattern of mixers.")
        family, ratio = read
        rows.append({"family": family, "ratio": ratio, "task": parse(corpus).task,
                     "accuracy": found[-1]["value"], "stderr": found[-1]["stderr"]})  # fmt: skip
    return pd.DataFrame(rows).sort_values(["family", "task", "ratio"], ignore_index=True)


def report(found: Shares) -> str:
    """The laws in words and numbers."""
    lines: list[str] = []
    for family, law in found.laws.items():
        lines += [f"{family}: L(C, r), r the share of softmax layers", _text(law.table(LEVEL))]
        for _, row in where(found.best(LEVEL), family=family).iterrows():
            lines.append(
                f"at {row['budget']:.3g} FLOPs: best share {row['ratio']:.2f} "
                f"[{row['lo']:.2f}, {row['hi']:.2f}]; not to be told apart: {row['tied']}"
            )
        ratios = np.unique(numbers(where(found.table, family=family), "ratio"))
        columns = {name: name for name in ("ratio", "compute", "compute_lo", "compute_hi")}
        lines += ["compute for the loss of share 0, over what that takes:",
                  _text(take(law.band(law.c0, ratios, LEVEL), columns))]  # fmt: skip
    lines += [f"{family}: no law: {why}" for family, why in found.failures.items()]
    return "\n".join(lines)


def _text(frame: pd.DataFrame) -> str:
    return frame.to_string(index=False, float_format=lambda value: f"{value:.4g}")


def read(ratio: Path, recall: Path | None) -> tuple[Sweep, Shares, pd.DataFrame | None]:
    """The sweep of losses, its laws, and the table of recall where there is a sweep of it."""
    sweep = load_sweep(ratio)
    found = shares_of(sweep.require_points(), bootstrap=DRAWS)
    return sweep, found, None if recall is None else recall_table(recall)


def draw(sweep: Sweep, found: Shares, recall: pd.DataFrame | None) -> tuple[Figure, str, list[str]]:
    """Figure, caption and run ids."""
    figure = shares(found.lowest(), found.bands(LEVEL), found.best(LEVEL), recall)
    caption = (
        "Left: lowest loss of each share of softmax layers at equal compute (points), and the law "
        f"at its own best size (lines, with {LEVEL:.0%} intervals), which may be smaller than all "
        "that were trained; orange: the best share. Right: accuracy of recall, bars of one "
        f"standard error. {sweep.conventions}."
    )
    return figure, caption, sorted(set(words(sweep.points, "run_id")))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("ratio", type=Path, help="sweep of experiments/hybrid_ratio.py")
    parser.add_argument("recall", type=Path, nargs="?", help="of experiments/hybrid_recall.py")
    parser.add_argument("-o", "--out", type=Path, help="write the figure as PNG")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sweep, found, recall = read(arguments.ratio, arguments.recall)
    print(report(found))
    if recall is not None:
        print(_text(recall))
    if arguments.out is not None:
        figure, caption, runs = draw(sweep, found, recall)
        style.save(
            figure, arguments.out.with_suffix(""), title="Hybrids: loss and recall",
            caption=caption, runs=runs, formats=("png",),
        )  # fmt: skip


if __name__ == "__main__":
    main()

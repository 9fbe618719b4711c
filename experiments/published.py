"""Every figure of the README, the documentation and the gallery, from the records kept here.

Question: which runs is a published picture made of?
Command: make figures    (python -m experiments.published)
Expected: docs/images/*.png, byte for byte as committed where matplotlib and the records are the
same; each carries its caption and the ids of its runs in its metadata. Beside them, not committed,
a .pdf for print and a .txt with caption and runs. The gallery (experiments/gallery.py) is drawn
again too; its pictures of public data where these are at hand (`LINSCALE_DATA`, or
../shared/data).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures import style
from analysis.figures.clocks import clocks
from analysis.io.frames import words
from analysis.io.records import load_sweep
from analysis.io.sweep_files import open_sweep
from analysis.judge.study import study
from analysis.report.forecast_section import Sealed
from analysis.report.report_figures import basis, draw
from experiments import gallery, hybrid_figure, lr_transfer, recall_figure
from experiments.benchmarks import decoding
from experiments.gemma import report as gemma

RECORDS = Path(__file__).parent / "results"
IMAGES = Path(__file__).parent.parent / "docs" / "images"
_REPORT = ("frontier", "multipliers", "learning_curves", "optimum", "residuals")
PUBLISHED: dict[str, tuple[str, ...]] = {
    "medium_ladder": (*_REPORT, "forecasts"),
    "small_ladder": _REPORT,
}
"""Sweeps under experiments/results, and the figures of their reports that are published."""
SEALS = {"medium_ladder": (RECORDS.parent / "forecasts" / "medium_ladder_64x.json",)}
"""Sealed forecasts of a sweep, to be shown with what came of them."""
BOOTSTRAP = 2000


def _clocks(rows: list[dict[str, Any]]) -> Figure:
    """Of a table that `linscale clocks` wrote."""
    frame = pd.DataFrame(rows)
    recall_figure.learn_built_in(words(frame, "arch"))
    return clocks(frame, baseline="llama")


@dataclass(frozen=True)
class Kept:
    """A figure drawn from a table under experiments/results."""

    table: str
    """Pattern of the table; the last in order of names is drawn."""
    figure: Callable[[list[dict[str, Any]]], Figure]
    """From the rows of the table."""
    caption: str
    """Ends before n and date."""
    counted: str = "runs"
    """What a row of the table is."""


TABLES = {
    "lr_transfer": Kept(
        "lr_transfer/losses_*.csv",
        lr_transfer.figure,
        "Validation loss against the peak learning rate at three widths, with muP and without; "
        "dashed: bottom of the parabola through the best rate and its neighbours. Two layers, "
        "150 steps of 1024 bytes, one seed.",
    ),
    "recall": Kept(
        "recall/recall.csv",
        recall_figure.figure,
        "Multi-query associative recall: accuracy on held-out sequences against the numbers that "
        "a model carries from token to token, by pairs to recall. Bars: two standard errors over "
        "1024 sequences; a line for each seed; dotted: guessing among the values that are there.",
        "accuracies",
    ),
    "recall_tasks": Kept(
        "recall/recall_tasks.csv",
        recall_figure.figure,
        "Selective copying and induction heads: accuracy on held-out sequences against the numbers "
        "that a model carries from token to token, by items to remember. Bars: two standard errors "
        "over 1024 sequences; a line for each seed; dotted: guessing.",
        "accuracies",
    ),
    "mixers_recall": Kept(
        "recall/mixers_recall.csv",
        recall_figure.figure,
        "Multi-query associative recall of eight mixers and two hybrids: accuracy on held-out "
        "sequences against the numbers that a model carries from token to token, by pairs to "
        "recall. Bars: two standard errors over 1024 sequences; dotted: guessing among the values "
        "that are there.",
        "accuracies",
    ),
    "mixers_clocks": Kept(
        "mixers_clocks_*.csv",
        _clocks,
        "How many times less than LLaMA each of eight mixers and two hybrids needs to reach "
        "the lowest loss that all have, with 90 % intervals over refits: in training FLOPs, "
        "tokens, seconds of training and bytes read to generate a token. Hollow: a model beyond "
        "those trained.",
        "ratios",
    ),
    "medium_ladder_clocks": Kept(
        "medium_ladder_clocks_*.csv",
        _clocks,
        "How many times less than LLaMA each architecture of the medium ladder needs to reach a "
        "loss of 1.4, with 90 % intervals over refits: in training FLOPs, tokens, seconds of "
        "training and bytes read to generate a token.",
        "ratios",
    ),
    "decoding": Kept(
        "decoding.csv",
        decoding.figure,
        "Decoding after a prompt: CPU time of a token, median over rounds with quartiles (bands), "
        "and size of the state against the length of the context. Random models of width "
        f"{decoding.DIM} with {decoding.LAYERS} layers, one thread, batch of one.",
        "medians",
    ),
}
"""Name of the published figure -> how it is drawn."""


def publish(sweep: str, names: Sequence[str], out: Path, bootstrap: int = BOOTSTRAP) -> list[Path]:
    """Draw some figures of one kept sweep; returns the files written."""
    found = load_sweep(RECORDS / f"{sweep}.zip")
    result = study(found, bootstrap=bootstrap)
    runs = sorted(set(words(result.points, "run_id")))
    drawn = {figure.name: figure for figure in draw(result)}
    if sweep in SEALS:
        drawn["forecasts"] = Sealed(SEALS[sweep], found).drawn
    written: list[Path] = []
    for name in names:
        caption = f"{drawn[name].caption} {basis(result)}"
        written += _save(drawn[name].figure, out / f"{sweep}_{name}", caption, runs)
    return written


def publish_table(name: str, out: Path) -> list[Path]:
    """Draw the figure of one kept table; returns the files written."""
    kept = TABLES[name]
    path = sorted(RECORDS.glob(kept.table))[-1]
    table = pd.read_csv(path)
    date = table["date"].max() if "date" in table else path.stem[-10:]
    runs = sorted(set(words(table, "run"))) if "run" in table else []
    of = f" of {len(runs)} runs" if runs and kept.counted != "runs" else ""
    count = f"{len(table)} {kept.counted}{of}"
    rows = [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
    return _save(kept.figure(rows), out / name, f"{kept.caption} n = {count}, {date}.", runs)


def publish_gemma(out: Path) -> list[Path]:
    """Draw what a linear part adds to a real model; returns the files written."""
    lines = gemma.read(gemma.KEPT)
    settings = json.loads((open_sweep(gemma.KEPT) / "experiment.json").read_bytes())
    figure = gemma.figure(lines, settings["length"])
    return _save(figure, out / "gemma", f"Gemma 3 270M, linearized: {gemma.CAPTION}", list(lines))


def publish_hybrids(out: Path) -> list[Path]:
    """Draw loss and recall against the share of softmax layers; returns the files written."""
    read = hybrid_figure.read(RECORDS / "hybrid_ratio-toy.zip", RECORDS / "hybrid_recall-toy.zip")
    figure, caption, runs = hybrid_figure.draw(*read)
    return _save(figure, out / "hybrid_ratio", caption, runs)


OTHERS = {"gemma": publish_gemma, "hybrid_ratio": publish_hybrids}
"""Name of a figure with records of its own kind -> what draws it in a folder."""


def _save(figure: Figure, stem: Path, caption: str, runs: Sequence[str]) -> list[Path]:
    """PNG, PDF and a text with the caption and the runs."""
    written = style.save(figure, stem, title=stem.name, caption=caption, runs=runs)
    text = stem.with_suffix(".txt")
    of = f"\n\nRuns: {' '.join(runs)}" if runs else ""
    text.write_text(f"{caption}{of}\n", encoding="utf-8")
    return [*written, text]


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.published", description=__doc__)
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder (docs/images)")
    options = parser.parse_args(argv)
    for name in TABLES:
        print(*publish_table(name, options.out), sep="\n", flush=True)
    for draw_it in OTHERS.values():
        print(*draw_it(options.out), sep="\n", flush=True)
    for sweep, names in PUBLISHED.items():
        print(*publish(sweep, names, options.out), sep="\n", flush=True)
    data = Path(os.environ.get("LINSCALE_DATA", RECORDS.parents[2] / "shared" / "data"))
    print(gallery.write(RECORDS / "quickstart.zip", data, RECORDS / "gallery"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

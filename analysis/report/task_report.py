"""What the evaluations of a sweep say: figures and tables, for the report and on their own.

evaluations(directory, sweep) -> Evaluations
    tables    the paper's 4, 5, 6, 8 and 11, those that something was evaluated for
    figures   tasks against compute, accuracy against loss, heat maps of needles
    failures  what could not be fitted, and why
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.errors import AnalysisError
from analysis.figures import downstream, hover, style
from analysis.figures.evaluations import needles, tasks_compute
from analysis.io.evals import CSR, latest, load_evals
from analysis.io.frames import rows, where, words
from analysis.io.looks import look, ordered
from analysis.io.staging import staged
from analysis.io.sweep import Sweep
from analysis.judge.task_law import CHANCE, tasks_of
from analysis.report.page import Page
from analysis.report.paper_tables import FORMATS, PaperTable, paper_tables

HEADLINES = {
    "wikitext": "word_perplexity",
    "needle": "weighted_accuracy",
    "needle_standard": "weighted_accuracy",
    "sliding": "bits_per_byte",
    "document": "bits_per_byte",
    "recall": "accuracy",
    "scrolls_govreport": "rougeL",
    "scrolls_summscreenfd": "rougeL",
    "scrolls_qmsum": "rougeL",
    "scrolls_qasper": "f1",
    "scrolls_narrativeqa": "f1",
    "scrolls_quality": "em",
    "scrolls_contractnli": "em",
}
"""Task -> the metric that is drawn; `acc`, or the one of the average of commonsense reasoning, for
others. The validation loss (`perplexity`) has the report's own figures."""
_MOST_PANELS = 24
"""Heat maps in one figure: the largest models."""
_DRAWS, _LEVEL = 200, 0.9


@dataclass
class Evaluations:
    """Tables and figures of a sweep's evaluations."""

    evals: pd.DataFrame
    tables: list[PaperTable] = field(default_factory=list[PaperTable])
    figures: dict[str, tuple[Figure, str]] = field(default_factory=dict[str, tuple[Figure, str]])
    """Name -> figure and caption."""
    failures: list[str] = field(default_factory=list[str])

    def save(self, out: Path, formats: Sequence[str] = style.FORMATS[:2]) -> list[Path]:
        """Every table in every format of tables, and every figure in `formats` (`style.FORMATS`);
        returns what was written.

        Raises:
            AnalysisError: the directory cannot be written, or an unknown format.
        """
        written: list[Path] = []
        try:
            with staged(out) as folder:
                for table in self.tables:
                    for suffix, write in FORMATS.values():
                        name = f"table{table.number}.{suffix}"
                        (folder / name).write_text(write(table), encoding="utf-8")
                        written.append(out / name)
                for name, (figure, caption) in self.figures.items():
                    runs = sorted(set(words(self.evals, "run_id")))
                    paths = style.save(figure, folder / name, title=name, caption=caption,
                                       runs=runs, formats=formats)  # fmt: skip
                    written += [out / path.name for path in paths]
        except OSError as error:
            raise AnalysisError(f"cannot write to {out}: {error.strerror}") from error
        return written


def evaluations(directory: str | Path, sweep: Sweep, *, loss: bool = True) -> Evaluations:
    """Everything that can be made of the evaluations of a sweep; nothing where there are none.

    Args:
        directory: the sweep that was read.
        sweep: from `analysis.io.records.load_sweep` of it.
        loss: also accuracy against loss, which a report has from its study already.
    """
    evals = load_evals(directory, sweep)
    out = Evaluations(evals)
    if not len(evals):
        return out
    out.tables = paper_tables(evals, sweep.runs)
    _compute(out)
    if loss:
        _loss(out, sweep)
    for task, mode in (("needle", "easy"), ("needle_standard", "standard")):
        grids = _grids(where(evals, task=task))
        if grids:
            out.figures[f"{task}_grid"] = (
                needles(grids),
                f"Needle in a haystack, {mode} mode, at the last evaluated checkpoint of each run.",
            )
    return out


def add_to(page: Page, found: Evaluations, folder: str, formats: Sequence[str]) -> None:
    """A section of a report, where something was evaluated.

    Args:
        page: of the report.
        found: what was saved to `folder`.
        folder: relative to the page, of the files.
        formats: of the figures among them.
    """
    if not len(found.evals):
        return
    page.section("Evaluations")
    for name, (figure, caption) in found.figures.items():
        files = [f"{folder}/{name}.{kind}" for kind in formats]
        page.figure(hover.svg(figure, name), caption, wide=True, files=files)
    for table in found.tables:
        page.table(
            table.frame,
            caption=" ".join(table.notes),
            folded=f"Table {table.number} of arXiv 2406.16690 from these runs: {table.title}",
        )


def _compute(out: Evaluations) -> None:
    """Tasks against training compute."""
    numbers_ = latest(out.evals)
    metric = numbers_["task"].map(lambda task: HEADLINES.get(task, CSR.get(task, "acc")))
    own = cast(pd.DataFrame, numbers_[numbers_["metric"] == metric]).assign(
        stderr=lambda frame: pd.to_numeric(frame["stderr"], errors="coerce")
    )
    if len(own):
        own = own.sort_values("task", key=lambda t: t.map(_place), kind="stable")
        out.figures["tasks"] = (
            tasks_compute(own, chance=CHANCE),
            "Every evaluated checkpoint against its training compute; a line joins the checkpoints "
            "of a run. Bars: one standard error over questions. Dotted: chance.",
        )


def _loss(out: Evaluations, sweep: Sweep) -> None:
    """Accuracy against loss, with a sigmoid for each task that some model can do."""
    tasks = tasks_of(out.evals, sweep.points, bootstrap=_DRAWS)
    out.failures = [
        f"{task}: no fit of accuracy to loss: {why}" for task, why in tasks.failures.items()
    ]
    if tasks.fits:
        fitted = np.isin(words(tasks.measured, "task"), list(tasks.fits))
        out.figures["accuracy_loss"] = (
            downstream(rows(tasks.measured, fitted), tasks.loss_bands(level=_LEVEL), chance=CHANCE),
            f"Accuracy against validation loss with a fitted sigmoid from chance; bands: "
            f"{_LEVEL:.0%} intervals, {_DRAWS} bootstrap refits over runs.",
        )


def _grids(needle: pd.DataFrame) -> list[tuple[str, str, dict[str, Any]]]:
    """Title, architecture and cells of each run's last grid, small models first."""
    own = cast(pd.DataFrame, latest(needle).dropna(subset=["grid"]))
    own = own.sort_values(["n_params", "tokens"], kind="stable")
    last = own.drop_duplicates("run_id", keep="last")
    sizes, archs = list(dict.fromkeys(words(last, "size"))), ordered(words(last, "arch"))
    found = sorted(
        last.to_dict("records"),
        key=lambda row: (sizes.index(str(row["size"])), archs.index(str(row["arch"]))),
    )
    return [
        (f"{look(row['arch'], archs).label} {row['size']}", str(row["arch"]), row["grid"])
        for row in found[-_MOST_PANELS:]
    ]


def _place(task: str) -> tuple[int, str]:
    """Commonsense reasoning first, in the paper's order."""
    names = [*CSR, *HEADLINES]
    return (names.index(task) if task in names else len(names), task)

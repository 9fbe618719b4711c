"""Tables 4, 5, 6, 8 and 11 of arXiv 2406.16690 in the paper's layout, from our evaluations.

    evals.jsonl -> `rows`: a row each run, at its last evaluated checkpoint
                -> `paper_table(4, ...)` -> PaperTable -> text, Markdown, LaTeX or CSV

| table | rows                                              | columns                          |
|-------|---------------------------------------------------|----------------------------------|
| 4     | size, architecture                                | seven tasks, averages            |
| 5     | architecture, shape: runs of about one size       | averages                         |
| 6     | architecture, context of training                 | averages                         |
| 8     | size, architecture                                | SCROLLS, data set by data set    |
| 11    | size, architecture                                | needles: by length, averages     |

Accuracies are in percent. What has not been evaluated is a dash; averages are those of
`analysis.io.evals`, and an average whose parts are missing is a dash too. WIKI is the perplexity
of a word and λ that of LAMBADA's last word, as the harness gives them; the paper does not say
which.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.errors import AnalysisError
from analysis.io.evals import CSR, SCROLLS, latest, scrolls_official, scrolls_paper
from analysis.io.frames import by, where
from analysis.io.looks import look, ordered
from linscale.table import Column, Grid

NUMBERS = (4, 5, 6, 8, 11)
DASH = "–"
_SAME_SIZE = 1.15
"""Runs are of about one size where parameters differ by less than this factor."""
_TASKS = {
    "boolq": "BoolQ",
    "piqa": "PIQA",
    "hellaswag": "HS",
    "winogrande": "WG",
    "arc_easy": "ARC-e",
    "arc_challenge": "ARC-c",
    "openbookqa": "OBQA",
}
_DATA_SETS = {
    "scrolls_govreport": "GovReport",
    "scrolls_summscreenfd": "SummScreenFD",
    "scrolls_qmsum": "QMSum",
    "scrolls_qasper": "Qasper",
    "scrolls_narrativeqa": "NarrativeQA",
    "scrolls_quality": "QuALITY",
    "scrolls_contractnli": "ContractNLI",
}
_MODES = {"needle": "easy", "needle_standard": "standard"}
_MARKS = ("acc@2048", "acc@4096", "acc@8192", "acc@16384", "acc<=4096", "acc<=8192")
_OVERALL = {"accuracy": "avg", "weighted_accuracy": "w.a.", "niah_score": "NIAH"}

Values = Mapping[tuple[str, str], float]
"""(task, metric) -> value of one checkpoint."""


@dataclass(frozen=True)
class PaperTable:
    """One table: cells are text already."""

    number: int
    title: str
    frame: pd.DataFrame
    notes: list[str]
    """What a reader must know: missing tasks, subsets of questions."""

    def text(self) -> Grid:
        """For a terminal; the notes are printed below."""
        return Grid(
            (
                Column(str(name), list(map(str, self.frame.iloc[:, place])), words=place < 2)
                for place, name in enumerate(self.frame)
            ),
            title=f"Table {self.number}: {self.title}",
        )

    def to_json(self) -> dict[str, Any]:
        """Cells are text, as they are printed."""
        rows = [list(map(str, row)) for row in self.frame.itertuples(index=False)]
        return {"number": self.number, "title": self.title, "columns": list(map(str, self.frame)),
                "rows": rows, "notes": self.notes}  # fmt: skip

    def markdown(self) -> str:
        """A pipe table with its title and notes."""
        names = [str(name) for name in self.frame]
        rule = ["---" if place < 2 else "---:" for place in range(len(names))]
        rows = [[_pipe(str(cell)) for cell in row] for row in self.frame.itertuples(index=False)]
        lines = [f"| {' | '.join(cells)} |" for cells in (names, rule, *rows)]
        notes = [f"\n{note}" for note in self.notes]
        return "\n".join([f"Table {self.number}: {self.title}\n", *lines, *notes]) + "\n"

    def latex(self) -> str:
        """A `tabular` for booktabs, a rule between the groups of the first column."""
        columns = "ll" + "r" * (len(self.frame.columns) - 2)
        lines = [
            f"% Table {self.number}: {self.title}",
            *(f"% {note}" for note in self.notes),
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(_tex(str(name)) for name in self.frame) + r" \\",
            r"\midrule",
        ]
        before = None
        for row in self.frame.itertuples(index=False):
            if before not in (None, row[0]):
                lines.append(r"\midrule")
            before = row[0]
            lines.append(" & ".join(_tex(str(cell)) for cell in row) + r" \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def csv(self) -> str:
        """Comma-separated, missing cells empty."""
        return str(self.frame.replace(DASH, "").to_csv(index=False))


def paper_table(number: int, evals: pd.DataFrame, runs: pd.DataFrame) -> PaperTable:
    """One of the paper's tables.

    Args:
        number: one of `NUMBERS`.
        evals: from `analysis.io.evals.load_evals`.
        runs: `Sweep.runs` of the same sweep.

    Raises:
        AnalysisError: no such table, or nothing in it has been evaluated.
    """
    if number not in NUMBERS:
        raise AnalysisError(
            f"table {number} is not one of the paper's evaluation tables; choose "
            f"{', '.join(map(str, NUMBERS))}"
        )
    make = {4: _main, 5: _shapes, 6: _contexts, 8: _scrolls, 11: _needles}[number]
    own = rows(evals, runs)
    table = make(own)
    cells = table.frame.iloc[:, 2:].to_numpy().ravel()
    if all(cell == DASH for cell in cells):
        raise AnalysisError(
            f"table {number} would be empty: nothing of it has been evaluated; run `linscale "
            "evaluate SWEEP --suite paper`"
            if len(table.frame)
            else f"table {number} would be empty: no run of the sweep belongs to it ({table.title})"
        )
    own_tasks = {8: {*SCROLLS}, 11: {*_MODES}}.get(
        number, {*CSR, *SCROLLS, "wikitext", "lambada_openai"}
    )
    shortened = sorted(
        {
            f"{r['task']} (n = {r['n']})"
            for r in latest(evals).to_dict("records")
            if r["task"] in own_tasks and _limited(r)
        }
    )
    if shortened:
        table.notes.append(f"Evaluated on the first questions only: {', '.join(shortened)}.")
    return table


def paper_tables(evals: pd.DataFrame, runs: pd.DataFrame) -> list[PaperTable]:
    """Those of the paper's tables that something was evaluated for."""
    found: list[PaperTable] = []
    for number in NUMBERS:
        try:
            found.append(paper_table(number, evals, runs))
        except AnalysisError:
            continue
    return found


def rows(evals: pd.DataFrame, runs: pd.DataFrame) -> list[dict[str, Any]]:
    """Runs with what was evaluated at their last checkpoint that has been.

    Returns:
        A dictionary each run: its row of `runs`, and `values` (`Values`), in order of parameters
        and architecture.
    """
    found: list[dict[str, Any]] = []
    numbers = latest(evals)
    rank = {arch: place for place, arch in enumerate(ordered(runs["arch"]))}
    for run in by(runs, "n_params", "sequence_length", "run_id").to_dict("records"):
        own = where(numbers, run_id=run["run_id"])
        if not len(own):
            continue
        last = where(own, tokens=own["tokens"].max())
        values = {(r["task"], r["metric"]): float(r["value"]) for r in last.to_dict("records")}
        found.append({str(k): v for k, v in run.items()} | {"values": values})
    sizes = {run["size"]: place for place, run in reversed(list(enumerate(found)))}
    return sorted(found, key=lambda run: (sizes[run["size"]], rank[run["arch"]]))


def _main(own: list[dict[str, Any]]) -> PaperTable:
    cells = [_first(run) | _tasks(run["values"]) | _averages(run["values"]) for run in own]
    return _table(4, "commonsense reasoning, perplexity, retrieval, long texts", cells, own)


def _shapes(own: list[dict[str, Any]]) -> PaperTable:
    cells: list[dict[str, str]] = []
    for arch in ordered(run["arch"] for run in own):
        group: list[dict[str, Any]] = []
        groups = [group]
        for run in sorted((r for r in own if r["arch"] == arch), key=lambda r: r["n_params"]):
            if group and run["n_params"] > _SAME_SIZE * group[0]["n_params"]:
                group = []
                groups.append(group)
            group.append(run)
        for group in groups:
            if len({(run["dim"], run["layers"]) for run in group}) > 1:
                group.sort(key=lambda run: run["dim"])
                cells += [
                    {"arch": look(arch).label, "shape": f"{run['dim']}x{run['layers']}"}
                    | _averages(run["values"])
                    for run in group
                ]
    return _table(5, "aspect ratio: width x layers at about one size", cells, own)


def _contexts(own: list[dict[str, Any]]) -> PaperTable:
    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in own:
        alike.setdefault((run["arch"], run["dim"], run["layers"]), []).append(run)
    cells = [
        {"arch": look(run["arch"]).label, "context": _length(run["sequence_length"])}
        | _averages(run["values"])
        for group in alike.values()
        if len({run["sequence_length"] for run in group}) > 1
        for run in sorted(group, key=lambda run: run["sequence_length"])
    ]
    return _table(6, "context length of training", cells, own)


def _scrolls(own: list[dict[str, Any]]) -> PaperTable:
    cells: list[dict[str, str]] = []
    for run in own:
        values = run["values"]
        row = _first(run)
        for task, title in _DATA_SETS.items():
            parts = [values.get((task, metric), math.nan) for metric in SCROLLS[task]]
            row[title] = "/".join(map(_number, parts)) if not all(map(math.isnan, parts)) else DASH
        row["AVG"] = _number(scrolls_paper(values))
        row["SCROLLS score"] = _number(scrolls_official(values))
        cells.append(row)
    table = _table(8, "SCROLLS: ROUGE-1/2/L, F1 and EM in percent", cells, own)
    table.notes.append(
        "AVG: plain mean of the numbers that are there, as in the paper. SCROLLS score: the "
        "benchmark's own, with the geometric mean of the three ROUGE of a data set."
    )
    return table


def _needles(own: list[dict[str, Any]]) -> PaperTable:
    there = {metric for run in own for task, metric in run["values"] if task in _MODES}
    # Shorter grids than the paper's have marks of their own.
    marks = [mark for mark in _MARKS if mark in there]
    if not marks:
        marks = sorted((m for m in there if m.startswith("acc") and m != "accuracy"), key=_mark)
    modes = [m for m in _MODES if any(t == m for run in own for t, _ in run["values"])] or [
        "needle"
    ]
    cells: list[dict[str, str]] = []
    for run in own:
        row = _first(run)
        for mode in modes:
            label = "" if len(modes) == 1 else f" {_MODES[mode]}"
            for metric in (*marks, *_OVERALL):
                title = _OVERALL.get(metric) or _short(metric)
                value = run["values"].get((mode, metric), math.nan)
                row[title + label] = _number(100 * value, digits=1)
        cells.append(row)
    title = "needle in a haystack, percent of cells"
    title += f", {_MODES[modes[0]]} mode" if len(modes) == 1 else ""
    return _table(11, title, cells, own)


def _table(
    number: int, title: str, cells: list[dict[str, str]], own: list[dict[str, Any]]
) -> PaperTable:
    seen = {task for run in own for task, _ in run["values"]}
    notes: list[str] = []
    if number in (4, 5, 6) and (absent := [task for task in CSR if task not in seen]):
        notes.append(f"CSR needs all of its seven tasks; not evaluated: {', '.join(absent)}.")
    return PaperTable(number, title, pd.DataFrame(cells).fillna(DASH), notes)


def _first(run: dict[str, Any]) -> dict[str, str]:
    return {"size": str(run["size"]), "arch": look(run["arch"]).label}


def _tasks(values: Values) -> dict[str, str]:
    return {
        title: _number(100 * values.get((task, CSR[task]), math.nan))
        for task, title in _TASKS.items()
    }


def _averages(values: Values) -> dict[str, str]:
    """The columns that tables 4 to 6 share."""
    parts = [values.get(item, math.nan) for item in CSR.items()]
    return {
        "CSR": _number(100 * sum(parts) / len(parts)),
        "WIKI": _number(values.get(("wikitext", "word_perplexity"), math.nan), digits=1),
        "λ": _number(values.get(("lambada_openai", "perplexity"), math.nan), digits=1),
        "NIAH": _number(100 * values.get(("needle", "weighted_accuracy"), math.nan), digits=1),
        "SCROLLS": _number(scrolls_paper(values)),
    }


def _limited(row: Mapping[Any, Any]) -> bool:
    """Whether the settings, as text, say that only the first questions were asked."""
    settings = str(row["settings"])
    return "'limit': " in settings and "'limit': None" not in settings


def _number(value: float, digits: int = 2) -> str:
    if math.isnan(value):
        return DASH
    return f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.1e}".replace("e+", "e")


def _mark(metric: str) -> tuple[bool, int]:
    """acc@len before acc<=len, short lengths first."""
    return "<=" in metric, int(metric.replace("<=", "@").partition("@")[2])


def _short(metric: str) -> str:
    """`acc<=4096` as `<=4k`."""
    sign = "<=" if "<=" in metric else "@"
    return sign + _length(_mark(metric)[1])


def _length(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)


def _tex(text: str) -> str:
    if text == DASH:
        return "--"
    return re.sub("|".join(map(re.escape, _TEX)), lambda found: _TEX[found[0]], text)


def _pipe(text: str) -> str:
    """A cell in which no character is Markdown or HTML."""
    return re.sub(r"[\\`*\[\]<>|~]|_(?!\w)|(?<!\w)_", r"\\\g<0>", text)


_TEX = {
    "<=": r"$\leq$", "λ": r"$\lambda$", "\\": r"\textbackslash{}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    **{mark: f"\\{mark}" for mark in "&#_%${}"},
}  # fmt: skip


FORMATS: dict[str, tuple[str, Callable[[PaperTable], str]]] = {
    "markdown": ("md", PaperTable.markdown),
    "latex": ("tex", PaperTable.latex),
    "csv": ("csv", PaperTable.csv),
}
"""Name -> suffix of a file, and what writes it."""

"""Anybody's table of runs to the same `Sweep` that run records give.

    load_table(path, loss="final_loss", params=None, tokens=None, compute=None, group=None, ...)
        1. table_files   the file, in any format, to a data frame
        2. columns       which column is what: named by the caller, else guessed and said
        3. cells         numbers, units, commas, noise
        4. rows          chosen (`where`, `last_per`, `best_per`), or left out with a reason: run
                         state, cells that are no numbers, losses that cannot be nats, repeated rows
        5. runs          the unit of resampling, and a warning where rows look like a log

The columns become n_params, tokens, flops, loss, arch, run_id; all others are kept. Rows keep the
number that an editor shows, as the index of `points` and in every message. Nothing is scaled
because of its magnitude. What depends on the law is checked where it is fitted (checks.py).
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.io import columns as choice
from analysis.io import table_warnings as noticed
from analysis.io.cells import read_cells
from analysis.io.checkpoints import unended
from analysis.io.columns import COUNTS, OPTIONS, PLAIN, Column, cells_of, listed
from analysis.io.frames import numbers, rows, words
from analysis.io.nats import perplexities, too_high
from analysis.io.run_states import ended_badly
from analysis.io.sweep import Sweep
from analysis.io.table_files import read_file
from linscale.texts import clean, quote

_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq, "!=": operator.ne, "<=": operator.le, ">=": operator.ge, "<": operator.lt,
    ">": operator.gt, "=": operator.eq,
}  # fmt: skip


def load_table(
    path: str | Path,
    *,
    loss: str | None = None,
    params: str | None = None,
    tokens: str | None = None,
    compute: str | None = None,
    group: str | None = None,
    unique: str | None = None,
    total: str | None = None,
    bits: str | None = None,
    share: str | None = None,
    runs: str | None = None,
    where: Sequence[str] = (),
    last_per: str | None = None,
    best_per: str | None = None,
) -> Sweep:
    """Reads a table with one row per trained model or checkpoint.

    Args:
        path: CSV, TSV, JSON lines, JSON, parquet, feather, Excel, also packed (.gz, .bz2, .xz).
        loss, params, tokens, compute: column names, optionally with a factor: "tokens_b*1e9".
            None guesses from the name. Loss is in nats per token; "" where there is none, as in a
            table of optima.
        group: column that tells laws apart (an architecture); None guesses, "" means one group.
        unique: column of unique tokens, for laws of repeated data.
        total: column of total parameters, for laws of experts, whose `params` are active ones.
        bits: column of the bits of the weights, for laws of precision.
        share: column of the share of one source of the data, for laws of mixtures.
        runs: columns, separated by commas, that tell runs apart: the unit of resampling. None
            guesses, "" means that each row is a run.
        where: conditions such as "arch == tnl" or "tokens >= 1e9"; rows must meet them all.
        last_per: columns as for `runs`; of the rows that agree in them the last is kept, by tokens,
            else by step, else in the order of the file.
        best_per: columns as for `runs`; of the rows that agree in them the lowest loss is kept.

    Raises:
        AnalysisError: unreadable file, a column that does not exist (the nearest is suggested), no
            loss, none of N, D and C, or cells that can be read in two ways.
    """
    path = Path(path)
    frame, notes = read_file(path)
    asked = {
        "loss": loss, "n_params": params, "tokens": tokens, "flops": compute,
        "unique_tokens": unique, "group": group, "total_params": total, "bits": bits,
        "share": share,
    }  # fmt: skip
    columns, rejected = choice.choose(frame, asked, notes)
    _needed(columns, frame, path, rejected, lossless=loss == "")
    points, reasons = _numbers(frame, columns, notes)
    notes += noticed.repeated(points)
    points["arch"] = _words(frame, columns["group"].name) if "group" in columns else "all"
    taken = {column.name for column in columns.values()}
    run = None if runs is not None else choice.guess(frame, "run_id", taken, notes)
    labels = _parts(frame, runs, "--runs") if runs else _words(frame, run.name) if run else None
    numbered = [f"row {i}" for i in frame.index]
    if labels is None:
        points["run_id"] = numbered
    else:
        points["run_id"] = [a or b for a, b in zip(labels, numbered, strict=True)]
        how = f"{runs or (run and run.name)!r}{'' if runs else ' (guessed)'}"
        notes.append(f"rows of one run, resampled together = {how}")
    reason: pd.Series = pd.Series("", index=frame.index, dtype=object)

    def leave_out(bad: Any, why: str | Sequence[str]) -> None:
        for place in np.flatnonzero(np.asarray(bad, dtype=bool) & (reason.to_numpy() == "")):
            reason.iloc[place] = why if isinstance(why, str) else why[int(place)]

    for condition in where:
        leave_out(~_meets(frame, condition), f"not {condition}")
    ended = ended_badly([str(c) for c in frame.columns if c not in taken], partial(_words, frame),
                        len(frame))  # fmt: skip
    leave_out([why != "" for why in ended], ended)
    leave_out(frame.duplicated(), "identical to an earlier row")
    if "group" in columns:
        leave_out([a == "" for a in points["arch"]],
                  f"no value in {columns['group'].name!r}, which tells laws apart")  # fmt: skip
    leave_out([why != "" for why in reasons], reasons)
    if "loss" in columns:
        losses = numbers(points, "loss")
        high = too_high(losses, losses[reason.to_numpy() == ""], columns["loss"].name, notes)
        leave_out([why != "" for why in high], high)
    step = choice.guess(frame, "step", taken, [])
    if last_per:
        leave_out(~_last(points, frame, _parts(frame, last_per, "--last-per"), reason, step),
                  f"not the last row of its {last_per}")  # fmt: skip
    if best_per:
        leave_out(~_best(points, _parts(frame, best_per, "--best-per", columns), reason),
                  f"not the lowest loss of its {best_per}")  # fmt: skip
    left_out = reason.to_numpy() != ""
    kept = rows(points, ~left_out)
    if labels is None or len(set(kept["run_id"])) == len(kept):
        notes += noticed.like_a_log(kept, frame, step)
    else:
        notes += unended(kept, runs or (run.name if run else ""))
    notes += noticed.like_a_sweep(kept)
    notes += noticed.further_columns(kept)
    kept.attrs["names"] = {key: column.name for key, column in columns.items()}
    kept.attrs["columns"] = [str(c) for c in frame.columns]
    kept.attrs["rejected"] = rejected
    if "loss_stderr" in kept and "loss_stderr" not in frame:
        kept.attrs["noise"] = "loss_stderr"
    where_from = [n if n.startswith("row ") else f"{n}, row {i}"
                  for i, n in zip(points.index[left_out], words(rows(points, left_out), "run_id"),
                                  strict=True)]  # fmt: skip
    excluded = {"run_id": where_from, "tokens": math.nan, "reason": [why for why in reason if why]}
    return Sweep(
        name=path.name,
        runs=pd.DataFrame(),
        points=kept,
        curves=pd.DataFrame(),
        exclusions=pd.DataFrame(excluded, columns=["run_id", "tokens", "reason"]),
        conventions="; ".join(c.describe(k) for k, c in columns.items() if k != "group"),
        notes=[*notes, *([columns["group"].describe("group")] if "group" in columns else [])],
    )


def _needed(
    columns: dict[str, Column], frame: pd.DataFrame, path: Path, rejected: dict[str, str], *,
    lossless: bool,
) -> None:  # fmt: skip
    """Raises AnalysisError without a loss, or without any of N, D and C."""
    if "loss" not in columns and not lossless:
        several, hint = choice.loss_like(frame), rejected.get("loss", "")
        if several:
            hint = f"it may be one of {', '.join(several[:6])}"
        elif not hint and (found := perplexities(frame)):
            hint = (
                f"{found[0]!r} is a perplexity: a loss is its logarithm, in nats per token; add a "
                "column of that"
            )
        raise AnalysisError(
            f"no loss column among {listed(frame)} of {path.name}{'; ' if hint else ''}{hint}; "
            "name it with --loss (the first line of the file holds the names)"
        )
    if not any(key in columns for key in ("n_params", "tokens", "flops")):
        why = "".join(f"; {text}" for text in rejected.values())
        raise AnalysisError(
            f"no column for parameters, tokens or compute among {listed(frame)} of {path.name}"
            f"{why}; name them with --params, --tokens and --compute"
        )


def _numbers(
    frame: pd.DataFrame, columns: dict[str, Column], notes: list[str]
) -> tuple[pd.DataFrame, list[str]]:
    """The table with its numbers, and for each row the first cell that is none."""
    keys = ("loss", *COUNTS, *PLAIN)
    # A column that has the name of a quantity and was not taken for it must not pass as such.
    points = frame.rename(columns={k: f"{k} (as written)" for k in keys if k not in columns})
    reasons = [""] * len(frame)
    for key in keys:
        if key not in columns:
            continue
        column = columns[key]
        cells = cells_of(frame, column, key)
        points[key] = cells.values
        notes += cells.notes
        if key == "loss" and np.isfinite(cells.noise).any():
            points["loss_stderr"] = cells.noise
        for row, cell in cells.bad.items():
            reasons[row] = reasons[row] or (
                f"{column.name!r} ({OPTIONS[key]}): {quote(cell)} is not a number"
            )
    return points, reasons


def _last(
    points: pd.DataFrame, frame: pd.DataFrame, labels: list[str], reason: pd.Series,
    step: Column | None,
) -> np.ndarray:  # fmt: skip
    """The last usable row of each label."""
    if "tokens" in points and np.isfinite(numbers(points, "tokens")).any():
        key = numbers(points, "tokens")
    elif step is not None:
        key = read_cells(frame[step.name], step.name, count=True).values
    else:
        key = np.arange(len(points), dtype=np.float64)
    return _first_of(-np.nan_to_num(key, nan=-np.inf), labels, reason, latest=True)


def _best(points: pd.DataFrame, labels: list[str], reason: pd.Series) -> np.ndarray:
    """The usable row with the lowest loss of each label."""
    return _first_of(np.nan_to_num(np.asarray(points["loss"], dtype=np.float64), nan=np.inf),
                     labels, reason, latest=False)  # fmt: skip


def _first_of(key: np.ndarray, labels: list[str], reason: pd.Series, *, latest: bool) -> np.ndarray:
    """The row with the smallest key of each label; of equals the latest, or the earliest."""
    usable = np.flatnonzero(reason.to_numpy() == "")
    best: dict[str, int] = {}
    for row in usable:
        held = best.get(labels[row])
        if held is None or key[row] < key[held] or (latest and key[row] == key[held]):
            best[labels[row]] = int(row)
    keep = np.zeros(len(key), dtype=bool)
    keep[list(best.values())] = True
    return keep


def _parts(
    frame: pd.DataFrame, names: str, option: str, columns: dict[str, Column] | None = None
) -> list[str]:
    """The cells of several columns as one label a row; N, D and C mean the columns chosen."""
    roles = {"N": "n_params", "D": "tokens", "C": "flops"}
    found: list[list[str]] = []
    for name in (part.strip() for part in names.split(",")):
        role = (columns or {}).get(roles.get(name, ""))
        column = name if name in frame.columns or role is None else role.name
        if column not in frame.columns:
            raise AnalysisError(f"no column {column!r} for {option}; columns: {listed(frame)}")
        found.append(_words(frame, column))
    return [" ".join(filter(None, parts)) for parts in zip(*found, strict=True)]


def _meets(frame: pd.DataFrame, condition: str) -> np.ndarray:
    """The rows that meet NAME OPERATOR VALUE: as numbers where the value is one, else as text.

    Raises:
        AnalysisError: it is no such condition, or there is no such column.
    """
    match = re.fullmatch(r"\s*(.+?)\s*(==|!=|<=|>=|=|<|>)\s*(.*?)\s*", condition)
    if match is None:
        raise AnalysisError(
            f"--where {condition!r}: give NAME OPERATOR VALUE, as in 'tokens >= 1e9'"
        )
    name, sign, value = match[1], match[2], match[3].strip("'\"")
    if name not in frame.columns:
        raise AnalysisError(f"no column {name!r} for --where; columns: {listed(frame)}")
    wanted = read_cells([value], name, count=True)
    compare = _COMPARISONS[sign]
    if np.isfinite(wanted.values[0]):
        return np.asarray(compare(read_cells(frame[name], name, count=True).values,
                                  wanted.values[0]), dtype=bool)  # fmt: skip
    if sign not in ("==", "!=", "="):
        raise AnalysisError(f"--where {condition!r}: {value!r} is no number; texts are compared "
                            "with == and !=")  # fmt: skip
    return np.array([compare(text, value) for text in _words(frame, name)], dtype=bool)


def _words(frame: pd.DataFrame, name: str) -> list[str]:
    """A column as text, "" for empty cells; a group called NA stays."""
    cells = cast("pd.Series", frame[name])
    codes, distinct = pd.factorize(cells, use_na_sentinel=True)
    texts = [*map(_word, distinct), ""]  # code -1 is an empty cell
    return [texts[code] for code in codes]


def _word(cell: object) -> str:
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 1e15:
        return str(int(cell))  # a column of whole numbers with a gap
    return clean(str(cell))

"""Anybody's table of runs (CSV, TSV or JSON lines) to the same `Sweep` that run records give.

    load_table(path, loss="final_loss", params=None, tokens=None, compute=None, group=None)
        1. a column named by the caller is taken; one not named is guessed from its name
        2. `NAME*FACTOR` scales a column ("tokens_b*1e9"); a unit in the name (tokens_b, PF-days)
           is applied by itself, and said
        3. cells may carry K, M, B or T (70M) or thousands (1,234,567); a file whose header has no
           comma may separate by ; tab or | and mark decimals by a comma: each is said in `notes`
        4. the columns become n_params, tokens, flops, loss, arch; all others are kept

Nothing is scaled because of its magnitude. Rows that cannot be used, N, D or C that must be derived
and suspicious units are found where a law is fitted (checks.py), because they depend on the law.
"""

from __future__ import annotations

import difflib
import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.io.frames import rows
from analysis.io.records import Sweep
from analysis.units import PFLOP_S_DAY

_NAMES = {
    "loss": ("loss", "loss_nats", "val_loss", "validation_loss", "final_loss", "eval_loss",
             "test_loss", "raw_loss", "train_loss", "training_loss"),
    "n_params": ("n_params", "params", "parameters", "n", "model_size", "num_params", "size_params",
                 "n_non_embedding", "non_embedding_params", "param_count", "nparams"),
    "tokens": ("tokens", "d", "n_tokens", "train_tokens", "training_tokens", "num_tokens",
               "tokens_seen", "dataset_size", "data"),
    "flops": ("flops", "c", "compute", "training_flop", "training_flops", "train_flops", "flop",
              "budget", "total_flops"),
    "group": ("arch", "architecture", "group", "model_family", "family", "model_type"),
    "run_id": ("run_id", "run", "run_name", "id", "experiment_id"),
}  # fmt: skip
"""Names that a column may go by, best first; compared in lower case with punctuation as `_`."""

_SUFFIXES = {
    "_b": 1e9, "_bn": 1e9, "_billion": 1e9, "_billions": 1e9, "_m": 1e6, "_million": 1e6,
    "_millions": 1e6, "_t": 1e12, "_trillion": 1e12, "_pflops_days": PFLOP_S_DAY,
    "_pf_days": PFLOP_S_DAY, "_pflop_s_days": PFLOP_S_DAY, "_pfdays": PFLOP_S_DAY,
}  # fmt: skip
_LABELS = {
    "loss": "loss", "n_params": "N (parameters)", "tokens": "D (tokens)", "flops": "C (FLOPs)",
    "group": "group",
}  # fmt: skip
_UNITS = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_CELL = re.compile(
    r"(?P<number>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.?\d*(?:[eE][+-]?\d+)?)\s*(?P<unit>[KkMmBbTt]?)"
)
"""70M, 1.4B, 300 T or 1,234,567."""
_DECIMAL = re.compile(r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?")
_SCALED = ("n_params", "tokens", "flops")
"""What may carry a unit."""
_OTHER_FORMATS = (".xlsx", ".xls", ".ods", ".parquet", ".feather", ".pkl", ".npz", ".zip", ".gz")


@dataclass(frozen=True)
class _Column:
    name: str
    factor: float
    how: str
    """`given` or `guessed`."""


def load_table(
    path: str | Path,
    *,
    loss: str | None = None,
    params: str | None = None,
    tokens: str | None = None,
    compute: str | None = None,
    group: str | None = None,
) -> Sweep:
    """Reads a table with one row per trained model or checkpoint.

    Args:
        path: .csv (or .txt), .tsv, .jsonl or .json (records).
        loss, params, tokens, compute: column names, optionally with a factor: "tokens_b*1e9".
            None guesses from the name. Loss is in nats per token.
        group: column that tells laws apart (an architecture); None guesses, "" means one group.

    Raises:
        AnalysisError: unreadable file, a column that does not exist (the nearest is suggested), no
            loss, or none of N, D and C.
    """
    path = Path(path)
    frame, notes = _read(path)
    asked = {"loss": loss, "n_params": params, "tokens": tokens, "flops": compute, "group": group}
    columns: dict[str, _Column] = {}
    taken: set[str] = set()
    for key, request in asked.items():
        if request:
            columns[key] = _given(frame, request, key)
            taken.add(columns[key].name)
    for key, request in asked.items():
        if request is None and (found := _guess(frame, key, taken)):
            columns[key] = found
            taken.add(found.name)
    if "loss" not in columns:
        raise AnalysisError(
            f"no loss column among {_listed(frame)} of {path.name}; name it with --loss (the "
            "first line of the file holds the names)"
        )
    axes = [key for key in _SCALED if key in columns]
    if not axes:
        raise AnalysisError(
            f"no column for parameters, tokens or compute among {_listed(frame)} of {path.name}; "
            "name them with --params, --tokens and --compute"
        )
    points = frame.copy()
    for key in ("loss", *axes):
        points[key], how = _numbers(frame, columns[key], key)
        notes += how
    points["arch"] = _words(frame, columns["group"].name) if "group" in columns else "all"
    run = _guess(frame, "run_id", taken)
    # Rows of one run are the unit of the bootstrap; without a run column each row is a run.
    names = [f"row {i + 2}" for i in range(len(frame))]  # as a spreadsheet counts: header is row 1
    points["run_id"] = _words(frame, run.name, names) if run else names
    if run:
        notes.append(f"rows of one run, resampled together = {run.name!r} (guessed)")
    reason = np.where(frame.duplicated(), "identical to an earlier row", "").astype(object)
    if "group" in columns:
        empty = np.asarray(frame[columns["group"].name].isna())
        reason[empty] = f"no value in {columns['group'].name!r}, which tells laws apart"
    left_out = reason != ""
    excluded = {"run_id": rows(points, left_out)["run_id"], "tokens": math.nan,
                "reason": reason[left_out]}  # fmt: skip
    return Sweep(
        name=path.name,
        runs=pd.DataFrame(),
        points=rows(points, ~left_out),
        curves=pd.DataFrame(),
        exclusions=pd.DataFrame(excluded),
        conventions="; ".join(_describe(k, c) for k, c in columns.items() if k != "group"),
        notes=[*notes, *([_describe("group", columns["group"])] if "group" in columns else [])],
    )


def _read(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """The table, and what was assumed to read it."""
    notes: list[str] = []
    if not path.is_file():
        raise AnalysisError(f"{path} does not exist; give a CSV file or a sweep directory")
    if path.suffix.lower() in _OTHER_FORMATS:
        raise AnalysisError(f"{path} is not text: save the table as CSV, or as JSON lines")
    try:
        match path.suffix.lower():
            case ".json":
                frame = pd.read_json(path)
            case ".jsonl":
                frame = pd.read_json(path, lines=True)
            case ".tsv":
                frame = _delimited(path, "\t")
            case _:
                separator = _separator(path)
                frame = _delimited(path, separator)
                if separator != ",":
                    notes.append(f"columns are separated by {separator!r}")
                    frame = _decimal_commas(frame, notes)
    except pd.errors.EmptyDataError as error:
        raise AnalysisError(f"{path} is empty") from error
    except UnicodeDecodeError as error:
        raise AnalysisError(f"{path} is not UTF-8 text; save it as a CSV in UTF-8") from error
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
        first = (str(error).strip().splitlines() or ["it is empty"])[0]
        first = first.removeprefix("Error tokenizing data. C error: ")
        raise AnalysisError(f"{path} cannot be read as a table: {first}") from error
    frame.columns = [str(c).strip() for c in frame.columns]
    if len(frame) == 0:
        raise AnalysisError(f"{path} has no rows")
    return frame, notes


def _delimited(path: Path, separator: str) -> pd.DataFrame:
    """A table of separated fields. A separator at the end of every line is forgiven; rows of more
    fields than the header are not, because it is not known which names they belong to.

    Raises:
        ValueError: such rows.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            return pd.read_csv(path, sep=separator, index_col=False)
        except pd.errors.ParserWarning as error:
            raise ValueError("rows have more fields than the header has names") from error


def _separator(path: Path) -> str:
    """What separates the columns: a comma unless the header has none, and one of the others."""
    with path.open(encoding="utf-8", errors="replace") as file:
        header = file.readline()
    return "," if "," in header else next((s for s in ";\t|" if s in header), ",")


def _decimal_commas(frame: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Cells such as 2,71 as numbers: where a comma separates no columns it marks decimals."""
    for name in frame.columns:
        cells = frame[name]
        found = cells.map(lambda v: isinstance(v, str) and bool(_DECIMAL.fullmatch(v.strip())))
        if bool(np.any(found)):
            frame[name] = cells.where(~found, cells.astype(str).str.strip().str.replace(",", "."))
            notes.append(f"{name!r}: a comma marks decimals")
    return frame


def _given(frame: pd.DataFrame, request: str, key: str) -> _Column:
    name, star, factor_text = request.rpartition("*")
    if not star or request in frame.columns:
        name, factor_text = request, ""
    if name not in frame.columns:
        near = difflib.get_close_matches(name, list(frame.columns), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise AnalysisError(
            f"there is no column {name!r} for the {_LABELS[key]}{hint} Columns: {_listed(frame)}"
        )
    if not factor_text:
        return _Column(name, _suffix_factor(name) if key in _SCALED else 1.0, "given")
    try:
        factor = float(factor_text)
    except ValueError:
        factor = math.nan
    if not (math.isfinite(factor) and factor > 0):
        raise AnalysisError(
            f"the factor in {request!r} must be a positive number, as in {name}*1e9"
        )
    return _Column(name, factor, "given")


def _guess(frame: pd.DataFrame, key: str, taken: set[str]) -> _Column | None:
    # Of "n" and "N" the capital is the model size, so capitals come last and win.
    names = sorted((c for c in frame.columns if c not in taken), reverse=True)
    simple = {_simplify(c): c for c in names}
    for candidate in _NAMES[key]:
        if candidate in simple:
            return _Column(simple[candidate], 1.0, "guessed")
    if key in _SCALED:  # tokens_b, params (M), compute_pf_days, ...
        for candidate in _NAMES[key]:
            for suffix, factor in _SUFFIXES.items():
                if candidate + suffix in simple:
                    return _Column(simple[candidate + suffix], factor, "guessed")
    return None


def _simplify(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _suffix_factor(name: str) -> float:
    simple = _simplify(name)
    return next((f for s, f in _SUFFIXES.items() if simple.endswith(s)), 1.0)


def _describe(key: str, column: _Column) -> str:
    scale = "" if column.factor == 1 else f" x {column.factor:g}"
    guess = " (guessed)" if column.how == "guessed" else ""
    return f"{_LABELS[key]} = {column.name!r}{scale}{guess}"


def _listed(frame: pd.DataFrame) -> str:
    names = list(frame.columns)
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")


def _numbers(frame: pd.DataFrame, column: _Column, key: str) -> tuple[np.ndarray, list[str]]:
    """A column as numbers (NaN for what is none), and what was assumed about its cells.

    Raises:
        AnalysisError: units both in the cells (70M) and in the column's name or factor.
    """
    values: list[float] = []
    example: tuple[str, float] | None = None
    for cell in frame[column.name]:
        value = _number(cell)
        if math.isnan(value) and isinstance(cell, str) and (found := _CELL.fullmatch(cell.strip())):
            unit = _UNITS.get((found["unit"] or "").upper(), 1.0) if key in _SCALED else math.nan
            if key not in _SCALED and not found["unit"]:
                unit = 1.0
            value = float(found["number"].replace(",", "")) * unit
            if found["unit"] and math.isfinite(value):
                example = example or (cell.strip(), value)
        values.append(value)
    if example is None:
        return np.array(values) * column.factor, []
    if column.factor != 1:
        raise AnalysisError(
            f"column {column.name!r} has units in its cells ({example[0]!r}) and in its name or "
            f"factor (x {column.factor:g}): keep one of them"
        )
    return np.array(values), [f"{column.name!r}: {example[0]} read as {example[1]:g}"]


def _number(value: object) -> float:
    try:
        return float(value)  # pyright: ignore[reportArgumentType] - anything may be in a cell
    except (TypeError, ValueError):
        return math.nan


def _words(frame: pd.DataFrame, name: str, absent: list[str] | None = None) -> list[str]:
    """A column as text; `absent` stands for empty cells."""
    words = [str(value) for value in frame[name]]
    if absent is None:
        return words
    empty = np.asarray(frame[name].isna())
    return [other if none else word for word, other, none in zip(words, absent, empty, strict=True)]

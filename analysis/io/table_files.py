"""Files that hold a table, in any of the formats that people keep results in, to a data frame.

    .csv .txt .tsv            text in UTF-8, UTF-16 or Latin-1; , ; tab or | between the columns
    .jsonl .ndjson .json      records; also trainer_state.json of Hugging Face's Trainer
    .parquet .feather         through pyarrow
    .xlsx .xls                through openpyxl or what else pandas finds for it; the largest sheet
    any of these + .gz .bz2 .xz .zst (the last through pyarrow)
    a folder                  of TensorBoard, MLflow, trackio, Hugging Face's Trainer or
                              lm-evaluation-harness (tracker_folders)

Cells of text files stay text: what a comma or "NA" means is decided where a column is read
(`analysis.io.cells`). A chart exported from W&B (one column a run) becomes one row a run and step.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import warnings
import zlib
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.io.frames import rows
from analysis.io.text_lines import line_numbers, without_comments
from analysis.io.tracker_folders import (
    harness_row,
    is_harness_record,
    is_trainer_state,
    read_tracker,
    tracker_of,
    trainer_rows,
)
from linscale.texts import clean

LARGEST = 2**32
"""Bytes after unpacking beyond which a file is refused."""


def _zstd(path: Path) -> Any:
    import pyarrow

    return pyarrow.input_stream(str(path), compression="zstd")


_PACKED: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zstd,
}  # fmt: skip
_BOMS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
_CHART = re.compile(r"(?P<run>.+) - (?P<metric>.+?)(?P<edge>__(?:MIN|MAX))?")


def read_file(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """The table in a file, its index the numbers of the rows as an editor or a spreadsheet shows
    them, and what was assumed to read it.

    Raises:
        AnalysisError: there is no such file, or no table can be read from it.
    """
    if not path.is_file() and not tracker_of(path):
        if path.is_dir():
            raise AnalysisError(f"{path} is a directory without runs; give a table or a sweep")
        raise AnalysisError(f"{path} does not exist; give a CSV file or a sweep directory")
    suffixes = [s.lower() for s in path.suffixes]
    packed = suffixes.pop() if suffixes and suffixes[-1] in _PACKED else ""
    kind = suffixes[-1] if suffixes else ".csv"
    kind = tracker_of(path) or kind
    notes: list[str] = []
    try:
        if tracker_of(path):
            frame, notes = read_tracker(path)
            frame.index = pd.RangeIndex(1, 1 + len(frame))
        else:
            frame = _frame(_bytes(path, packed), kind, path, notes)
    except ImportError as error:
        raise AnalysisError(
            f"{path}: {kind} files are read by a library that is not installed ({error.name}): "
            f"pip install {error.name} or 'linscale[tables]', or save the table as CSV"
        ) from error
    except pd.errors.EmptyDataError as error:
        raise AnalysisError(f"{path} is empty") from error
    except (
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
        OSError,
        EOFError,
        lzma.LZMAError,
        zlib.error,
    ) as error:  # pandas' and pyarrow's errors are ValueErrors
        text = (str(error).strip().splitlines() or ["it is empty"])[0]
        text = clean(text.removeprefix("Error tokenizing data. C error: "))
        raise AnalysisError(f"{path} cannot be read as a table: {text}") from error
    frame.columns = [clean(str(c)) for c in frame.columns]
    if len(frame) == 0:
        raise AnalysisError(f"{path} has no rows")
    for place, dtype in enumerate(frame.dtypes):
        if not pd.api.types.is_numeric_dtype(dtype):
            found = frame.iloc[:, place].astype(object)
            # Lists, as of tags, and what else cannot be compared: as text.
            plain = [c if isinstance(c, Hashable) else str(c) for c in found]
            codes, distinct = pd.factorize(pd.Series(plain, index=found.index, dtype=object))
            texts = [c.strip() if isinstance(c, str) else c for c in distinct]
            cells = np.array([*texts, None], dtype=object)[codes]
            frame.isetitem(place, pd.Series(cells, index=frame.index, dtype=object))
    return _unfolded(frame, notes), notes


def _bytes(path: Path, packed: str) -> bytes:
    if not packed:
        return path.read_bytes()
    with _PACKED[packed](path) as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"it unpacks to more than {LARGEST:,} bytes")
    return data


def _frame(data: bytes, kind: str, path: Path, notes: list[str]) -> pd.DataFrame:
    if kind in (".parquet", ".pq"):
        return _numbered(pd.read_parquet(io.BytesIO(data)), 1)
    if kind in (".feather", ".arrow"):
        return _numbered(pd.read_feather(io.BytesIO(data)), 1)
    if kind in (".xlsx", ".xls", ".xlsm", ".ods"):
        return _numbered(_sheet(data, notes), 2)
    if not data.strip():
        raise pd.errors.EmptyDataError
    text = _text(data, path, notes).replace("\r\n", "\n").replace("\r", "\n")
    if kind == ".json":
        return _numbered(_records(json.loads(text), notes), 1)
    if kind in (".jsonl", ".ndjson"):
        lines = {i: line for i, line in enumerate(text.split("\n"), 1) if line.strip()}
        frame = pd.json_normalize([_object(json.loads(line)) for line in lines.values()])
        return frame.set_axis(list(lines), axis=0)
    text, above = without_comments(text, notes)
    separator = "\t" if kind == ".tsv" else _separator(text)
    if separator != "," and kind != ".tsv":
        notes.append(f"columns are separated by {separator!r}")
    header, *starts = line_numbers(text, separator)
    frame = _delimited(text.lstrip("\n"), separator, notes)
    if len(starts) != len(frame):
        raise ValueError("it is not clear where its rows begin: look at its quotation marks")
    if not starts or starts[-1] == header + len(starts):
        return _numbered(frame, above + header + 1)
    return frame.set_axis([above + start for start in starts], axis=0)


def _sheet(data: bytes, notes: list[str]) -> pd.DataFrame:
    """The sheet of a workbook that holds most cells; of several that is said."""
    sheets = pd.read_excel(io.BytesIO(data), keep_default_na=False, sheet_name=None)
    name, frame = max(sheets.items(), key=lambda item: item[1].size)
    if len(sheets) > 1:
        others = ", ".join(clean(repr(str(s))) for s in sheets if s != name)
        notes.append(f"sheet {clean(str(name))!r} is read, the largest; not read: {others}")
    return frame


def _numbered(frame: pd.DataFrame, first: int) -> pd.DataFrame:
    return frame.set_axis(pd.RangeIndex(first, first + len(frame)), axis=0)


def _text(data: bytes, path: Path, notes: list[str]) -> str:
    """The text of a file, in the encoding that its first bytes or its content give away."""
    for mark, encoding in _BOMS.items():
        if data.startswith(mark):
            try:
                return data.decode(encoding)
            except UnicodeDecodeError:
                break
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
        notes.append("the file is no UTF-8: its letters were read as Latin-1")
    if "\0" in text:
        raise AnalysisError(f"{path} is not UTF-8 text; save it as a CSV in UTF-8")
    return text


def _records(value: Any, notes: list[str]) -> pd.DataFrame:
    """Records, columns by name, or the log of Hugging Face's Trainer."""
    if is_trainer_state(value):
        found = trainer_rows(value)
        measured = any("eval_loss" in entry for entry in found)
        notes.append(
            f"trainer_state.json: {len(found)} of {len(value['log_history'])} entries of its log "
            f"have {'an evaluation' if measured else 'no evaluation: training losses'}"
        )
        return pd.json_normalize(found)
    if is_harness_record(value):
        notes.append("a result file of lm-evaluation-harness: one row, a column task/metric")
        return pd.DataFrame([harness_row(value, "results")])
    if isinstance(value, list):
        return pd.json_normalize([_object(entry) for entry in value])
    if isinstance(value, dict) and {"columns", "data"} <= value.keys() <= {
        "columns", "data", "index", "schema",
    }:  # fmt: skip
        return pd.DataFrame(value["data"], columns=[str(c) for c in value["columns"]])
    if isinstance(value, dict) and value and all(isinstance(v, list | dict)
                                                 for v in value.values()):  # fmt: skip
        return pd.DataFrame(value)
    raise ValueError("it holds neither records nor columns")


def _object(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError(f"{clean(repr(entry), 40)} stands where a record should")
    return entry


def _delimited(text: str, separator: str, notes: list[str]) -> pd.DataFrame:
    """A table of separated fields. A separator at the end of every line is forgiven; rows of more
    fields than the header are not, because it is not known which names they belong to.

    Raises:
        ValueError: such rows.
    """
    header, *lines = text.split("\n")
    names = [name.strip() for name in next(csv.reader([header], delimiter=separator), [])]
    notes += [f"{names.count(name)} columns are called {name!r}: the first is taken"
              for name in dict.fromkeys(names) if name and names.count(name) > 1]  # fmt: skip
    filled = [line for line in lines if line.strip()]
    if not header.rstrip().endswith(separator) and all(s.endswith(separator) for s in filled):
        text = "\n".join([header, *(line.removesuffix(separator) for line in lines)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            return pd.read_csv(
                io.StringIO(text), sep=separator, index_col=False, dtype=str,
                keep_default_na=False, skipinitialspace=True,
            )  # fmt: skip
        except pd.errors.ParserWarning as error:
            raise ValueError("rows have more fields than the header has names") from error


def _separator(text: str) -> str:
    """What separates the columns: a comma unless the header has none, and one of the others."""
    header = text.lstrip().partition("\n")[0]
    return "," if "," in header else next((s for s in ";\t|" if s in header), ",")


def _unfolded(frame: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """A chart exported from W&B, which has a column "RUN - METRIC" for each run, as rows."""
    found = {name: _CHART.fullmatch(str(name)) for name in frame.columns[1:]}
    if len(found) == 0 or not all(found.values()):
        return frame
    step = frame.columns[0]
    parts = [
        pd.DataFrame({"run": match["run"], step: frame[step], match["metric"]: frame[name]})
        for name, match in found.items()
        if match and not match["edge"]
    ]
    metrics = {part.columns[2] for part in parts}
    if len(metrics) != 1:
        return frame
    (metric,) = metrics
    whole = pd.concat(parts, ignore_index=True)
    whole = rows(whole, [str(value) not in ("", "nan") for value in whole[metric]])
    notes.append(f"a chart of {len(parts)} runs: {metric!r} over {step!r}, a row a run and step")
    return _numbered(whole, 1)

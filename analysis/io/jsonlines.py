"""JSON-lines logs as columns: fast, and tolerant of a last line torn by a kill.

read_records(path)                    every complete record, as dictionaries
read_columns(path, numbers, words)    chosen fields as arrays of one length
    1. text after the last newline that is not JSON by itself is a torn line: dropped, counted
    2. parsed column-wise by pyarrow where it is installed and accepts the file (about five
       times as fast), else by `json`: the same result
    3. numbers -> float64 (null, absent or not a number: NaN), words -> object ("" when absent)
"""

from __future__ import annotations

import io
import json
import math
from typing import Any

import numpy as np

from analysis.io.sweep_files import Place

try:  # Optional: comes with `datasets`, which reading run records does not need.
    import pyarrow as pa
    from pyarrow import json as arrow_json
except ImportError:  # pragma: no cover - the test suite's environment has it
    pa = arrow_json = None

Columns = dict[str, np.ndarray]


def read_records(path: Place) -> tuple[list[dict[str, Any]], int]:
    """All complete records of a file and the number of unreadable lines; none if it is absent."""
    return _parse(path.read_bytes()) if path.is_file() else ([], 0)


def read_columns(
    path: Place, *, numbers: tuple[str, ...], words: tuple[str, ...]
) -> tuple[Columns, int]:
    """Chosen fields of every complete record and the number of unreadable lines."""
    data = path.read_bytes() if path.is_file() else b""
    cut = data.rfind(b"\n") + 1
    tail, torn = _parse(data[cut:])
    if not tail:
        data = data[:cut]
    table = _by_arrow(data, numbers, words)
    if table is not None:
        return table, torn
    records, bad = _parse(data)
    columns: Columns = {k: np.array([_number(r.get(k)) for r in records]) for k in numbers}
    for key in words:
        columns[key] = np.array([str(r.get(key) or "") for r in records], dtype=object)
    return columns, bad + (0 if tail else torn)


def _parse(data: bytes) -> tuple[list[dict[str, Any]], int]:
    lines = [s for s in data.decode("utf-8", errors="replace").split("\n") if s.strip()]
    try:  # One call for all lines is twice as fast as one call a line.
        values = json.loads(f"[{','.join(lines)}]")
    except ValueError:
        values = [_one(line) for line in lines]
    records = [v for v in values if isinstance(v, dict)]
    return records, len(values) - len(records)


def _one(line: str) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _by_arrow(data: bytes, numbers: tuple[str, ...], words: tuple[str, ...]) -> Columns | None:
    """The columns, or None when pyarrow is absent or finds anything irregular in the file."""
    if pa is None or arrow_json is None or not data.strip():
        return None
    schema = pa.schema([(k, pa.float64()) for k in numbers] + [(k, pa.string()) for k in words])
    options = arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        # Files of a run are small: threads cost more than they save
        table = arrow_json.read_json(
            io.BytesIO(data), arrow_json.ReadOptions(use_threads=False), options
        )
    except pa.ArrowInvalid:
        return None
    columns: Columns = {k: table[k].to_numpy() for k in numbers}
    for key in words:
        columns[key] = table[key].fill_null("").to_numpy()
    return columns


def _number(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return math.nan

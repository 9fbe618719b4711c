"""JSON-lines logs as columns: fast, and tolerant of a last line torn by a kill.

read_records(path)                    every complete record, as dictionaries
read_columns(path, numbers, words)    chosen fields as arrays of one length
    1. text after the last newline that is not JSON by itself is a torn line: dropped, counted
    2. parsed column-wise by pyarrow where it is installed and accepts the file (about five
       times as fast), else by `json`: the same result
    3. numbers -> float64 (null, absent or not a number: NaN), words -> object ("" when absent)

A line that is no object, or nested too deeply, is unreadable; nothing raises.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from analysis.io.sweep_files import Place
from linscale.json_reader import as_number, parse_lines
from linscale.texts import clean

try:  # Optional: comes with `datasets`, which reading run records does not need.
    import pyarrow as pa
    from pyarrow import json as arrow_json
except ImportError:  # pragma: no cover - the test suite's environment has it
    pa = arrow_json = None

Columns = dict[str, np.ndarray]


def read_records(path: Place) -> tuple[list[dict[str, Any]], int]:
    """All complete records of a file and the number of unreadable lines; none if it is absent."""
    return parse_lines(_bytes(path))


def read_columns(
    path: Place, *, numbers: tuple[str, ...], words: tuple[str, ...]
) -> tuple[Columns, int]:
    """Chosen fields of every complete record and the number of unreadable lines."""
    data = _bytes(path)
    cut = data.rfind(b"\n") + 1
    tail, torn = parse_lines(data[cut:])
    if not tail:
        data = data[:cut]
    table = _by_arrow(data, numbers, words)
    if table is not None:
        return table, torn
    records, bad = parse_lines(data)
    columns: Columns = {k: np.array([as_number(r.get(k)) for r in records]) for k in numbers}
    for key in words:
        columns[key] = np.array([_word(r.get(key)) for r in records], dtype=object)
    return columns, bad + (0 if tail else torn)


def _bytes(path: Place) -> bytes:
    """The content of a file; a file that is absent or cannot be read has none."""
    try:
        return path.read_bytes() if path.is_file() else b""
    except OSError:
        return b""


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
        if table.num_rows != data.count(b"\n") + (not data.endswith(b"\n")):
            return None
        columns: Columns = {k: table[k].to_numpy() for k in numbers}
        for key in words:
            columns[key] = table[key].fill_null("").to_numpy()
    except (pa.ArrowException, ValueError):  # also text that is no UTF-8, found on conversion
        return None
    for key in words:
        if not all(map(str.isprintable, set(columns[key]))):
            columns[key] = np.array([_word(word) for word in columns[key]], dtype=object)
    return columns


def _word(value: object) -> str:
    return clean(value) if isinstance(value, str) else ""

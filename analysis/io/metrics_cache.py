"""Parsed logs of a sweep, kept beside them so that a large sweep is read once.

    <sweep>/.metrics.npz
        numbers  (columns, lines) of all runs, one after the other
        words    (columns, lines) codes into a list of distinct words
        index    JSON: the columns, the words, and for each run its lines, its torn lines, and the
                 size and time of the metrics.jsonl that they were read from

A run whose file has another size or time is read again. The file is only a copy: it may be deleted
at any time, and where it cannot be written reading works without. Sweeps of few lines, and those
in a zip file, have none.
"""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.io.jsonlines import Columns, read_columns
from analysis.io.sweep_files import Place

FILE = ".metrics.npz"
WORTH = 100_000
"""Lines from which a sweep gets a cache: fewer are parsed in a fraction of a second."""


class Metrics:
    """Reads metrics.jsonl of the runs of a sweep, each from the cache if it is still true."""

    def __init__(self, root: Place, *, numbers: tuple[str, ...], words: tuple[str, ...]) -> None:
        self.root, self.numbers, self.words = root, numbers, words
        self._known: dict[str, dict[str, Any]] = {}
        self._read: dict[str, tuple[list[int], Columns, int]] = {}
        self._changed = False
        self._load()

    def read(self, run_id: str) -> tuple[Columns, int]:
        """Columns of a run, and its torn lines."""
        path = self.root / run_id / "metrics.jsonl"
        stamp = _stamp(path)
        entry = self._known.get(run_id)
        if entry is not None and entry["stamp"] == stamp:
            columns, torn = self._cached(entry), int(entry["torn"])
        else:
            columns, torn = read_columns(path, numbers=self.numbers, words=self.words)
            self._changed = True
        self._read[run_id] = (stamp, columns, torn)
        return columns, torn

    def save(self) -> None:
        """Writes the cache anew if a run was parsed and the sweep is large."""
        lengths = [len(c[self.numbers[0]]) for _, c, _ in self._read.values()]
        if not isinstance(self.root, Path) or not self._changed or sum(lengths) < WORTH:
            return
        ends = np.cumsum(lengths).tolist()
        index: dict[str, Any] = {"numbers": self.numbers, "words": self.words, "runs": {}}
        for (run_id, (stamp, _, torn)), end, length in zip(
            self._read.items(), ends, lengths, strict=True
        ):
            index["runs"][run_id] = {"stamp": stamp, "torn": torn, "lines": [end - length, end]}
        parts = [columns for _, columns, _ in self._read.values()]
        table = np.stack([np.concatenate([p[k] for p in parts]) for k in self.numbers])
        codes: list[np.ndarray] = []
        index["vocabulary"] = []
        for key in self.words:
            code, distinct = pd.factorize(np.concatenate([p[key] for p in parts]))
            codes.append(code.astype(np.int32))
            index["vocabulary"].append([str(w) for w in distinct])
        target = self.root / FILE
        temporary = target.with_name(f"{FILE}.{os.getpid()}")
        with contextlib.suppress(OSError):  # a sweep that may only be read
            try:
                with temporary.open("wb") as file:
                    np.savez(file, numbers=table, words=np.stack(codes),
                             index=np.array(json.dumps(index)))  # fmt: skip
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)

    def _load(self) -> None:
        if not isinstance(self.root, Path):
            return
        try:
            path = self.root / FILE
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                index = json.loads(str(stored["index"]))
                if (tuple(index["numbers"]), tuple(index["words"])) == (self.numbers, self.words):
                    self._table, self._codes = stored["numbers"], stored["words"]
                    self._vocabulary = [np.array(v, dtype=object) for v in index["vocabulary"]]
                    self._known = index["runs"]
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            self._known = {}  # absent, torn or of another version: read everything

    def _cached(self, entry: dict[str, Any]) -> Columns:
        lines = slice(*entry["lines"])
        columns: Columns = {k: self._table[i, lines] for i, k in enumerate(self.numbers)}
        for i, key in enumerate(self.words):
            columns[key] = self._vocabulary[i][self._codes[i, lines]]
        return columns


def _stamp(path: Place) -> list[int]:
    try:
        found = path.stat() if isinstance(path, Path) else None
    except OSError:
        found = None
    if found is None:
        return [0, 0]
    return [found.st_size, found.st_mtime_ns]

"""Sealing a forecast: a hash over everything it rests on, and the check that nothing has changed.

    seal(body)              body + `seal`, the SHA-256 of its canonical JSON
    read_seal(path)         the record; a file that was altered is said to be broken
    changed_inputs(...)     whether the rows that were used are still what they were

Canonical JSON has sorted keys, no spaces and full precision. A seal proves that a file is whole;
when it was made is proved by where it is kept, such as a git commit.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from analysis.errors import AnalysisError
from analysis.io.frames import finite
from analysis.io.saved import saved
from linscale.shipped import shipped_file

SCHEMA = 1
KIND = "linscale forecast"


def digest(value: Any) -> str:
    """SHA-256 of canonical JSON.

    Raises:
        ValueError: a number that JSON does not have.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str | None:
    """SHA-256 of a file's bytes; None for a directory."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def seal(body: Mapping[str, Any]) -> dict[str, Any]:
    """The record with its hash: what is written to disk."""
    record = finite({"schema": SCHEMA, "kind": KIND, **body})
    return record | {"seal": digest(record)}


def write_seal(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a new file.

    Raises:
        AnalysisError: the file is there already, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(json.dumps(record, indent=1, allow_nan=False) + "\n")
    except FileExistsError as error:
        raise AnalysisError(
            f"{path} is there already: a sealed forecast is never overwritten; choose another name"
        ) from error
    except OSError as error:
        raise AnalysisError(f"{path} cannot be written: {error.strerror}") from error


def read_seal(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The record, and why its seal is broken (empty where it is whole).

    Raises:
        AnalysisError: no such file, or it holds no sealed forecast.
    """
    try:
        text = shipped_file(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AnalysisError(f"{path} cannot be read: {error}") from error
    with saved(text, "forecast") as record:
        if record.get("kind") != KIND or record.get("schema") != SCHEMA:
            raise AnalysisError(f"{path} is no sealed forecast of schema {SCHEMA}: give a file "
                                "that `linscale forecast -o` wrote")  # fmt: skip
        body = {k: v for k, v in record.items() if k != "seal"}
        broken: list[str] = []
        if digest(body) != record["seal"]:
            broken.append("the file was altered after it was sealed: its hash does not match")
        if digest(record["data"]["used"]) != record["data"]["sha256"]:
            broken.append("the rows listed as used are not those whose hash was sealed")
        return record, broken


def changed_inputs(
    used: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]
) -> list[str]:
    """What became of the rows that were used, against the rows of a source today.

    Args:
        used: rows with group, run_id, n, d, c and loss, as sealed (None for what was not known).
        now: the same of the source.

    Returns:
        A sentence for each row that changed or went, at most five and a count.
    """
    there: dict[tuple[Any, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for row in now:
        there[row["group"], row["loss"]].append(row)
    told: list[str] = []
    for row in used:
        same = there[row["group"], row["loss"]]
        found = next((i for i, other in enumerate(same) if _at_one_place(row, other)), None)
        if found is not None:
            del same[found]
            continue
        moved = [r["loss"] for r in now if r["run_id"] == row["run_id"] and _at_one_place(row, r)]
        told.append(
            f"{row['run_id']}: loss was {row['loss']:.6g} and is {moved[0]:.6g}"
            if moved
            else f"{row['run_id']}: the row with loss {row['loss']:.6g} is gone or has moved"
        )
    rest = len(told) - 5
    return told if rest <= 0 else [*told[:5], f"and {rest} more"]


def holds_any(used: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a source has any row where one was used, whatever its loss."""
    places: dict[tuple[str, ...], set[tuple[Any, ...]]] = {}
    for row in used:
        keys = tuple(k for k in ("n", "d", "c") if row[k] is not None)
        if keys not in places:
            places[keys] = {_place(r, keys) for r in now if all(r[k] is not None for k in keys)}
        if _place(row, keys) in places[keys]:
            return True
    return False


def _place(row: Mapping[str, Any], keys: Sequence[str]) -> tuple[Any, ...]:
    return row["group"], *(round(math.log(row[k]), 8) for k in keys)


def _at_one_place(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two rows agree in group and in all of N, D and C that the first knows."""
    return row["group"] == other["group"] and all(
        row[k] is None or (other[k] is not None and math.isclose(row[k], other[k], rel_tol=1e-9))
        for k in ("n", "d", "c")
    )


def provenance(folder: Path) -> dict[str, Any]:
    """Versions of what computed, and the git revision of a folder's repository (None outside)."""
    versions = {"python": platform.python_version()}
    for package in ("linscale", "numpy", "scipy", "pandas"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    revision = _git(folder, "rev-parse", "HEAD")
    changes = None if revision is None else _git(folder, "status", "--porcelain")
    return {"versions": versions, "git_revision": revision,
            "git_changes": None if changes is None else bool(changes)}  # fmt: skip


def _git(folder: Path, *words: str) -> str | None:
    try:
        return subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=20,
            check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None

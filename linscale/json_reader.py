"""The one reader of JSON that somebody wrote: every field has a type and a range.

    read_object(run / "config.json")    -> Fields, or BadRecord with the file and the reason
    fields.part("model").whole("dim", 1, 10**7)
    fields.number("n_total", above=0)
    fields.word("state", default="planned")

A field that is absent, of another type, not finite or out of its range is a `BadRecord` that names
file, field, value and what was expected. Nothing here raises anything else, whatever the bytes are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Protocol

from linscale.errors import LinscaleError
from linscale.texts import clean, quote

LARGEST = 2**28
"""Bytes of JSON beyond which it is not parsed; a saved fit with its draws is the largest."""
DEEPEST = 40
"""Levels of nesting; a run's records have five."""
COUNT = 10**18
"""Upper bound of counts: parameters, tokens, bytes."""


class File(Protocol):
    """What is read: a `pathlib.Path`, or a file in a zip."""

    @property
    def name(self) -> str: ...
    def is_file(self) -> bool: ...
    def read_bytes(self) -> bytes: ...


class BadRecord(LinscaleError, ValueError):
    """A file that holds something else than it should; the message names file, field and value."""


class Fields:
    """A JSON object with its place in the file, for reading typed fields."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = dict(values)
        self.where = where

    def has(self, name: str) -> bool:
        """Whether a field is there and not null."""
        return self.values.get(name) is not None

    def part(self, name: str, default: Mapping[str, Any] | None = None) -> Fields:
        """An object in this one; `default` where it is absent or null."""
        value = self._get(name, default)
        if not isinstance(value, dict):
            raise self._wrong(name, value, "an object")
        dot = " " if self.where.endswith((".json", ".jsonl")) else "."
        return Fields(value, f"{self.where}{dot}{name}")

    def word(self, name: str, default: str | None = None) -> str:
        """A text, as one printable line."""
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a text")
        return clean(value)

    def number(
        self, name: str, default: float | None = None, *, above: float = -math.inf,
        most: float = 1e60,
    ) -> float:  # fmt: skip
        """A finite number, larger than `above` and at most `most`."""
        value = self._get(name, default)
        if value is default:
            return value
        number = as_number(value)
        if not (math.isfinite(number) and above < number <= most):
            low = "" if above == -math.inf else f" above {above:g}"
            raise self._wrong(name, value, f"a number{low}")
        return number

    def whole(self, name: str, low: int, high: int = COUNT, default: int | None = None) -> int:
        """A whole number from `low` to `high`; 3.0 counts as one."""
        value = self._get(name, default)
        number = as_number(value)
        if not (low <= number <= high and number == int(number)):
            raise self._wrong(name, value, f"a whole number from {low:,} to {high:,}")
        return int(number)

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def words(self, name: str) -> list[str]:
        """A list of texts; empty where it is absent."""
        value = self._get(name, [])
        if not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
            raise self._wrong(name, value, "a list of texts")
        return [clean(v) for v in value]

    def list_of(self, name: str) -> list[dict[str, Any]]:
        """A list of objects; empty where it is absent."""
        value = self._get(name, [])
        if not (isinstance(value, list) and all(isinstance(v, dict) for v in value)):
            raise self._wrong(name, value, "a list of objects")
        return value

    def _get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is not None:
            return value
        if default is None:
            there = "is null" if name in self.values else "is missing"
            raise BadRecord(f"{self.where}: the field {name} {there}")
        return default

    def _wrong(self, name: str, value: object, wanted: str) -> BadRecord:
        return BadRecord(f"{self.where}: {name} is {quote(value)}, not {wanted}")


def read_object(path: File) -> Fields:
    """The JSON object in a file.

    Raises:
        BadRecord: there is no such file, or no object can be read from it.
    """
    name = path.name
    if not path.is_file():
        raise BadRecord(f"{name} is missing")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadRecord(f"{name} cannot be read: {clean(str(error))}") from error
    return parse_object(data, name)


def find_object(path: File) -> Fields:
    """`read_object` of a file that may be absent: then an object without fields.

    Raises:
        BadRecord: it is there, and no object can be read from it.
    """
    return read_object(path) if path.is_file() else Fields({}, path.name)


def parse_object(data: bytes | str, name: str) -> Fields:
    """The JSON object in a text.

    Raises:
        BadRecord: too large, not UTF-8, not JSON, nested too deeply, or something else than an
            object.
    """
    value = parse(data, name)
    if not isinstance(value, dict):
        raise BadRecord(f"{name} holds {_kind(value)}, not an object")
    return Fields(value, name)


def parse(data: bytes | str, name: str) -> Any:
    """Any JSON value.

    Raises:
        BadRecord: too large, not UTF-8, not JSON, or nested too deeply.
    """
    if len(data) > LARGEST:
        raise BadRecord(f"{name} has {len(data):,} bytes, more than {LARGEST:,}")
    if not data.strip():
        raise BadRecord(f"{name} is empty")
    try:
        value = json.loads(data.decode("utf-8-sig") if isinstance(data, bytes) else data)
    except UnicodeDecodeError as error:
        raise BadRecord(f"{name} is not UTF-8 text (byte {error.start})") from None
    except RecursionError:
        raise BadRecord(f"{name} is nested too deeply") from None
    except ValueError as error:
        raise BadRecord(f"{name} is not JSON ({clean(str(error), 100)})") from None
    if too_deep(value):
        raise BadRecord(f"{name} is nested more than {DEEPEST} levels deep")
    return value


def parse_lines(data: bytes) -> tuple[list[dict[str, Any]], int]:
    """The objects of a file with one a line, and the number of lines that are none."""
    lines = [s for s in data.decode("utf-8", errors="replace").split("\n") if s.strip()]
    try:  # One call for all lines is twice as fast as one call a line.
        values = json.loads(f"[{','.join(lines)}]")
    except (ValueError, RecursionError):
        values = []
    if len(values) != len(lines):  # also two objects on one line, or one on two
        values = [_line(line) for line in lines]
    records = [v for v in values if isinstance(v, dict) and not too_deep(v)]
    return records, len(values) - len(records)


def _line(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def too_deep(value: Any) -> bool:
    """Whether a value is nested more than `DEEPEST` levels."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def as_number(value: object) -> float:
    """A JSON number as a float; NaN for everything else, and for what no float can hold."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.nan
    return math.nan


def as_list(value: object) -> list[Any]:
    """A JSON list; an empty one for everything else."""
    return value if isinstance(value, list) else []


def as_object(value: object) -> dict[str, Any]:
    """A JSON object; an empty one for everything else."""
    return value if isinstance(value, dict) else {}


def is_name(text: str) -> bool:
    """Whether a text from a file may be the name of a file or folder: never a path."""
    return text not in ("", ".", "..") and not set(text) & set("/\\\0") and text.isprintable()


def _kind(value: object) -> str:
    if isinstance(value, list):
        return "a list"
    return "null" if value is None else quote(value)

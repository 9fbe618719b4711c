"""Cells of a column to numbers: what a comma, a unit or a ± means, decided once for the column.

    read_cells(cells, "tokens", count=True)  -> Cells: values, noise, bad cells, what was assumed

    70M  1.4B  160G  20 million  2e7 params        units, in counts only
    1,234,567  20 000 000  20.000.000  20_000      thousands
    2,71  1.234,5                                  decimal commas
    3.51 ± 0.004   3.51 +/- 0.004                  a value and its noise
    1.5×10^6  1.5 x 10^6  10^20  2·10⁹             powers of ten

A comma before three digits ("5,088") can be either: other cells of the column decide, else a count
has thousands and a loss has decimals, which is said. Cells that need both readings are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.units import Array
from linscale.texts import quote

UNITS = {
    "k": 1e3, "thousand": 1e3, "m": 1e6, "mn": 1e6, "mio": 1e6, "million": 1e6, "millions": 1e6,
    "b": 1e9, "bn": 1e9, "g": 1e9, "billion": 1e9, "billions": 1e9, "t": 1e12, "trillion": 1e12,
    "trillions": 1e12,
}  # fmt: skip
EMPTY = {"", "-", "--", "—", "?", "na", "n/a", "#n/a", "nan", "none", "null", "nil", "missing"}
"""What stands for no value, in lower case."""
_NAMED = re.compile(r"\s*\b(params?|parameters?|tokens?|toks?|flops?|nats)$", re.IGNORECASE)
_NOISE = re.compile(r"(?P<value>.+?)\s*(?:±|\+/-|\+-)\s*(?P<noise>.+)")
_POWER = re.compile(
    r"(?:(?P<front>[\d.,]+)\s*[×x*·]\s*)?10\s*(?:\^|\*\*)\s*\{?(?P<power>[+-]?\d+)\}?"
)
_RAISED = re.compile("10([⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+)")
_LOWERED = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "+-0123456789")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_UNIT = re.compile(r"(?P<number>[\d.,_'\s+\-eE]*?[\d.])\s*(?P<unit>[A-Za-z]+)")
_SPACED = re.compile(r"\d{1,3}(?:[ _'\u2019]\d{3})+(?:[.,]\d+)?")
_MANY_DOTS = re.compile(r"\d{1,3}(?:\.\d{3}){2,}")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3}){2,}(?:\.\d+)?|\d{1,3}(?:,\d{3})+\.\d+")
_DECIMAL = re.compile(r"(?:\d{1,3}(?:\.\d{3})+|\d*),\d+(?:[eE][+-]?\d+)?")
_EITHER = re.compile(r"[1-9]\d{0,2},\d{3}")
_MANTISSA = re.compile(r"[+-]?\d{1,2},\d+\s*(?:[eE][+-]?\d|[×x*·]\s*10).*")
"""Before a power of ten a comma marks decimals: nobody groups the digits of a mantissa."""


@dataclass
class Cells:
    """A column that was read."""

    values: Array
    """(rows,), NaN where a cell is empty or no number."""
    noise: Array
    """(rows,), NaN where a cell has no ±."""
    bad: dict[int, str]
    """Row -> the cell that is no number."""
    notes: list[str] = field(default_factory=list[str])
    unit: str = ""
    """The first cell with a unit; empty where none has one."""

    @property
    def mostly_numbers(self) -> bool:
        """Whether at least half of the cells that are not empty are numbers, and one is."""
        good = int(np.isfinite(self.values).sum())
        return good > 0 and good >= len(self.bad)


def read_cells(cells: Iterable[object], name: str, *, count: bool) -> Cells:
    """Reads a column.

    Args:
        cells: as they are in the file.
        name: of the column, for messages.
        count: whether units (70M) may stand in it, and a comma marks thousands where nothing tells.

    Raises:
        AnalysisError: cells that mean a comma or a dot in two ways.
    """
    found = list(cells)
    out = Cells(_plainly(found), np.full(len(found), math.nan), {})
    # Most cells of most columns are plain numbers, which were read at once.
    unread = np.flatnonzero(~np.isfinite(out.values)).tolist()
    rest = {i: _normal(cell) for i in unread if isinstance(cell := found[i], str)}
    with_comma = [text for text in rest.values() if "," in text]
    comma = _comma(with_comma, found, name, count) if with_comma else "thousands"
    dots = next((text for text in rest.values() if _MANY_DOTS.search(text)), None)
    if dots is not None:
        rest = {i: _normal(cell) for i, cell in enumerate(found) if isinstance(cell, str)}
        _no_decimal_dots(rest.values(), dots, name)
    said: dict[str, str] = {}
    for i, text in rest.items():
        cell = found[i]
        out.values[i] = math.nan
        if text.lower() in EMPTY:
            continue
        split = _NOISE.fullmatch(text)
        if split:
            text, out.noise[i] = split["value"], _value(split["noise"], comma, dots is not None)
        text = _NAMED.sub("", text)
        value = _value(text, comma, dots is not None)
        if math.isnan(value) and count and (match := _UNIT.fullmatch(text)):
            factor = UNITS.get(match["unit"].lower(), math.nan)
            value = _value(match["number"].strip(), comma, dots is not None) * factor
            if math.isfinite(value):
                out.unit = out.unit or str(cell)
                said.setdefault("unit", f"{cell} read as {value:g}")
        if math.isnan(value) and text.lower() not in ("nan", "inf", "-inf"):
            out.bad[i] = str(cell)
        elif "," in text or _SPACED.search(text) or _MANY_DOTS.search(text):
            said.setdefault("number", f"{cell} read as {value:.10g}")
        out.values[i] = value
    if comma == "decimal":
        out.notes.append(f"{name!r}: a comma marks decimals")
    out.notes += [f"{name!r}: {text}" for text in said.values()]
    if np.isfinite(out.noise).any():
        out.notes.append(f"{name!r}: what follows ± is taken as the noise of a row")
    return out


def _plainly(cells: list[object]) -> Array:
    """Cells that need no interpretation; NaN for all others."""
    values: Any = pd.to_numeric(pd.Series(cells, dtype=object), errors="coerce")
    return np.array(values, dtype=np.float64)


def _normal(cell: str) -> str:
    text = cell.strip().replace("\u2212", "-")
    text = _RAISED.sub(lambda m: "10^" + m[1].translate(_LOWERED), text)
    return re.sub(r"[\u00a0\u2009\u202f\u2007]", " ", text)


def _value(text: str, comma: str, dots: bool) -> float:
    """A number without unit; NaN for anything else."""
    text = text.strip()
    if match := _POWER.fullmatch(text):
        front = _value(match["front"], comma, dots) if match["front"] else 1.0
        power = int(match["power"])
        return front * 10.0**power if abs(power) < 300 else math.nan
    if _SPACED.fullmatch(text):
        text = re.sub(r"[ _'\u2019]", "", text)
    if comma == "decimal":
        text = text.replace(".", "") if "," in text else text
        text = text.replace(",", ".")
    elif _THOUSANDS.fullmatch(text) or _EITHER.fullmatch(text):
        text = text.replace(",", "")
    if dots and re.fullmatch(r"\d{1,3}(?:\.\d{3})+", text):
        text = text.replace(".", "")
    if _NUMBER.fullmatch(text):
        return float(text)
    return math.inf if text.lower() in ("inf", "+inf", "infinity") else math.nan


def _comma(with_comma: list[str], cells: list[object], name: str, count: bool) -> str:
    """`thousands` or `decimal`: what a comma means in the cells of a column.

    Raises:
        AnalysisError: they say both.
    """

    def first(pattern: re.Pattern[str], among: list[str]) -> str | None:
        cores = ((t, re.split(r"\s*(?:±|\+/-|\+-|[A-Za-z×])", t)[0].strip()) for t in among)
        return next((t for t, core in cores if pattern.fullmatch(core)), None)

    either = first(_EITHER, with_comma)
    thousands = first(_THOUSANDS, with_comma)
    decimal = first(re.compile(f"(?!{_EITHER.pattern}$)(?:{_DECIMAL.pattern})"), with_comma)
    decimal = decimal or next((t for t in with_comma if _MANTISSA.fullmatch(t)), None)
    if thousands and decimal:
        raise AnalysisError(
            f"column {name!r}: the comma in {quote(thousands)} marks thousands and in "
            f"{quote(decimal)} decimals: write all cells in one way"
        )
    dotted = first(re.compile(r"[+-]?\d+\.\d+"), [c for c in cells if isinstance(c, str)])
    if not count and (either or decimal) and dotted:
        raise AnalysisError(
            f"column {name!r}: {quote(either or decimal)} has a comma and {quote(dotted)} a dot: "
            "write the decimals of all cells in one way"
        )
    if thousands:
        return "thousands"
    if decimal:
        return "decimal"
    return "thousands" if count or not either else "decimal"


def _no_decimal_dots(texts: Iterable[str], dots: str, name: str) -> None:
    for text in texts:
        if re.fullmatch(r"\d+\.\d+", text) and not re.fullmatch(r"\d{1,3}\.\d{3}", text):
            raise AnalysisError(
                f"column {name!r}: the dots in {quote(dots)} mark thousands and in {quote(text)} "
                "decimals: write all cells in one way"
            )

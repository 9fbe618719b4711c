"""Where a figure will be printed: widths of columns, size and family of letters.

    with presets.use("icml-single-serif"):
        figure = fit.plot()

A name is a venue, then optionally which column, then optionally the family:

    house                    pages and notebooks (default): 4.6 to 8.4 in, sans, 8.5 pt
    neurips                  one text column of 5.5 in, 8 pt
    icml                     3.25 in for figures of one panel, 6.75 in for others, 7 pt
    icml-single, -double     all of them in one column of 3.25 in, or across both
    ...-serif, ...-sans      Times-like letters (STIX), or DejaVu Sans (default)

Widths: the style files of NeurIPS 2025 (text) and ICML 2025 (column and text).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from analysis.errors import AnalysisError

_BASE = 8.5
"""Size of letters of the house, in points; other sizes in the code are relative to it."""
_LEAST = 5.5
_FLATTEST = 0.72
"""Heights shrink less than widths: letters keep their size."""


@dataclass(frozen=True)
class Preset:
    """One venue."""

    single: float | None = None
    """Width in inches of a figure of one panel; None: as the figure asks."""
    double: float | None = None
    """Width of the others."""
    size: float = _BASE
    """Points."""
    serif: bool = False

    def fit(self, width: float, height: float, columns: int) -> tuple[float, float]:
        """Inches of a figure that asked for `width` x `height`, by its columns of panels."""
        target = self.single if columns == 1 else self.double
        if target is None:
            return width, height
        return target, height * min(1.0, max(target / width, _FLATTEST))

    def fonts(self) -> dict[str, Any]:
        """Matplotlib settings."""
        family = "STIXGeneral" if self.serif else "DejaVu Sans"
        return {"font.family": family, "mathtext.fontset": "stix" if self.serif else "dejavusans"}


_VENUES = {
    "house": Preset(),
    "neurips": Preset(5.5, 5.5, 8.0),
    "icml": Preset(3.25, 6.75, 7.0),
}
_current: ContextVar[Preset] = ContextVar("preset", default=_VENUES["house"])


def preset(name: str) -> Preset:
    """The preset of a name.

    Raises:
        AnalysisError: no such venue, column or family.
    """
    venue, *rest = name.lower().split("-")
    found = _VENUES.get(venue)
    for word in rest if found is not None else ():
        if word in ("single", "double") and found is not None and found.single is not None:
            width = found.single if word == "single" else found.double
            found = replace(found, single=width, double=width)
        elif word in ("serif", "sans") and found is not None:
            found = replace(found, serif=word == "serif")
        else:
            found = None
    if found is None:
        raise AnalysisError(
            f"style {name!r}: give {', '.join(_VENUES)}, then optionally -single or -double "
            "(neurips, icml), then optionally -serif or -sans, such as icml-single-serif"
        )
    return found


@contextmanager
def use(name: str) -> Iterator[None]:
    """Draws in the style of a name within a `with` block."""
    token = _current.set(preset(name))
    try:
        yield
    finally:
        _current.reset(token)


def current() -> Preset:
    """The preset in force."""
    return _current.get()


def pt(size: float) -> float:
    """Points of letters that have `size` in the house."""
    return max(min(_LEAST, size), size * current().size / _BASE)

"""Numbers with a suffix, for tables, messages and figures."""

from __future__ import annotations

SUFFIXES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def si(value: float) -> str:
    """Three significant digits and a suffix: 24.7k, 3.54M, 300B, 250.

    A number that rounds to a thousand of one suffix has one of the next (999,600 is 1M), and from a
    thousand T on there is a power of ten.
    """
    for factor, suffix in SUFFIXES:
        if 0.9995 * factor <= value < 999.5 * factor:
            return f"{value / factor:.3g}{suffix}"
    return f"{value:.3g}"

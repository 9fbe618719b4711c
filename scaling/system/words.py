"""Numbers as people read them: in tables, messages and logs."""

from __future__ import annotations


def si(value: float) -> str:
    """A number with three significant digits and a suffix: 906M, 3.93M, 300B, 250."""
    for factor, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{suffix}"
    return f"{value:.3g}"


def size(count: float) -> str:
    """Bytes with a binary suffix: 512 MiB, 1.5 GiB, 4.77 TiB."""
    if count >= 2**40:
        return f"{count / 2**40:.2f} TiB"
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def duration(seconds: float | None) -> str:
    """A time in the unit that fits: 45 s, 3:20 min, 2:05 h, 1,234 h; empty where it is unknown."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 6000:
        return f"{whole // 60}:{whole % 60:02d} min"
    if whole < 360_000:
        return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
    return f"{seconds / 3600:,.0f} h"


def wall(seconds: float) -> str:
    """A waiting time: as `duration`, but 4 days and more in days."""
    return duration(seconds) if seconds < 4 * 86_400 else f"{seconds / 86_400:,.0f} days"


def speed(tokens_per_second: float | None) -> str:
    """Tokens a second, without the unit; empty where it is not known."""
    return f"{tokens_per_second:,.0f}" if tokens_per_second else ""


def percent(value: float | None) -> str:
    """A share, such as 38.2%; empty where it is not known."""
    return "" if value is None else f"{value:.1%}"


def nats(loss: float | None) -> str:
    """A loss with four digits; empty where there is none."""
    return "" if loss is None else f"{loss:.4f}"


def counted(number: int, noun: str) -> str:
    """`1 run`, `3 runs`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"

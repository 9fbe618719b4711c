"""Numbers for people."""

from __future__ import annotations

import pytest

from scaling.system.words import counted, duration, nats, percent, size, speed, wall


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0.4, "0 s"),
        (99.4, "99 s"),
        (200, "3:20 min"),
        (7500, "2:05 h"),
        (359_999, "99:59 h"),
        (4_442_400, "1,234 h"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_one_is_not_many() -> None:
    assert [counted(n, "run") for n in (0, 1, 2, 1200)] == [
        "0 runs",
        "1 run",
        "2 runs",
        "1,200 runs",
    ]


def test_waiting_is_in_days() -> None:
    assert [wall(s) for s in (200, 86_400, 4 * 86_400, 10_057 * 3600)] == [
        "3:20 min", "24:00 h", "4 days", "419 days",
    ]  # fmt: skip


def test_sizes_speeds_shares_and_losses() -> None:
    assert [size(n) for n in (512 * 2**20, 1.5 * 2**30, 4.77 * 2**40)] == [
        "512 MiB",
        "1.5 GiB",
        "4.77 TiB",
    ]
    assert [speed(s) for s in (None, 0.0, 12345.6)] == ["", "", "12,346"]
    assert [percent(s) for s in (None, 0.382)] == ["", "38.2%"]
    assert [nats(s) for s in (None, 2.5)] == ["", "2.5000"]

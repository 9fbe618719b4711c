"""Numbers with a suffix."""

from __future__ import annotations

import pytest

from linscale.si import si


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (12, "12"),
        (999, "999"),
        (999.6, "1k"),
        (1234, "1.23k"),
        (24_704, "24.7k"),
        (999_400, "999k"),
        (999_999, "1M"),
        (2_500_000, "2.5M"),
        (3e11, "300B"),
        (1.5e13, "15T"),
        (1e15, "1e+15"),
        (-1234, "-1.23e+03"),
    ],
)
def test_three_digits_and_a_suffix(value: float, text: str) -> None:
    assert si(value) == text

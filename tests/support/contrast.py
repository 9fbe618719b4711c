"""Contrast of colours, as WCAG 2.2 defines it: (L1 + 0.05) / (L2 + 0.05) of relative luminances."""

from __future__ import annotations


def luminance(colour: str) -> float:
    """Of #rgb or #rrggbb."""
    digits = colour.lstrip("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits[:6]
    linear: list[float] = []
    for i in (0, 2, 4):
        value = int(digits[i : i + 2], 16) / 255
        linear.append(value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4)
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """From 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)

"""Bytes damaged as machines damage them."""

from __future__ import annotations

import numpy as np

KINDS = 3


def damage(data: bytes, kind: int, at: int, rng: np.random.Generator) -> bytes:
    """Cut off (0), a bit flipped (1), or bytes put in (2) at a place."""
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :]
    return data[:at] + rng.bytes(int(rng.integers(1, 40))) + data[at:]

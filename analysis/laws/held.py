"""What a law of further columns holds where N and D are traded: its optimum is one at a setting.

    ratio   total over active parameters (t = ratio N)
    bits    of the weights (p)
    share   of a source (s)

Along a budget these do not change, so that `experts`, `precision` and `mixture` become a floor and
A / N^alpha + B / D^beta with coefficients and exponents that depend on the setting.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from analysis.laws.power_sum import Columns
from analysis.units import Array

Held = Mapping[str, float]
ROLES = {"t": "ratio", "p": "bits", "s": "share"}
"""Name of the setting by the role of the column."""
_WORDS = {"ratio": "total / active parameters", "bits": "bits of the weights",
          "share": "share of the source"}  # fmt: skip


def medians(roles: tuple[str, ...], columns: Columns) -> dict[str, float]:
    """The median setting of the points of a law with these roles, one that runs have."""
    found = {name: columns[role] for role, name in ROLES.items() if role in roles}
    if "ratio" in found:
        found["ratio"] = found["ratio"] / columns["n"]
    return {k: float(np.quantile(v, 0.5, method="lower")) for k, v in found.items()}


def columns_at(held: Held, n: Array, d: Array) -> dict[str, Array]:
    """Columns by role at sizes n and tokens d under a setting, of one shape."""
    n, d = np.broadcast_arrays(np.asarray(n, dtype=float), np.asarray(d, dtype=float))
    found = {"n": n, "d": d}
    for role, name in ROLES.items():
        if name in held:
            found[role] = held[name] * n if role == "t" else np.full_like(n, held[name])
    return found


def describe(held: Held) -> str:
    """A setting in words; "" for none."""
    return ", ".join(f"{_WORDS[name]} = {value:.4g}" for name, value in held.items())

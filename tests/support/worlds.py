"""Synthetic suites of runs with known laws, for tests of the fitting engine."""

from __future__ import annotations

import numpy as np
import pandas as pd

TRUTH = {"E": 1.69, "A": 406.4, "alpha": 0.34, "B": 410.7, "beta": 0.28}
"""Hoffmann et al. 2203.15556, Table A3."""


def loss_of(n: np.ndarray, d: np.ndarray, law: dict[str, float] | None = None) -> np.ndarray:
    """L(N, D) written out, independent of the package."""
    p = law or TRUTH
    return p["E"] + p["A"] / n ** p["alpha"] + p["B"] / d ** p["beta"]


def optimum_of(compute: float, law: dict[str, float] | None = None) -> tuple[float, float, float]:
    """N*, D* and loss under C = 6 N D by brute force over a fine grid."""
    n = np.geomspace(1e5, 1e14, 2_000_001)
    d = compute / (6 * n)
    best = int(loss_of(n, d, law).argmin())
    return float(n[best]), float(d[best]), float(loss_of(n, d, law)[best])


def suite(
    *,
    sizes: int = 5,
    ratios: tuple[float, ...] = (5.0, 10.0, 20.0, 60.0, 180.0),
    noise: float = 0.0,
    seed: int = 0,
    runs: str = "point",
    law: dict[str, float] | None = None,
    arch: str = "x",
) -> pd.DataFrame:
    """Runs of `sizes` models at each tokens-per-parameter ratio.

    `runs`: "point" makes every point a run of its own; "size" makes one run of all points of a
    size, with most of its noise in common, as checkpoints of one training have.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for i, n in enumerate(np.geomspace(3e7, 1e9, sizes)):
        shared = rng.standard_normal()
        for j, ratio in enumerate(ratios):
            own = rng.standard_normal()
            error = own if runs == "point" else 0.8 * shared + 0.6 * own
            d = n * ratio
            rows.append({
                "arch": arch, "size": f"s{i:02d}", "n_params": n, "tokens": d, "flops": 6 * n * d,
                "run_id": f"{arch}-{i:02d}-{j:02d}" if runs == "point" else f"{arch}-{i:02d}",
                "loss": float(loss_of(n, d, law)) * np.exp(noise * error),
            })  # fmt: skip
    return pd.DataFrame(rows)

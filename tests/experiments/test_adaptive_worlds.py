"""The worlds of the adaptive benchmark: their truth against closed forms, their costs by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.io.frames import numbers, where
from experiments.benchmarks.adaptive import table
from experiments.benchmarks.adaptive_worlds import WORLDS, simulated, world_of


def test_truth_is_that_of_the_closed_form() -> None:
    """N* ~ C^a with a = beta / (alpha + beta), Hoffmann et al. (2022), equation 4."""
    world = simulated("chinchilla", 3)
    rng = np.random.default_rng([3, WORLDS.index("chinchilla")])
    _, alpha, beta, gap = (rng.uniform(*ends) for ends in
                           ((1.2, 2.0), (0.28, 0.4), (0.28, 0.4), (-0.12, 0.12)))  # fmt: skip
    assert world.truth["a of llama"] == pytest.approx(beta / (alpha + beta), abs=1e-4)
    assert world.truth["a of tnl"] == pytest.approx(beta / (alpha + 0.3 * gap + beta), abs=1e-4)


@pytest.mark.parametrize("kind", WORLDS)
def test_a_world_has_the_ladder_that_is_described(kind: str) -> None:
    world = world_of(f"{kind} 0")
    assert len(world.costs) == 2 * 7 * 4
    assert len(world.grid) == 2 * (7 + 2 * 3)
    run = where(world.points, unit=world.grid[0])
    n = numbers(run, "n_params")[0]
    # 6 N D at every horizon, and each horizon's decay over its last 15 %.
    paid = [1.0, 2.0 + 0.15, 4.0 + 0.15 * 3, 8.0 + 0.15 * 7]
    np.testing.assert_allclose(numbers(run, "cost"), 6 * n * 1e9 * np.array(paid), rtol=1e-12)
    assert world.costs[world.grid[0]] == pytest.approx(6 * n * 9.05e9)


def test_the_table_counts_worlds_and_intervals() -> None:
    """Three worlds of hand-written rows; one way ends without its width."""
    shares, holds = (0.5, 0.7, 1.6), ([True, False], [True, True], [])
    found = pd.DataFrame([
        {"world": f"gamma {k}", "way": "adaptive", "quantity": "a", "slack": 1.0,
         "share": share, "reached": share < 1.6, "holds": held}
        for k, (share, held) in enumerate(zip(shares, holds, strict=True))
    ])  # fmt: skip
    line = table(found, 1.0)[-1]
    assert line.startswith("| a of both | adaptive | 3 | 0.70 | 0.93 | 1.42 | 67% | 0.75 (")

"""The toy IsoFLOP grid is enough for the report that the tutorial asks for."""

from __future__ import annotations

from collections import Counter

from experiments.isoflop import TOY_BUDGETS, runs
from models.config import ARCHS
from scaling.plan.plan import isoflop_horizons


def test_every_architecture_has_a_law_and_every_budget_a_valley() -> None:
    made = runs(toy=True)
    assert min(Counter(run.model.arch for run in made).values()) >= 4  # intervals over runs
    for budget in TOY_BUDGETS:
        on_it = [run for run in made if isoflop_horizons(run.model, 256, (budget,))]
        sizes = Counter(run.model.arch for run in on_it)
        assert set(sizes) == set(ARCHS)
        assert min(sizes.values()) >= 3  # a parabola

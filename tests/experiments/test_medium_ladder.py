"""The medium ladder: its compute, its order, the rates that its search found, and its seals."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from analysis.forecast.scoring import measured
from analysis.forecast.seal import changed_inputs, read_seal
from analysis.io.records import load_sweep
from analysis.io.sweep_files import unpacked
from experiments import medium_ladder, medium_rates
from experiments.lr_transfer import best_rate
from models.accounting import non_embedding_parameters, train_flops_per_token
from models.config import ARCHS

EXPERIMENTS = Path(medium_ladder.__file__).parent


def test_a_hundredfold_range_at_the_stated_compute() -> None:
    runs = medium_ladder.runs()
    assert len({run.run_id for run in runs}) == len(runs) == 52
    assert all(len(run.horizon_steps) == 4 for run in runs)
    cost = {
        run.name: run.steps * run.tokens_per_step * train_flops_per_token(run.model, 256)["total"]
        for run in runs
    }
    assert max(cost.values()) == pytest.approx(1.5e14, rel=0.01)
    small = [cost[f"{arch}-d{dim}-s{seed}"] for arch in ARCHS for dim in medium_ladder.SEEDED
             for seed in medium_ladder.SEEDS]  # fmt: skip
    assert max(small) == pytest.approx(1.5e14 / 64, rel=0.01)
    for arch in ARCHS:
        sizes = [non_embedding_parameters(run.model) for run in runs if run.model.arch == arch]
        assert min(sizes) < 28_000
        assert max(sizes) > 2_500_000
    longest = max(run.steps * run.tokens_per_step for run in runs)
    assert longest < 0.7 * 66_386_094  # bytes of training text: less than one pass
    first = [run.size for run in runs]
    assert first[:12] == [f"d{dim}" for dim in (32, 48, 64) for _ in ARCHS]
    assert first[-4:] == ["d176"] * 4


def test_rates_are_those_of_the_kept_search() -> None:
    with unpacked(EXPERIMENTS / "results" / "medium_rates.zip") as folder:
        found = medium_rates.curves(folder)
    assert sum(map(len, found.values())) == 48
    for arch in ARCHS:
        narrow, wide = (best_rate(found[arch, dim, 2048]) for dim in (32, 96))
        at, power = medium_ladder.RATES[arch]
        assert math.log2(at) == pytest.approx(narrow, abs=0.006)
        assert power == pytest.approx((wide - narrow) / math.log2(3), abs=0.006)


def test_seals_are_whole() -> None:
    record, broken = read_seal(EXPERIMENTS / "forecasts" / "medium_ladder_from_small.json")
    assert broken == []
    assert record["existed"]["finished"] == record["existed"]["recorded"] == []
    now = measured(load_sweep(EXPERIMENTS / "results" / "small_ladder.zip"))
    assert changed_inputs(record["data"]["used"], now) == []
    ids = {run.run_id for run in medium_ladder.runs() if run.size in ("d128", "d176")}
    assert {forecast["run_id"] for forecast in record["forecasts"]} == ids

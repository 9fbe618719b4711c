"""Plans: budgets, memory and the rows of `linscale plan`."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.accounting import non_embedding_parameters, train_flops_per_token
from models.config import ARCHS, ConfigError, paper_config, toy_config
from scaling.config.run import BudgetConfig, DataConfig, ParallelConfig, RunConfig, ScheduleConfig
from scaling.plan.memory import memory
from scaling.plan.plan import (
    devices_needed,
    isoflop_horizons,
    rung,
    tokens_for_flops,
    tokens_for_ratio,
    trained_tokens,
)
from scaling.system.devices import DEVICES, GIB, dense_peak, find_device


def paper_run(arch, size, **parallel):
    return RunConfig(
        name=f"{arch}-{size}",
        size=size,
        model=paper_config(arch, size),
        data=DataConfig(sequence_length=8192, batch_sequences=480),
        schedule=ScheduleConfig(kind="constant"),
        budget=BudgetConfig(tokens=300_000_000_000),
        parallel=ParallelConfig(**({"micro_batch_sequences": 1} | parallel)),
    )


@given(
    arch=st.sampled_from(ARCHS),
    size=st.sampled_from(["70M", "1B", "7B"]),
    flops=st.floats(1e18, 1e24),
    length=st.sampled_from([512, 8192]),
)
def test_token_budget_spends_the_compute_and_not_more(arch, size, flops, length):
    model = paper_config(arch, size)
    tokens = tokens_for_flops(model, length, flops)
    cost = train_flops_per_token(model, length)["total"]
    rounding = 1 + 1e-12  # of one product and one quotient in double precision
    assert tokens * cost <= flops * rounding
    assert flops < (tokens + 1) * cost * rounding


def test_longer_context_buys_fewer_tokens_for_softmax_only():
    for arch in ARCHS:
        model = paper_config(arch, "1B")
        short, long = (tokens_for_flops(model, n, 1e21) for n in (2048, 16384))
        assert (long < short) if arch == "llama" else (long == short)


def test_ratio_counts_non_embedding_parameters():
    model = paper_config("tnl", "410M")
    assert tokens_for_ratio(model, 20) == 20 * non_embedding_parameters(model)


def test_isoflop_profiles_spend_their_budgets_and_drop_extremes():
    model = toy_config("tnl", 64, vocab_size=257)
    budgets = (1e10, 1e12, 3e12, 1e13, 1e17)
    horizons = isoflop_horizons(model, 256, budgets, (5, 100))
    cost = train_flops_per_token(model, 256)["total"]
    size = non_embedding_parameters(model)
    expected = [c / cost for c in budgets if 5 <= c / cost / size <= 100]
    assert 0 < len(expected) < len(budgets)
    assert horizons == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("arch", ARCHS)
def test_states_are_sixteen_bytes_a_parameter_and_shard(arch):
    run = paper_run(arch, "7B")
    one, eight = memory(run, 1), memory(run, 8)
    assert one.states == pytest.approx(8 * eight.states)
    assert one.activations == eight.activations
    # 7B-class models: 6.7e9 parameters and 0.4e9 of embedding at 16 bytes is about 107 GiB.
    assert 95 * GIB < one.states < 125 * GIB


def test_devices_double_until_the_run_fits():
    run = paper_run("llama", "7B", activation_checkpointing="block")
    needed = devices_needed(run, DEVICES["h100"])
    assert needed == 2
    assert memory(run, needed).total <= DEVICES["h100"].memory
    assert memory(run, needed // 2).total > 0.92 * DEVICES["h100"].memory
    assert devices_needed(paper_run("llama", "70M"), DEVICES["h100"]) == 1


def test_micro_batch_that_never_fits_names_the_remedy():
    run = paper_run("llama", "7B", micro_batch_sequences=480)
    with pytest.raises(ConfigError, match=r"llama-7B: .*480 x 8192.*micro_batch_sequences"):
        devices_needed(run, DEVICES["a100"])


def test_rung_of_the_paper():
    row = rung(paper_run("llama", "1B"), DEVICES["h200"])
    assert row.steps == round(300e9 / (480 * 8192))
    assert row.tokens == row.steps * 480 * 8192
    # Table 7's column; its digits are held by the accounting tests, the row carries them through.
    assert row.params == non_embedding_parameters(paper_config("llama", "1B"), "paper")
    assert row.flops == pytest.approx(row.flops_per_token * row.tokens)
    hours = row.flops / (DEVICES["h200"].peak_flops * 0.4) / 3600
    assert row.device_hours == pytest.approx(hours)
    assert math.isfinite(row.memory_per_device)


def test_decay_branches_are_paid_for():
    run = RunConfig(
        name="r",
        model=toy_config("tnl", 32, vocab_size=257),
        data=DataConfig(sequence_length=100, batch_sequences=1),
        schedule=ScheduleConfig(kind="wsd", decay_fraction=0.2),
        budget=BudgetConfig(tokens=10_000, horizons=(2_500, 5_000)),
    )
    # The trunk and the last decay make 10,000; the branches add a fifth of 2,500 and of 5,000.
    assert trained_tokens(run) == 10_000 + 500 + 1_000


def test_unknown_device_suggests_the_nearest():
    with pytest.raises(ConfigError, match="did you mean h200"):
        find_device("h20")


def test_cpu_is_measured_and_peaks_found_by_name():
    cpu = find_device("cpu")
    assert 1e8 < cpu.peak_flops < 1e14
    assert dense_peak("NVIDIA H200") == DEVICES["h200"].peak_flops
    assert dense_peak("NVIDIA GeForce RTX 3090") is None


@pytest.mark.slow
def test_twenty_thousand_runs_are_planned_in_ten_seconds(tmp_path: Path) -> None:
    """Of CPU time, in a process of its own, with reading and table; 8 s on the slow machine that
    this was written on."""
    path = tmp_path / "many.py"
    path.write_text(
        "import dataclasses\n"
        "from experiments.quickstart import runs as some\n\n"
        "def runs():\n"
        "    each = some()\n"
        "    return [dataclasses.replace(r, seed=i) for i in range(1000) for r in each]\n"
    )
    before = os.times()
    command = [sys.executable, "-m", "linscale", "plan", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    after = os.times()
    assert "19,000 more" in result.stdout
    seconds = sum(after[2:4]) - sum(before[2:4])
    assert seconds < 10

"""The memory estimate against the allocator: peak of all CPU allocations in two optimizer steps."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from models.config import ARCHS, ConfigError, ModelConfig, paper_config
from models.language_model import build
from scaling import parallel
from scaling.activations import checkpoint_blocks
from scaling.config import BudgetConfig, DataConfig, ParallelConfig, RunConfig, ScheduleConfig
from scaling.devices import DEVICES, Device
from scaling.memory import USABLE, memory, resolved
from scaling.plan import check_fits, placed, rung

MODES = ("none", "selective", "block")
PRECISIONS = ("fp32", "bf16")
TOY = {"dim": 64, "glu_dim": 176, "heads": 4, "layers": 4}
MIDDLE = {"dim": 256, "glu_dim": 688, "heads": 4, "layers": 6}


def make_run(arch: Any, shape: dict[str, int], sequences: int, **parallel: Any) -> RunConfig:
    return RunConfig(
        name="run",
        model=ModelConfig(arch=arch, vocab_size=257, **shape),
        data=DataConfig(sequence_length=128, batch_sequences=sequences),
        schedule=ScheduleConfig(kind="constant"),
        budget=BudgetConfig(tokens=1_000_000),
        parallel=ParallelConfig(**parallel),
    )


def measured_peak(run: RunConfig, path: Path) -> int:
    """Most bytes allocated at once, in the order in which Lightning's closure works."""
    shape = (run.data.batch_sequences, run.data.sequence_length)
    bf16 = run.parallel.precision == "bf16"
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model = build(run.model)
        checkpoint_blocks(model.blocks, run.parallel.activation_checkpointing)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        tokens = torch.randint(0, 257, shape)
        for _ in range(2):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                loss = model.loss(tokens, tokens).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            del loss
    profiler.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    totals = [e["args"] for e in events if e.get("name") == "[memory]"]
    before = totals[0]["Total Allocated"] - totals[0]["Bytes"]
    return max(t["Total Allocated"] for t in totals) - before


@pytest.mark.parametrize("shape", [TOY, pytest.param(MIDDLE, marks=pytest.mark.slow)])
@pytest.mark.parametrize("arch", ARCHS)
def test_within_fifteen_percent_of_the_allocator(
    arch: Any, shape: dict[str, int], tmp_path: Path
) -> None:
    for mode, precision in itertools.product(MODES, PRECISIONS):
        run = make_run(arch, shape, 4, activation_checkpointing=mode, precision=precision)
        peak = measured_peak(run, tmp_path / "trace.json")
        assert memory(run).total == pytest.approx(peak, rel=0.15), (mode, precision)


def test_sharding_divides_the_states_and_only_them() -> None:
    eight = make_run("tnl", MIDDLE, 8, devices=8, micro_batch_sequences=1)
    ddp, fsdp = memory(eight), memory(eight.override(["parallel.strategy=fsdp"]))
    pairs = memory(eight.override(["parallel.strategy=fsdp", "parallel.shard=2"]))
    assert ddp.states == 2 * pairs.states == 8 * fsdp.states
    assert ddp.activations == fsdp.activations


def paper_run(arch: Any, size: str, **parallel: Any) -> RunConfig:
    return RunConfig(
        name=f"{arch}-{size}",
        model=paper_config(arch, size),
        data=DataConfig(sequence_length=8192, batch_sequences=480),
        schedule=ScheduleConfig(kind="constant"),
        budget=BudgetConfig(tokens=300_000_000_000),
        parallel=ParallelConfig(**({"precision": "bf16"} | parallel)),
    )


def test_a_refusal_names_the_knob_that_makes_it_fit() -> None:
    run = paper_run("llama", "7B", devices=8, strategy="ddp", micro_batch_sequences=1)
    with pytest.raises(ConfigError, match=r"parallel\.strategy=fsdp makes it fit"):
        check_fits(run, DEVICES["h200"])
    check_fits(run.override(["parallel.strategy=fsdp"]), DEVICES["h200"])
    run = paper_run("tnl", "7B", devices=8, strategy="fsdp", micro_batch_sequences=4)
    with pytest.raises(ConfigError, match="activation_checkpointing=block makes it fit"):
        check_fits(run, DEVICES["h200"])
    check_fits(run.override(["parallel.activation_checkpointing=block"]), DEVICES["h200"])


def test_a_cluster_is_used_as_far_as_the_batch_is_shared_evenly() -> None:
    # 480 sequences: not by 64 or 56 devices, but by 48.
    small = placed(paper_run("hgrn2", "70M"), DEVICES["h200"], 8, 8).parallel
    assert (small.nodes, small.devices, small.strategy) == (6, 8, "ddp")
    large = paper_run("hgrn2", "7B", micro_batch_sequences=1)
    assert placed(large, DEVICES["h200"], 8, 8).parallel.strategy == "fsdp"
    # A batch of 3 on a node of 8: three of its devices.
    few = make_run("tnl", TOY, 3)
    assert placed(few, DEVICES["h200"], 1, 8).parallel.devices == 3


@pytest.mark.parametrize(("room", "strategy"), [(1.01, "ddp"), (0.99, "fsdp")])
def test_a_run_decides_auto_as_its_plan_does(
    room: float, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes on a machine whose memory is just enough, or not, for two whole models."""
    run = make_run("tnl", MIDDLE, 4, devices=2, accelerator="cpu")
    host = 2 * memory(run).total * room / USABLE
    machine = Device(name="CPU", peak_flops=1e9, memory=host, efficiency=0.4, is_host=True)
    monkeypatch.setattr(parallel, "host_memory", lambda: host)
    assert parallel.decided(run).parallel.strategy == strategy
    assert rung(run, machine).strategy == strategy
    assert placed(run, machine, nodes=1, per_node=2).parallel.strategy == strategy
    explicit = run.override(["parallel.strategy=ddp"])
    assert parallel.decided(explicit) == explicit


def test_one_device_is_single_even_where_it_does_not_fit() -> None:
    run = make_run("tnl", MIDDLE, 4)
    assert resolved(run, 1.0).parallel.strategy == "single"
    large = paper_run("llama", "7B", micro_batch_sequences=1)
    planned = rung(large, DEVICES["h100"])
    assert planned.strategy == "fsdp"
    assert planned.devices > 1

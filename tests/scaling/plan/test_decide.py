"""Modes of checkpointing and micro-batches that memory decides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from models.config import ModelConfig, paper_config
from scaling.config.recipes import paper_recipe
from scaling.config.run import BudgetConfig, DataConfig, ParallelConfig, RunConfig, ScheduleConfig
from scaling.plan.decide import decide_parallel
from scaling.plan.memory import USABLE, memory
from scaling.plan.plan import place, rung
from scaling.system.devices import DEVICES
from scaling.training import parallel

LEFT_OPEN: dict[str, Any] = {"activation_checkpointing": "auto"}


def make_run(sequences: int = 12, length: int = 1024, **given: Any) -> RunConfig:
    return RunConfig(
        name="run",
        model=ModelConfig(arch="tnl", vocab_size=257, dim=256, glu_dim=688, heads=4, layers=6),
        data=DataConfig(sequence_length=length, batch_sequences=sequences),
        schedule=ScheduleConfig(kind="constant"),
        budget=BudgetConfig(tokens=10_000_000),
        parallel=ParallelConfig(accelerator="cpu", **LEFT_OPEN | given),
    )


def needs(run: RunConfig, mode: str, micro: int) -> float:
    """Bytes of a device that is just large enough for a mode and a micro-batch."""
    there = replace(
        run.parallel,
        strategy="single",
        activation_checkpointing=mode,  # pyright: ignore[reportArgumentType]
        micro_batch_sequences=micro,
    )
    return memory(replace(run, parallel=there)).total / USABLE


def chosen(run: RunConfig, capacity: float) -> tuple[str, int | None]:
    decided = decide_parallel(run, capacity).parallel
    return decided.activation_checkpointing, decided.micro_batch_sequences


@pytest.mark.parametrize(
    ("mode", "micro"), [("none", 12), ("none", 6), ("none", 3), ("none", 1), ("block", 1)]
)
def test_what_a_device_just_holds(mode: str, micro: int) -> None:
    """In words: all at once if it fits, smaller micro-batches of a few thousand tokens before work
    is done again, and everything again where nothing else fits."""
    run = make_run(length=4096)
    assert chosen(run, needs(run, mode, micro) * 1.0001) == (mode, micro)


def test_short_sequences_rather_do_work_again_than_leave_a_device_idle() -> None:
    run = make_run(length=128)
    room = needs(run, "none", 1) * 1.0001
    mode, micro = chosen(run, room)
    assert mode != "none"
    assert micro is not None
    assert micro > 1
    assert needs(run, mode, micro) <= room


def test_what_is_given_stays() -> None:
    run = make_run(micro_batch_sequences=2)
    assert chosen(run, needs(run, "none", 2) * 1.0001) == ("none", 2)
    assert chosen(run, 1.0) == ("block", 2)  # nothing fits: what needs least
    plain = make_run(activation_checkpointing="none")
    assert chosen(plain, 1.0) == ("none", None)


def test_a_plan_and_a_run_decide_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(strategy="single")
    host = needs(run, "none", 4) * 1.0001
    machine = replace(DEVICES["h200"], memory=host, is_host=True)
    monkeypatch.setattr(parallel, "host_memory", lambda: host)
    decided = parallel.decide(run)
    assert decided.parallel.micro_batch_sequences == 4
    assert decided.parallel.native_precision == "fp32"
    there = place(run, machine, 1, 1).parallel
    assert replace(there, native_precision="fp32") == decided.parallel
    assert rung(run, machine).memory_per_device == memory(decided).total
    assert decided.run_id == run.run_id


@pytest.mark.parametrize(
    ("size", "strategy", "mode", "micro"),
    [("70M", "ddp", "none", 6), ("1B", "ddp", "none", 6), ("7B", "fsdp", "none", 2)],
)
def test_the_papers_sizes_on_a_node_of_h200(
    size: str, strategy: str, mode: str, micro: int
) -> None:
    """60 sequences of 8192 tokens a device: 6 are 49 thousand tokens, the next divisor, 10, is
    beyond what memory alone decides."""
    run = paper_recipe("run", size, paper_config("hgrn2", size))
    found = place(run, DEVICES["h200"], 1, 8)
    assert memory(found).total <= USABLE * DEVICES["h200"].memory
    assert found.parallel.strategy == strategy
    assert (found.parallel.activation_checkpointing, found.parallel.micro_batch_sequences) == (
        mode, micro,
    )  # fmt: skip

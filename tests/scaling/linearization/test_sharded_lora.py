"""LoLCATs' second stage on a model that is shared out over devices: the same run as one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models.linearize.lora import LoRALinear
from scaling.config.run import RunConfig
from scaling.linearization.costs import lora_parameters
from scaling.plan.memory import memory
from scaling.record.load_model import load_model
from scaling.record.pretrained import load_pretrained
from scaling.training.module import TrainingModule
from scaling.training.train import train
from tests.support.ranks import fork_ranks
from tests.support.results import StopAfter, lines

STEP = 4 * 32
FSDP = ["parallel.strategy=fsdp", "parallel.devices=2", "parallel.micro_batch_sequences=2"]


@pytest.fixture
def second(student: Any) -> RunConfig:
    """LoRA from the first step on, eight steps."""
    return student(
        "lolcats", "linearize.transfer_tokens=0", "budget.horizons=", f"budget.tokens={8 * STEP}",
        "parallel.micro_batch_sequences=2",
    )  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_two_ranks_are_the_single_process(
    second: RunConfig,
    tmp_path: Path,
    precision: str,
    zygote: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fork_ranks(monkeypatch)
    one = second.override([f"parallel.precision={precision}"])
    two = one.override([*FSDP, "parallel.activation_checkpointing=block"])
    assert one.run_id == two.run_id
    assert train(one, tmp_path / "one") == "done"
    assert train(two, tmp_path / "two") == "done"
    a, b = (lines(one, tmp_path / n) for n in ("one", "two"))
    for x, y in zip(a, b, strict=True):
        # Halves instead of one sum: rounding of float32 (of bf16 where an element tips over).
        assert y["loss"] == pytest.approx(x["loss"], rel=1e-5 if precision == "fp32" else 1e-3)
    name = lines(one, tmp_path / "one", "milestones.jsonl")[0]["checkpoint"]
    (x, _), (y, _) = (load_model(tmp_path / n / one.run_id / name) for n in ("one", "two"))
    theirs = load_pretrained(one.linearize.teacher).model.state_dict()
    for key, value in x.state_dict().items():
        # Adam's updates of single elements may hang on rounding: 8 steps of 3e-3, rank 2.
        torch.testing.assert_close(y.state_dict()[key], value, rtol=0, atol=2e-3, msg=key)
        learns = ".mixer.qkv." in key or ".mixer.out." in key
        if key in theirs:
            assert torch.equal(y.state_dict()[key], theirs[key]) != learns, key


@pytest.mark.slow
def test_goes_on_with_another_number_of_ranks(second: RunConfig, tmp_path: Path) -> None:
    two = second.override(FSDP)
    assert train(second, tmp_path / "whole") == "done"
    assert train(second, tmp_path / "mixed", stop_event=StopAfter(4)) == "preempted"
    assert train(two, tmp_path / "mixed") == "done"
    a, b = (lines(second, tmp_path / n) for n in ("whole", "mixed"))
    for x, y in zip(a, b, strict=True):
        assert y["loss"] == pytest.approx(x["loss"], rel=1e-5)


def test_additions_are_there_before_anything_is_shared_out(second: RunConfig) -> None:
    """And only they learn; their first factor is drawn after the weights, as on one device."""
    torch.manual_seed(0)
    module = TrainingModule(second)
    learning = [p for p in module.net.parameters() if p.requires_grad]
    assert sum(p.numel() for p in learning) == lora_parameters(second.model, 2)
    parts = [m for m in module.net.modules() if isinstance(m, LoRALinear)]
    assert len(parts) == 2 * second.model.layers
    assert all(part.down.abs().sum() > 0 and not part.up[0].any() for part in parts)


def test_memory_is_shared_out(second: RunConfig) -> None:
    sharded = second.override([*FSDP, "parallel.micro_batch_sequences=1"])
    whole = second.override(["parallel.micro_batch_sequences=1"])
    assert memory(sharded).states == pytest.approx(memory(whole).states / 2)

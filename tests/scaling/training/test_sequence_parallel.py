"""Sequences shared by devices: what is refused, planned and cut. Runs are in test_fsdp.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from models.config import ConfigError
from models.kernels import sequence
from models.kernels.api import linear_attention
from scaling.data.loader import DataModule
from scaling.plan.memory import memory
from scaling.plan.plan import place
from scaling.system.devices import DEVICES
from scaling.training.parallel import accumulation

TWO = ("parallel.devices=2", "parallel.sequence=2")


@pytest.mark.parametrize(
    ("arch", "overrides", "message"),
    [
        ("llama", TWO, "does not say that sequences can be split"),
        ("tnl", ("parallel.devices=3", "parallel.sequence=2"), "does not divide the 3 devices"),
        ("tnl", (*TWO, "data.sequence_length=33"), "does not divide data.sequence_length=33"),
        ("tnl", (*TWO, "data.corpus=instructions:x*"), "rows packed with several examples"),
        ("tnl", (*TWO, "linearize.teacher=x", "linearize.temperature=2"), "takes whole sequences"),
        ("tnl", ("parallel.sequence=0",), "at least 1"),
    ],
)
def test_what_cannot_be_is_refused(
    make_run: Any, arch: str, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_run(*overrides, arch=arch)


def test_the_batch_is_shared_by_groups_and_the_run_is_the_same(make_run: Any) -> None:
    run = make_run(
        "parallel.devices=8", "parallel.sequence=4", "parallel.micro_batch_sequences=1", arch="tnl"
    )
    assert run.run_id == make_run(arch="tnl").run_id
    assert run.parallel.data_ranks == 2
    assert accumulation(run) == 2
    with pytest.raises(ConfigError, match="cannot be shared"):
        make_run("parallel.devices=16", "parallel.sequence=2", arch="tnl")


def test_ranks_hold_the_parts_of_the_whole_batch(make_run: Any) -> None:
    """Two groups of two ranks, taken together, see what one process sees."""
    one = make_run(arch="tnl")
    four = one.override(["parallel.devices=4", "parallel.sequence=2"])
    tokens, targets = next(iter(DataModule(one).train_dataloader()))
    parts: list[Any] = []
    for rank in range(4):
        data = DataModule(four)
        data.trainer = cast("Any", SimpleNamespace(global_rank=rank, world_size=4))
        parts.append(next(iter(data.train_dataloader())))
    for whole, index in ((tokens, 0), (targets, 1)):
        rows = [torch.cat([parts[r][index], parts[r + 1][index]], dim=1) for r in (0, 2)]
        torch.testing.assert_close(torch.cat(rows), whole, rtol=0, atol=0)


def test_a_device_holds_its_share_of_the_activations(make_run: Any) -> None:
    eight = make_run("parallel.devices=2", "parallel.micro_batch_sequences=1", arch="tnl")
    split = eight.override(["parallel.sequence=2"])
    assert memory(split).activations < 0.6 * memory(eight).activations
    assert memory(split).states == memory(eight).states
    # Four sequences: four devices alone, eight where two share each.
    assert place(eight, DEVICES["h100"], 1, 8).parallel.world_size == 4
    assert place(split, DEVICES["h100"], 1, 8).parallel.world_size == 8


def test_packed_sequences_are_not_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence, "_group", object())
    q = torch.zeros(1, 4, 1, 2)
    with pytest.raises(ValueError, match="packed sequences cannot be split"):
        linear_attention(q, q, q, cu_seqlens=torch.tensor([0, 4], dtype=torch.int32))

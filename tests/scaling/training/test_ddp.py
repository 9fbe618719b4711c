"""Data parallelism on two gloo processes: the same run as one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scaling.training.train import train
from tests.support.ranks import fork_ranks
from tests.support.results import StopAfter, result


def test_two_processes_equal_one(
    make_run: Any, tmp_path: Path, zygote: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork_ranks(monkeypatch)
    one = make_run(arch="tnl")
    two = make_run("parallel.devices=2", "parallel.micro_batch_sequences=1", arch="tnl")
    assert one.run_id == two.run_id
    train(one, tmp_path / "one")
    assert train(two, tmp_path / "two") == "done"
    (metrics, milestones), (metrics2, milestones2) = (
        result(one, tmp_path / "one"),
        result(two, tmp_path / "two"),
    )
    assert len(metrics) == len(metrics2)
    for a, b in zip([*metrics, *milestones], [*metrics2, *milestones2], strict=True):
        for key in ("loss", "val_loss", "val_loss_std", "grad_norm"):
            if a.get(key) is not None:
                # The mean of two halves instead of one sum: float32 rounding, amplified by Adam.
                assert b[key] == pytest.approx(a[key], rel=2e-4), key


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices(make_run: Any, tmp_path: Path) -> None:
    one, two = make_run(), make_run("parallel.devices=2")
    train(one, tmp_path / "one")
    assert train(one, tmp_path / "mixed", stop_event=StopAfter(10)) == "preempted"
    assert train(two, tmp_path / "mixed") == "done"
    a, b = result(one, tmp_path / "one")[1], result(one, tmp_path / "mixed")[1]
    assert [m["val_loss"] for m in a] == pytest.approx([m["val_loss"] for m in b], rel=2e-4)


@pytest.mark.slow
def test_two_processes_stop_together(make_run: Any, tmp_path: Path) -> None:
    config = make_run("budget.tokens=51200", "parallel.devices=2")

    class StopWhenTraining:
        def is_set(self) -> bool:
            path = tmp_path / config.run_id / "metrics.jsonl"
            return path.exists() and path.stat().st_size > 0

    assert train(config, tmp_path, stop_event=StopWhenTraining()) == "preempted"
    assert train(config.override(["parallel.devices=1"]), tmp_path) == "done"
    assert len(result(config, tmp_path)[1]) == 3

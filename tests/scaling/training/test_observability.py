"""What a run tells of itself while it trains: norms by group, waits, memory, a profile."""

from __future__ import annotations

import gzip
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from models.config import ARCHS, toy_config
from models.language_model import build
from scaling.data.loader import Loader
from scaling.record.load_model import load_model
from scaling.sweep.status import status_rows
from scaling.training.norms import groups, norm
from scaling.training.train import train
from tests.support.results import lines


@pytest.mark.parametrize("arch", ARCHS)
def test_every_parameter_is_in_one_group(arch: Any) -> None:
    model = build(toy_config(arch, 32, vocab_size=64, layers=2, head_dim=16))
    found = groups(model)
    assert {"embedding", "mixer", "channel"} <= set(found)
    assert set(found) <= {"embedding", "mixer", "channel", "norm", "head"}
    members = [id(p) for group in found.values() for p in group]
    assert sorted(members) == sorted(id(p) for p in model.parameters())
    down = model.blocks[1].get_submodule("channel.down").get_parameter("weight")
    assert any(p is down for p in found["channel"])


def test_norms_by_group_make_up_the_whole(make_run: Any, tmp_path: Path) -> None:
    """Squares of the gradient norms add up to that of the global norm; parameter norms of the last
    recorded step are those of the milestone's weights. Both to the rounding of float32."""
    run = make_run("schedule.kind=cosine", "budget.horizons=", "optim.clip_norm=0.1", arch="tnl")
    train(run, tmp_path)
    trained = [line for line in lines(run, tmp_path) if line["split"] == "train"]
    with_norms = [line for line in trained if "grad_norm_mixer" in line]
    assert [line["step"] for line in with_norms] == [5, 10, 15, 20, 24]
    for line in with_norms:
        parts = [value for name, value in line.items() if name.startswith("grad_norm_")]
        assert math.hypot(*parts) == pytest.approx(line["grad_norm"], rel=1e-5)
    (milestone,) = (tmp_path / run.run_id / "checkpoints").glob("milestone-*.pt")
    model, _ = load_model(milestone)
    for group, members in groups(model).items():
        whole = torch.cat([p.detach().double().flatten() for p in members]).norm()
        assert trained[-1][f"param_norm_{group}"] == pytest.approx(float(whole), rel=1e-5)
    assert norm(p.detach() for p in model.parameters()) == pytest.approx(
        math.hypot(*(v for k, v in trained[-1].items() if k.startswith("param_norm_"))), rel=1e-5
    )


def test_waits_memory_and_a_profile_are_left(make_run: Any, tmp_path: Path) -> None:
    run = make_run("parallel.profile_steps=2", "parallel.micro_batch_sequences=2")
    assert run.run_id == make_run().run_id
    train(run, tmp_path)
    folder = tmp_path / run.run_id
    trained = [line for line in lines(run, tmp_path) if line["split"] == "train"]
    assert all(0 < line["data_wait"] < 1 for line in trained)
    assert all(line["memory_peak"] > 50e6 for line in trained)  # torch alone takes more
    (row,) = status_rows(tmp_path)
    assert row["memory_peak"] > 50e6
    (trace,) = (folder / "profile").glob("trace-trunk-*.json.gz")
    with gzip.open(trace) as file:
        names = {event.get("name", "") for event in json.load(file)["traceEvents"]}
    # Two steps, each with its two micro-batches, and no more.
    assert "ProfilerStep#2" in names and "ProfilerStep#3" in names  # noqa: PT018
    assert "ProfilerStep#4" not in names
    assert "aten::mm" in names
    assert "aten::mm" in trace.with_suffix("").with_suffix(".txt").read_text()
    assert "profile of 2 steps" in (folder / "log.txt").read_text()


def test_the_loader_counts_what_its_reader_waits() -> None:
    class Slow(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> int:
            time.sleep(0.02)
            return index

    loader = Loader(Slow(), batch_size=None)
    assert isinstance(loader, DataLoader)
    assert list(loader) == [0, 1, 2, 3, 4]
    waited = loader.waited
    assert waited >= 5 * 0.02
    start = time.perf_counter()
    for _ in loader:
        time.sleep(0.05)
    # The reader's own work is not a wait.
    assert loader.waited - waited <= time.perf_counter() - start - 5 * 0.05

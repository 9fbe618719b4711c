"""Faults of runs on two processes: ranks, torchrun and worker are killed, and nothing shows it.

A launcher hands the run to a worker, which starts torchrun, which starts two ranks (gloo); all are
real processes. The command is given again until the run has ended. It is compared with a run whose
ranks were left alone.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from models.config import toy_config
from scaling.config.experiment import Experiment
from scaling.config.run import BudgetConfig, DataConfig, ParallelConfig, RunConfig, ScheduleConfig
from scaling.record.record import read_states
from scaling.sweep.launch import launch
from scaling.training.train import train
from tests.support.ranks import ROOT, fork_ranks
from tests.support.results import result

STEP = 2 * 16
KINDS = (
    "rank SIGKILL",
    "rank SIGTERM",
    "rank SIGUSR1",
    "torchrun SIGKILL",
    "torchrun SIGTERM",
    "worker SIGKILL",
    "worker SIGTERM",
    "all SIGKILL",
)


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [json.dumps({"text": f"document {i} of the corpus " * 8}) for i in range(60)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(documents))
    monkeypatch.setenv("LINSCALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def make_run(folder: Path, strategy: Any, steps: int) -> RunConfig:
    return RunConfig(
        name=strategy,
        model=toy_config("tnl", 16, vocab_size=256, layers=1, head_dim=8),
        data=DataConfig(
            corpus=f"jsonl:{folder}/corpus.jsonl",
            sequence_length=16,
            batch_sequences=2,
            validation_fraction=0.3,
            validation_blocks=4,
        ),
        schedule=ScheduleConfig(warmup_tokens=4 * STEP, decay_fraction=0.3),
        budget=BudgetConfig(
            tokens=steps * STEP, horizons=(steps // 2 * STEP,), checkpoint_every_tokens=3 * STEP
        ),
        parallel=ParallelConfig(accelerator="cpu", threads=1, devices=2, strategy=strategy),
    )


def run_once(run: RunConfig, sweep: Path) -> bool:
    """Give the sweep's command once."""
    experiment = Experiment(name="faults", path=Path("faults.py"), text="", runs=[run])
    return launch(experiment, sweep, jobs=1, train="tests.support.fault_rank:train")


@pytest.mark.parametrize(
    ("strategy", "kinds", "steps"),
    [
        pytest.param("ddp", ("rank SIGKILL", "rank SIGTERM"), 12, id="ddp-2"),
        pytest.param("ddp", KINDS * 3, 80, id="ddp-24", marks=pytest.mark.slow),
        pytest.param("fsdp", KINDS * 3, 80, id="fsdp-24", marks=pytest.mark.slow),
    ],
)
def test_killed_ranks_leave_no_trace(
    tmp_path: Path,
    strategy: str,
    kinds: tuple[str, ...],
    steps: int,
    zygote: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = make_run(tmp_path, strategy, steps)
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"
    fork_ranks(monkeypatch)
    assert train(run, whole) == "done"
    draw = random.Random(len(kinds))
    faults = [
        {"kind": kind, "after": draw.randint(2, 6), "rank": draw.randint(0, 1)} for kind in kinds
    ]
    draw.shuffle(faults)
    hurt.mkdir()
    (hurt / "faults.json").write_text(json.dumps(faults))
    launches = 0
    while not run_once(run, hurt):
        launches += 1
        assert launches <= len(faults)
    suffered = (hurt / "faults.log").read_text().splitlines()
    assert suffered == [fault["kind"] for fault in faults]
    assert read_states(hurt) == {run.run_id: "done"}
    assert result(run, hurt) == result(run, whole)
    kept = {p.name for p in (hurt / run.run_id / "checkpoints").iterdir()}
    rest = {name for name in kept if not name.startswith(("milestone", "manifest"))}
    last = run.horizon_steps[-1]
    ends = [f"resume-trunk-{last - run.decay_steps(last)}.{kind}" for kind in ("pt", "dcp")]
    assert len(rest) == (run.schedule.kind == "wsd")
    assert rest <= set(ends)

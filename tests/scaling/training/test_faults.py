"""Fault injection: sweeps whose trainers, workers, launcher, disk and checkpoints fail at random.

Every process is a real one (forked off a zygote, see `zygote`), every signal is delivered by the
kernel. However many faults a sweep has suffered, it ends when its command has been given often
enough, with the metrics and milestones of a sweep that was left alone.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.config import ARCHS, toy_config
from scaling.config.run import BudgetConfig, DataConfig, ParallelConfig, RunConfig, ScheduleConfig
from scaling.record.record import read_states
from tests.support.results import result
from tests.support.zygote import Forked

STEP = 32
"""Tokens of a step."""
KINDS = (
    "worker SIGKILL",
    "worker SIGTERM",
    "worker SIGUSR1",
    "launcher SIGKILL",
    "launcher SIGTERM",
    "launcher SIGUSR1",
    "both SIGKILL",
    "worker SIGSTOP",  # its heartbeat is lost, and nothing ends it
    "full",  # the disk: files cannot grow beyond `size` bytes
    "flush",  # the disk is full, and says so when data are flushed
    "torn",  # half a line in metrics.jsonl, then SIGKILL
    "truncated",  # the last checkpoint loses its end, then SIGKILL
    "flipped",  # a bit of the last checkpoint changes, then SIGKILL
    "deleted",  # the last checkpoint is gone, then SIGKILL
)


@pytest.fixture(scope="module")
def folder(zygote: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a corpus."""
    folder = tmp_path_factory.mktemp("faults")
    lines = [json.dumps({"text": f"document {i} of the corpus " * 8}) for i in range(60)]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINSCALE_CACHE", str(folder / "cache"))
        yield folder


def make_runs(folder: Path, steps: int) -> list[RunConfig]:
    """A run of each architecture with a few thousand parameters and three decayed horizons."""
    return [
        RunConfig(
            name=arch,
            model=toy_config(arch, 16, vocab_size=256, layers=1, head_dim=8),
            data=DataConfig(
                corpus=f"jsonl:{folder}/corpus.jsonl",
                sequence_length=16,
                batch_sequences=2,
                validation_fraction=0.3,
                validation_blocks=4,
            ),
            schedule=ScheduleConfig(warmup_tokens=4 * STEP, decay_fraction=0.3),
            budget=BudgetConfig(
                tokens=steps * STEP,
                horizons=(steps // 4 * STEP, steps // 2 * STEP),
                checkpoint_every_tokens=5 * STEP,
            ),
            parallel=ParallelConfig(accelerator="cpu", threads=1),
        )
        for arch in ARCHS
    ]


def draw_faults(draw: random.Random, count: int) -> list[dict[str, Any]]:
    """Faults after 1 to 7 steps of the process that suffers them; every kind equally often."""
    kinds = [KINDS[i % len(KINDS)] for i in range(count)]
    draw.shuffle(kinds)
    return [
        {"kind": kind, "after": draw.randint(1, 7), "size": draw.choice((0, 300, 3000, 30_000))}
        for kind in kinds
    ]


def command(sweep: Path, *arguments: str) -> int:
    """Give the sweep's command and wait for its end; its exit status."""
    with (sweep / "output").open("a") as output:
        process = Forked(
            [sys.executable, "-P", "-m", "tests.support.fault_training", str(sweep), *arguments],
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        return process.wait(400)


def results(sweep: Path, runs: list[RunConfig]) -> dict[str, Any]:
    """Metrics without times, and milestones as they are, of every run."""
    return {run.name: result(run, sweep) for run in runs}


@pytest.mark.parametrize(
    ("seed", "each"),
    [pytest.param(0, 7, id="28-faults")]
    + [pytest.param(s, 30, id=f"120-faults-{s}", marks=pytest.mark.slow) for s in (1, 2)],
)
def test_faults_leave_no_trace(folder: Path, tmp_path: Path, seed: int, each: int) -> None:
    runs = make_runs(folder, steps=60 if each < 10 else 240)
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"
    for sweep in (whole, hurt):
        sweep.mkdir()
        (sweep / "runs.json").write_text(json.dumps([run.to_json() for run in runs]))
    assert command(whole, "inline") == 0, (whole / "output").read_text()[-4000:]
    draw = random.Random(seed)
    planned = draw_faults(draw, each * len(runs))
    for i, run in enumerate(runs):
        (hurt / f"faults-{run.name}.json").write_text(json.dumps(planned[i :: len(runs)]))
    statuses: list[int] = []
    while not statuses or statuses[-1]:
        assert len(statuses) <= len(planned), (hurt / "output").read_text()[-4000:]
        statuses.append(command(hurt))
    suffered = [line for path in hurt.glob("faults-*.log") for line in path.read_text().split("\n")]
    assert Counter(filter(None, suffered)) == Counter(fault["kind"] for fault in planned)
    assert read_states(hurt) == {run.run_id: "done" for run in runs}
    assert results(hurt, runs) == results(whole, runs)
    for run in runs:
        kept = {p.name for p in (hurt / run.run_id / "checkpoints").iterdir()}
        rest = {name for name in kept if not name.startswith(("milestone", "manifest"))}
        last = run.horizon_steps[-1]
        end = f"resume-trunk-{last - run.decay_steps(last)}.pt"
        assert rest == ({end} if run.schedule.kind == "wsd" else set())
    print(f"{len(planned)} faults, {len(statuses)} launches, {Counter(statuses)}")

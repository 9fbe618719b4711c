"""Checkpoints of sharded models: read by other numbers of ranks, and written while they train."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from scaling.config.run import RunConfig
from scaling.record.checkpoints import MANIFEST
from scaling.training.train import train
from tests.support.ranks import fork_ranks, train_ranks
from tests.support.results import StopAfter, lines, metrics, result

STEP = 4 * 32
TWENTY = (
    f"budget.tokens={20 * STEP}",
    "budget.horizons=",
    "schedule.kind=cosine",
    f"budget.checkpoint_every_tokens={8 * STEP}",
)
FSDP = ("parallel.strategy=fsdp", "parallel.devices=2")

WRITE_LATE = """
import threading, time
from scaling.record import sharded_state
from scaling.system.ranks import rank
plain = sharded_state.save

def late(shares, folder, group):
    if folder.name == "resume-trunk-3.dcp" and rank() == 1:
        while stop.steps < 5:
            time.sleep(0.01)
        with open(sweep + "/late", "w") as file:
            file.write(f"{stop.steps} {threading.current_thread().name}")
    plain(shares, folder, group)

sharded_state.save = late
"""


@pytest.fixture(autouse=True)
def forked(zygote: None, monkeypatch: pytest.MonkeyPatch) -> None:
    fork_ranks(monkeypatch)


def assert_same_losses(a: Path, b: Path, config: RunConfig) -> None:
    for x, y in zip(lines(config, a), lines(config, b), strict=True):
        assert x["step"] == y["step"]
        assert y["loss"] == pytest.approx(x["loss"], rel=1e-5)


def test_ranks_train_on_while_their_shares_are_written(make_run: Any, tmp_path: Path) -> None:
    """Rank 1 writes its share of step 3 two steps later, and it is that of step 3 to the bit."""
    run = make_run(*FSDP, f"budget.checkpoint_every_tokens={3 * STEP}", arch="tnl")
    assert train_ranks(run, tmp_path / "late", steps=5, prelude=WRITE_LATE) == 0
    assert (tmp_path / "late" / "late").read_text() == "5 checkpoint"
    checkpoints = tmp_path / "late" / run.run_id / "checkpoints"
    points = json.loads((checkpoints / MANIFEST).read_text())["resume"]
    assert [point["step"] for point in points] == [3, 5]
    before = metrics(run, tmp_path / "late")
    assert [line["step"] for line in before] == [1, 2, 3, 4, 5]

    (checkpoints / "resume-trunk-5.dcp" / "__1_0.distcp").unlink()
    assert train_ranks(run, tmp_path / "late", steps=3) == 0
    log = (checkpoints.parent / "log.txt").read_text()
    assert "Falling back to step 3 (resume-trunk-3.dcp)" in log
    assert metrics(run, tmp_path / "late")[:5] == before


FULL = """
import errno
from scaling.record import checkpoints
from scaling.system.ranks import rank
plain = checkpoints.flush

def full(path):
    if path.parent.name == "resume-trunk-6.dcp" and rank() == 1:
        raise checkpoints.DiskError(f"{path}: cannot be written (the disk or quota is full).")
    return plain(path)

checkpoints.flush = full
"""


@pytest.mark.slow
def test_a_disk_that_is_full_for_one_rank_ends_all_with_its_words(
    make_run: Any, tmp_path: Path
) -> None:
    run = make_run(*FSDP, arch="tnl")
    assert train_ranks(run, tmp_path / "whole") == 0
    assert train_ranks(run, tmp_path / "full", prelude=FULL) != 0
    folder = tmp_path / "full" / run.run_id
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "failed"
    assert "__1_0.distcp: cannot be written (the disk or quota is full)" in status["reason"]
    manifest = json.loads((folder / "checkpoints" / MANIFEST).read_text())
    assert manifest["resume"][-1]["step"] == 3
    assert train_ranks(run, tmp_path / "full") == 0
    assert result(run, tmp_path / "full") == result(run, tmp_path / "whole")


def test_goes_on_with_other_ranks_and_without_a_damaged_share(
    make_run: Any, tmp_path: Path
) -> None:
    """Two ranks, then one process, then two ranks; and a flipped bit costs the way back only."""
    one = make_run(*TWENTY, arch="tnl")
    two = one.override([*FSDP])
    train(one, tmp_path / "whole")
    train_ranks(two, tmp_path / "mixed", steps=10)
    checkpoints = tmp_path / "mixed" / one.run_id / "checkpoints"
    assert (checkpoints / "resume-trunk-10.dcp" / "__1_0.distcp").is_file()
    named = json.loads((checkpoints / MANIFEST).read_text())["files"]
    shares = {n for n in named if n.startswith("resume-trunk-10.dcp/")}
    files = {".metadata", "common.pt", "__0_0.distcp", "__1_0.distcp"}
    assert shares == {f"resume-trunk-10.dcp/{name}" for name in files}

    shutil.copytree(tmp_path / "mixed", tmp_path / "bent")
    folder = tmp_path / "bent" / one.run_id
    share = folder / "checkpoints" / "resume-trunk-10.dcp" / "__1_0.distcp"
    content = bytearray(share.read_bytes())
    content[len(content) // 2] ^= 1
    share.write_bytes(content)
    assert train(one, tmp_path / "bent") == "done"
    log = (folder / "log.txt").read_text()
    assert "__1_0.distcp: the checkpoint is damaged (its SHA-256 has changed)" in log
    assert "Falling back to step 8 (resume-trunk-8.dcp)" in log
    assert_same_losses(tmp_path / "whole", tmp_path / "bent", one)
    kept = {p.name for p in (folder / "checkpoints").iterdir()}
    # What is damaged stays to be looked at, until the run is started again.
    assert kept == {MANIFEST, f"milestone-{20 * STEP}.pt", "resume-trunk-10.dcp"}

    assert train(one, tmp_path / "mixed", stop_event=StopAfter(4)) == "preempted"
    assert (checkpoints / "resume-trunk-14.pt").is_file()
    assert train(two, tmp_path / "mixed") == "done"
    assert_same_losses(tmp_path / "whole", tmp_path / "mixed", one)

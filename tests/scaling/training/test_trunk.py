"""A run with a larger budget goes on from a finished one, and ends as if it had begun at step 0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from analysis.io.records import load_sweep
from scaling.config.run import RunConfig
from scaling.record import trunk
from scaling.record.record import ORIGIN
from scaling.training.train import train
from tests.support.results import StopAfter, metrics, read_lines, result

STEP = 4 * 32
HORIZONS = (8, 12, 24)
LONGER = f"budget.tokens={48 * STEP}"


def horizons(*steps: int) -> str:
    return f"budget.horizons={','.join(str(step * STEP) for step in steps)}"


class Count:
    """A stop event that is never set and counts steps."""

    def __init__(self) -> None:
        self.steps = 0

    def is_set(self) -> bool:
        self.steps += 1
        return False


def trained(config: RunConfig, sweep: Path) -> int:
    """Trains a run; how many steps that took."""
    count = Count()
    assert train(config, sweep, stop_event=count) == "done"
    return count.steps


def losses(config: RunConfig, sweep: Path) -> dict[int, float]:
    path = sweep / config.run_id / "milestones.jsonl"
    return {line["step"]: line["val_loss"] for line in read_lines(path)}


@pytest.fixture
def sweep(make_run: Any, tmp_path: Path) -> tuple[RunConfig, Path]:
    """A finished run of 24 steps whose trunk ends at 17."""
    short = make_run(arch="tnl")
    assert trained(short, tmp_path / "sweep") == 17 + 2 + 4 + 7
    kept = {p.name for p in (tmp_path / "sweep" / short.run_id / "checkpoints").glob("resume-*")}
    assert kept == {"resume-trunk-17.pt"}
    return short, tmp_path / "sweep"


def test_goes_on_to_a_longer_horizon(sweep: tuple[RunConfig, Path], tmp_path: Path) -> None:
    """17 of 34 trunk steps and three branches are not trained again; the end is the same."""
    short, folder = sweep
    long = short.override([LONGER, horizons(8, 12, 24)])
    assert long.run_id != short.run_id
    assert long.trunk_id == short.trunk_id
    assert trained(long, folder) == (34 - 17) + 14
    trained(long, tmp_path / "fresh")
    assert metrics(long, folder) == metrics(long, tmp_path / "fresh")
    assert losses(long, folder) == losses(long, tmp_path / "fresh")
    taken, fresh = result(long, folder)[1], result(long, tmp_path / "fresh")[1]
    assert taken[-1] == fresh[-1]  # to the bit, weights included
    origin = json.loads((folder / long.run_id / ORIGIN).read_text())
    assert (origin["run_id"], origin["step"]) == (short.run_id, 17)
    assert (
        f"goes on from the trunk of {short.run_id} at step 17"
        in (folder / long.run_id / "log.txt").read_text()
    )

    read = load_sweep(folder)  # common milestones count once, with the longer run
    assert len(read.points) == 4
    assert set(read.points["run_id"]) == {long.run_id}
    left_out = read.exclusions
    assert list(left_out["run_id"]) == [short.run_id] * 3
    assert left_out["reason"].str.contains(f"counted with {long.run_id}").all()


def test_stopped_on_the_way_it_ends_the_same(
    sweep: tuple[RunConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, folder = sweep
    long = short.override([LONGER, horizons(8, 12, 24)])
    plain = trunk.write_json

    def killed(path: Path, value: Any) -> None:
        plain(path, value)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trunk, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            train(long, folder)
    assert train(long, folder, stop_event=StopAfter(5)) == "preempted"
    assert train(long, folder, stop_event=StopAfter(14)) == "preempted"
    train(long, folder)
    trained(long, tmp_path / "fresh")
    assert metrics(long, folder) == metrics(long, tmp_path / "fresh")
    assert losses(long, folder) == losses(long, tmp_path / "fresh")


@pytest.mark.slow
def test_horizons_are_added_and_left_out(sweep: tuple[RunConfig, Path], tmp_path: Path) -> None:
    short, folder = sweep
    fewer = short.override([horizons(12)])
    assert trained(fewer, folder) == 0
    assert list(losses(fewer, folder)) == [12, 24]
    assert losses(fewer, folder).items() <= losses(short, folder).items()
    status = json.loads((folder / fewer.run_id / "status.json").read_text())
    assert status["tokens"] == status["tokens_total"]

    keeping = short.override([f"budget.keep_every_tokens={4 * STEP}", "seed=3"])
    trained(keeping, folder)  # keeps steps 4, 8, 12, 16 and 17
    more = keeping.override([horizons(8, 12, 18, 24)])
    # The branch to 18 leaves the trunk at 13: from the checkpoint of step 12 on all is trained.
    assert trained(more, folder) == (17 - 12) + 5 + 7
    trained(more, tmp_path / "fresh")
    assert metrics(more, folder) == metrics(more, tmp_path / "fresh")
    assert losses(more, folder) == losses(more, tmp_path / "fresh")


def test_what_is_not_the_same_trunk(sweep: tuple[RunConfig, Path]) -> None:
    short, _ = sweep
    for other in (
        "seed=1",
        "optim.lr=1e-3",
        "schedule.decay_fraction=0.2",
        "data.batch_sequences=8",
    ):
        assert short.override([other, LONGER]).trunk_id != short.trunk_id
    assert short.override(["budget.keep_trunk=false", "budget.keep_every_tokens=900"]).run_id == (
        short.run_id
    )
    assert short.override(["schedule.kind=cosine"]).trunk_id is None
    assert short.override(["divergence.policy=rewind"]).trunk_id is None


@pytest.mark.slow
def test_other_data_or_a_damaged_checkpoint_begin_at_the_first_step(
    sweep: tuple[RunConfig, Path], tmp_path: Path
) -> None:
    short, folder = sweep
    path = folder / short.run_id / "environment.json"
    environment = json.loads(path.read_text())
    long = short.override([LONGER])
    path.write_text(json.dumps(environment | {"data": {"corpus_sha256": "0"}}))
    assert train(long, folder, stop_event=StopAfter(2)) == "preempted"
    assert "its data were others" in (folder / long.run_id / "log.txt").read_text()
    assert not (folder / long.run_id / ORIGIN).exists()

    path.write_text(json.dumps(environment))
    checkpoint = folder / short.run_id / "checkpoints" / "resume-trunk-17.pt"
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(bytes(content))
    longest = short.override([f"budget.tokens={50 * STEP}", horizons(8, 12, 24)])
    trained(longest, folder)
    trained(longest, tmp_path / "fresh")
    assert "Falling back to the very beginning" in (folder / longest.run_id / "log.txt").read_text()
    assert result(longest, folder) == result(longest, tmp_path / "fresh")


def test_a_trunk_that_is_not_kept(make_run: Any, tmp_path: Path) -> None:
    short = make_run("budget.keep_trunk=false", arch="tnl")
    trained(short, tmp_path)
    assert not list((tmp_path / short.run_id / "checkpoints").glob("resume-*"))
    long = short.override([LONGER])
    assert train(long, tmp_path, stop_event=StopAfter(2)) == "preempted"
    assert not (tmp_path / long.run_id / ORIGIN).exists()

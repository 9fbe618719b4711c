"""Divergence policies: stop, skip, rewind; each leaves the same record whatever is killed."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from models.config import ConfigError
from scaling.config.parts import DivergenceConfig
from scaling.config.run import RunConfig
from scaling.training.guard import spike
from scaling.training.module import TrainingModule
from scaling.training.train import train
from tests.support import results
from tests.support.results import Lines, StopAfter, read_lines

REWIND = ("divergence.policy=rewind", "divergence.window=8", "divergence.spike_sigmas=20")


def result(config: RunConfig, sweep: Path) -> tuple[Lines, ...]:
    """As `results.result`, with the rewinds."""
    rewinds = sweep / config.run_id / "rewinds.jsonl"
    return *results.result(config, sweep), read_lines(rewinds) if rewinds.exists() else []


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """Poisoned batches: what is done to the loss of a batch, by its fingerprint. Fill in."""
    poison: dict[int, str] = {}
    real = TrainingModule.training_step

    def step(self: TrainingModule, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = real(self, batch, batch_idx)
        kind = poison.get(fingerprint(batch))
        if kind == "nan":
            loss = loss * math.nan
            self.loss_sum += math.nan
        elif kind == "spike":
            self.loss_sum += 50.0
        return loss

    monkeypatch.setattr(TrainingModule, "training_step", step)
    return poison


def fingerprint(batch: tuple[Tensor, Tensor]) -> int:
    return hash(tuple(batch[0].flatten().tolist()))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Fingerprints of the batches trained on, in order."""
    order: list[int] = []
    real = TrainingModule.on_train_batch_start

    def start(self: TrainingModule, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        order.append(fingerprint(batch))
        real(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "on_train_batch_start", start)
    return order


@pytest.fixture
def one_path(make_run: Any) -> Any:
    """Runs of 24 steps on one path, so that batch n is that of step n."""

    def build(*overrides: str) -> RunConfig:
        return make_run("schedule.kind=constant", "budget.horizons=()", *overrides)

    return build


def test_stop_is_the_default_and_says_what_happened(
    one_path: Any, tmp_path: Path, seen: list[int], batches: dict[int, str]
) -> None:
    config = one_path()
    train(config, tmp_path / "plain")
    batches[seen[9]] = "nan"
    assert train(config, tmp_path / "poisoned") == "diverged"
    status = json.loads((tmp_path / "poisoned" / config.run_id / "status.json").read_text())
    assert "the loss became nan at step 10 of segment trunk" in status["reason"]
    metrics = read_lines(tmp_path / "poisoned" / config.run_id / "metrics.jsonl")
    assert metrics[-1]["step"] == 9


def test_skip_leaves_out_the_update_and_counts_it(
    one_path: Any, tmp_path: Path, seen: list[int], batches: dict[int, str]
) -> None:
    config = one_path("divergence.policy=skip")
    train(config, tmp_path / "plain")
    order = list(seen)
    batches |= {order[9]: "nan", order[15]: "nan"}
    assert train(config, tmp_path / "whole") == "done"
    metrics, milestones, _ = result(config, tmp_path / "whole")
    train_lines = [m for m in metrics if m["split"] == "train"]
    assert [m["step"] for m in train_lines] == [*range(1, 25)]
    assert [m["skipped"] for m in train_lines] == [0] * 9 + [1] * 6 + [2] * 9
    assert [m["step"] for m in train_lines if m["loss"] is None] == [10, 16]
    before = result(config, tmp_path / "plain")[0]
    # Weights did not move in step 10, so that step 11 differs from the undisturbed run's.
    assert train_lines[:9] == [m for m in before if m["split"] == "train"][:9]
    assert train_lines[10]["loss"] != before[10]["loss"]
    assert math.isfinite(milestones[-1]["train_loss"])
    status = json.loads((tmp_path / "whole" / config.run_id / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("done", "2 updates skipped")
    while train(config, tmp_path / "pieces", stop_event=StopAfter(4)) != "done":
        pass
    assert result(config, tmp_path / "pieces") == result(config, tmp_path / "whole")


def test_too_many_skips_are_a_divergence(
    one_path: Any, tmp_path: Path, seen: list[int], batches: dict[int, str]
) -> None:
    config = one_path("divergence.policy=skip", "divergence.limit=2")
    train(config, tmp_path / "plain")
    batches |= dict.fromkeys(seen[5:8], "nan")
    assert train(config, tmp_path / "poisoned") == "diverged"
    status = json.loads((tmp_path / "poisoned" / config.run_id / "status.json").read_text())
    assert "2 updates were skipped before (divergence.limit) at step 8" in status["reason"]


@pytest.mark.parametrize("kind", ["spike", "nan"])
def test_rewind_passes_over_the_data_up_to_the_spike(
    one_path: Any, tmp_path: Path, seen: list[int], batches: dict[int, str], kind: str
) -> None:
    """Checkpoints every 3 steps; the batch of step 14 is bad; back to 12, on with batch 15."""
    config = one_path(*REWIND, f"budget.tokens={26 * 128}")
    train(config, tmp_path / "plain")
    order = list(seen)
    batches[order[13]] = kind
    seen.clear()
    assert train(config, tmp_path / "whole") == "done"
    assert seen[:14] == order[:14]
    assert seen[14:25] == order[14:25]  # step 13 takes the batch that follows the spike's
    assert len(seen) == 26 + 2
    metrics, _, rewinds = result(config, tmp_path / "whole")
    (rewind,) = rewinds
    assert (rewind["step"], rewind["to"], rewind["skip"]) == (14, 12, 2)
    train_lines = [m for m in metrics if m["split"] == "train"]
    assert [m["step"] for m in train_lines] == [*range(1, 27)]
    assert [m["rewinds"] for m in train_lines] == [0] * 12 + [1] * 14
    assert "1 rewinds" in (tmp_path / "whole" / config.run_id / "status.json").read_text()
    for size in (2, 7):
        folder = tmp_path / f"pieces-{size}"
        while train(config, folder, stop_event=StopAfter(4 + size)) != "done":
            pass
        assert result(config, folder) == result(config, tmp_path / "whole")


def test_a_rewind_in_a_branch_leaves_the_trunk_alone(
    make_run: Any, tmp_path: Path, seen: list[int], batches: dict[int, str]
) -> None:
    """Trunk 0-17, last branch 17-24. A spike at step 21 goes back to 18 of the branch; a spike on
    the trunk moves the data of all that follows."""
    config = make_run(*REWIND)
    train(config, tmp_path / "plain")
    order = list(seen)
    steps = [*range(6), 6, 7, 6, 7, *range(8, 12), *range(8, 17), *range(17, 24)]
    first = {n: order[i] for i, n in reversed(list(enumerate(steps)))}  # batch index -> fingerprint
    batches |= {first[20]: "spike"}
    assert train(config, tmp_path / "branch") == "done"
    (rewind,) = result(config, tmp_path / "branch")[2]
    assert (rewind["segment"], rewind["step"], rewind["to"]) == (5, 21, 18)
    plain, changed = (result(config, tmp_path / name)[0] for name in ("plain", "branch"))
    plain, changed = ([m for m in lines_ if m["split"] == "train"] for lines_ in (plain, changed))
    assert [m["rewinds"] for m in changed] == [0] * 24 + [1] * 6
    losses = [m["loss"] for m in changed]
    assert losses[:24] == [m["loss"] for m in plain][:24]
    assert losses[24:] != [m["loss"] for m in plain][24:]
    batches |= {first[14]: "spike"}
    assert train(config, tmp_path / "both") == "done"
    both = result(config, tmp_path / "both")[2]
    assert (both[0]["segment"], both[0]["to"]) == (4, 12)
    while train(config, tmp_path / "pieces", stop_event=StopAfter(6)) != "done":
        pass
    assert result(config, tmp_path / "pieces") == result(config, tmp_path / "both")


def test_a_rewind_survives_a_damaged_checkpoint(
    one_path: Any, tmp_path: Path, seen: list[int], batches: dict[int, str]
) -> None:
    """Stopped after the rewind to 12, and the checkpoint of 12 lost: from 9 the same again."""
    config = one_path(*REWIND)
    train(config, tmp_path / "plain")
    batches[seen[13]] = "spike"
    assert train(config, tmp_path / "whole") == "done"
    assert train(config, tmp_path / "hurt", stop_event=StopAfter(15)) == "preempted"
    folder = tmp_path / "hurt" / config.run_id
    assert len(read_lines(folder / "rewinds.jsonl")) == 1
    checkpoint = folder / "checkpoints" / "resume-trunk-12.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    assert train(config, tmp_path / "hurt") == "done"
    assert result(config, tmp_path / "hurt") == result(config, tmp_path / "whole")


def test_too_many_rewinds_are_a_divergence(
    one_path: Any, tmp_path: Path, seen: list[int], batches: dict[int, str]
) -> None:
    config = one_path(*REWIND, "divergence.limit=1")
    train(config, tmp_path / "plain")
    batches |= dict.fromkeys(seen[13:16], "nan")
    assert train(config, tmp_path / "poisoned") == "diverged"
    status = json.loads((tmp_path / "poisoned" / config.run_id / "status.json").read_text())
    assert "the run was rewound 1 times before (divergence.limit)" in status["reason"]


def test_what_is_a_spike() -> None:
    config = DivergenceConfig(policy="rewind", window=8, spike_sigmas=3.0)
    calm = [2.0, 2.2] * 4  # mean 2.1, sample std 0.1069
    assert spike([*calm, 2.1 + 3.1 * 0.1069], config)
    assert not spike([*calm, 2.1 + 2.9 * 0.1069], config)
    assert not spike([*calm, 0.0], config)  # downwards is no harm
    assert not spike([*calm[1:], 9.0], config)  # too few to judge
    assert spike([9.0, *calm, 2.6], config)  # only the last eight count


def test_options_are_checked_and_part_of_the_identity(make_run: Any) -> None:
    plain = make_run()
    assert make_run("divergence.policy=skip").run_id != plain.run_id
    assert make_run("divergence.policy=stop").run_id == plain.run_id
    other = f"budget.checkpoint_every_tokens={6 * 128}"
    assert make_run(other).run_id == plain.run_id
    assert make_run(*REWIND, other).run_id != make_run(*REWIND).run_id
    with pytest.raises(ConfigError, match=re.escape("set budget.checkpoint_every_tokens.")):
        make_run(*REWIND, "budget.checkpoint_every_tokens=none")

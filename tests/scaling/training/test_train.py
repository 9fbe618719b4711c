"""Runs end to end: what they leave behind, and that stopping and splitting them leave no trace.

The oracle for resuming is a run that was not disturbed: metrics (wall time and speeds apart) and
milestones must be identical to the last digit.
"""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.accounting import summary
from models.config import ARCHS, Arch
from models.kernels.native import library
from scaling.config.run import RunConfig
from scaling.data.prepare import prepare
from scaling.record import record
from scaling.record.load_model import load_model
from scaling.record.record import read_states
from scaling.training import callbacks, parallel, saving
from scaling.training.train import train
from tests.support.results import StopAfter, lines, result

ROOT = Path(__file__).resolve().parents[3]


def test_record_of_a_run(make_run: Any, tmp_path: Path) -> None:
    config = make_run(arch="tnl")
    assert train(config, tmp_path / "sweep") == "done"
    folder = tmp_path / "sweep" / config.run_id
    per_step = config.tokens_per_step

    stored = json.loads((folder / "config.json").read_text())
    assert stored["sweep"] == "sweep"
    assert stored["run_id"] == config.run_id
    plain = {k: v for k, v in stored.items() if k not in ("schema", "run_id", "sweep")}
    assert RunConfig.from_json(plain) == config
    accounting = json.loads((folder / "accounting.json").read_text())
    assert accounting == summary(config.model, config.data.sequence_length)
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    revision = [environment["git_revision"], environment["git_dirty_sha256"]]
    assert environment["git_revisions"] == [revision]
    assert environment["data"]["bytes_per_token"] == prepare(config.data).bytes_per_token
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "done"
    assert status["tokens"] == status["tokens_total"]
    assert read_states(tmp_path / "sweep") == {config.run_id: "done"}

    metrics, milestones = result(config, tmp_path / "sweep")
    train_steps = [(m["segment"], m["step"]) for m in metrics if m["split"] == "train"]
    # decay_fraction 0.3: the branches of 8, 12 and 24 steps leave at 6, 8 and 17.
    expected = [("trunk", s) for s in range(1, 7)] + [(f"decay-{8 * per_step}", s) for s in (7, 8)]
    expected += [("trunk", s) for s in (7, 8)]
    expected += [(f"decay-{12 * per_step}", s) for s in range(9, 13)]
    expected += [("trunk", s) for s in range(9, 18)]
    expected += [(f"decay-{24 * per_step}", s) for s in range(18, 25)]
    assert train_steps == expected
    flops = accounting["flops_per_token"]
    for line in metrics:
        assert line["tokens"] == line["step"] * per_step
        assert line["flops"] == line["tokens"] * flops["exact"]["total"]
        bytes_per_token = environment["data"]["bytes_per_token"]
        assert line["bpb"] == pytest.approx(line["loss"] / math.log(2) / bytes_per_token)
    assert [m["tokens"] for m in milestones] == [8 * per_step, 12 * per_step, 24 * per_step]
    assert all(m["decayed"] for m in milestones)
    last = [m["loss"] for m in metrics if m["split"] == "train" and "decay" in m["segment"]][-7:]
    # The last 5 % are two steps; eight are the least, so one step of the trunk counts as well.
    before = next(m["loss"] for m in metrics if m["segment"] == "trunk" and m["step"] == 17)
    assert milestones[-1]["train_loss"] == pytest.approx(sum([before, *last]) / 8)
    assert milestones[-1]["val_loss"] < milestones[0]["val_loss"] < math.log(257)


def test_milestone_weights_reproduce_the_validation_loss(make_run: Any, tmp_path: Path) -> None:
    config = make_run()
    train(config, tmp_path)
    milestone = lines(config, tmp_path, "milestones.jsonl")[1]
    model, stored = load_model(tmp_path / config.run_id / milestone["checkpoint"])
    assert stored == config
    rows = torch.from_numpy(prepare(config.data).validation)
    with torch.no_grad():
        losses = model.loss(rows[:, :-1], rows[:, 1:]).double().mean(dim=1)
    assert milestone["val_blocks"] == len(rows) == 6
    # Another batch size sums in another order: float32 rounding, 1e-6 relative.
    assert losses.mean().item() == pytest.approx(milestone["val_loss"], rel=1e-6)
    assert losses.std().item() == pytest.approx(milestone["val_loss_std"], rel=1e-4)


@pytest.mark.parametrize("kind", ["wsd", "cosine", "constant"])
def test_stopping_every_few_steps_changes_nothing(make_run: Any, tmp_path: Path, kind: str) -> None:
    config = make_run(f"schedule.kind={kind}", "parallel.micro_batch_sequences=2", arch="hgrn2")
    train(config, tmp_path / "whole")
    stops = 0
    while (state := train(config, tmp_path / "pieces", stop_event=StopAfter(5))) != "done":
        assert state == "preempted"
        stops += 1
    assert stops >= 4
    assert result(config, tmp_path / "pieces") == result(config, tmp_path / "whole")


def test_a_run_leaves_the_process_as_it_was(make_run: Any, tmp_path: Path) -> None:
    """And is not influenced by it: the same in any order, whatever was drawn before."""
    config, other = make_run(), make_run("seed=1")
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    train(config, tmp_path / "first")
    drawn = random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002
    assert torch.get_num_threads() == threads
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    assert drawn == (random.random(), np.random.rand(), torch.rand(()).item())  # noqa: NPY002
    train(other, tmp_path / "second")
    train(config, tmp_path / "second")
    assert result(config, tmp_path / "first") == result(config, tmp_path / "second")
    assert result(config, tmp_path / "first") != result(other, tmp_path / "second")


def test_micro_batches_give_the_same_run(make_run: Any, tmp_path: Path) -> None:
    whole, parts = make_run(), make_run("parallel.micro_batch_sequences=1")
    assert whole.run_id == parts.run_id
    train(whole, tmp_path / "whole")
    train(parts, tmp_path / "parts")
    first, second = result(whole, tmp_path / "whole")[0], result(parts, tmp_path / "parts")[0]
    for a, b in zip(first, second, strict=True):
        # Only the order of float32 additions differs; 24 steps of Adam amplify it little.
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_bf16_is_another_run_of_about_the_same_loss(make_run: Any, tmp_path: Path) -> None:
    plain, bf16 = make_run(), make_run("parallel.precision=bf16")
    assert plain.run_id != bf16.run_id
    train(plain, tmp_path)
    train(bf16, tmp_path)
    loss, other = (result(c, tmp_path)[1][-1]["val_loss"] for c in (plain, bf16))
    # bf16 has 8 bits: about 1 % of a loss of 3 after 24 steps, and it must not be the same run.
    assert loss == pytest.approx(other, rel=0.02)
    assert loss != other


def test_done_again_is_at_once_and_without_torch(make_run: Any, tmp_path: Path) -> None:
    config = make_run()
    train(config, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    code = (
        "import sys, json; from scaling.config.run import RunConfig\n"
        "from scaling.training.train import train\n"
        "config = RunConfig.from_json(json.loads(sys.argv[1]))\n"
        "assert train(config, sys.argv[2]) == 'done'\n"
        "assert not {'torch', 'lightning'} & set(sys.modules), 'heavy import'\n"
    )
    values = json.dumps(config.to_json())
    subprocess.run([sys.executable, "-c", code, values, str(tmp_path)], check=True, cwd=ROOT)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_records_are_thinned_on_long_runs(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_run()
    train(config, tmp_path / "all")
    monkeypatch.setattr(record, "RECORDS", 6)  # every 4 steps of 24, and at segment ends
    train(config, tmp_path / "few", stop_event=StopAfter(11))
    train(config, tmp_path / "few")
    full, few = (result(config, tmp_path / name)[0] for name in ("all", "few"))
    steps = [(m["segment"], m["step"]) for m in few if m["segment"] == "trunk"]
    assert steps == [("trunk", s) for s in (4, 6, 8, 12, 16, 17)]
    losses = {m["step"]: m["loss"] for m in full if m["segment"] == "trunk"}
    of_twelve = next(m for m in few if (m["segment"], m["step"]) == ("trunk", 12))
    assert of_twelve["loss"] == pytest.approx(sum(losses[s] for s in range(9, 13)) / 4)
    of_six = next(m for m in few if (m["segment"], m["step"]) == ("trunk", 6))
    assert of_six["loss"] == pytest.approx((losses[5] + losses[6]) / 2)


def test_what_a_person_sees_while_it_trains(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Log line, heartbeat and progress bar, at every step instead of every few seconds."""
    monkeypatch.setattr(callbacks, "LOG_SECONDS", 0.0)
    monkeypatch.setattr(callbacks, "STATUS_SECONDS", 0.0)
    config = make_run()
    seen: list[dict[str, Any]] = []
    real = record.RunRecord.write_status

    def spy(self: record.RunRecord, state: record.State, **fields: Any) -> None:
        real(self, state, **fields)
        seen.append(json.loads((self.path / "status.json").read_text()))

    monkeypatch.setattr(record.RunRecord, "write_status", spy)
    train(config, tmp_path, progress=True)
    beats = [s for s in seen if s["state"] == "running" and s["eta_seconds"] is not None]
    steps = 6 + 2 + 2 + 4 + 9 + 7
    per_step = config.tokens_per_step
    assert [beat["tokens"] for beat in beats] == [s * per_step for s in range(1, steps + 1)]
    assert all(beat["tokens_total"] == steps * per_step for beat in beats)
    assert all(beat["tokens_per_second"] > 0 for beat in beats)
    assert beats[-1]["eta_seconds"] == 0
    (line,) = (
        line
        for line in (tmp_path / config.run_id / "log.txt").read_text().splitlines()
        if "trunk step 17/17 | 2,176 tokens | loss " in line
    )
    assert all(part in line for part in (" bpb) | lr 0.003 | grad ", " tok/s | ", " s left"))
    assert config.name in capsys.readouterr().err


def test_checkpoints_by_wall_time(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_run("budget.checkpoint_every_tokens=none")
    train(config, tmp_path / "never")  # shorter than a minute
    monkeypatch.setattr(saving, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(saving, "COST_FACTOR", 0.0)
    saved: list[int] = []
    real = saving.save

    def spy(journal: callbacks.Journal, *rest: Any) -> None:
        saved.append(journal.step)
        real(journal, *rest)

    monkeypatch.setattr(saving, "save", spy)
    train(config, tmp_path / "always")
    assert saved == [*range(1, 6), 7, 7, *range(9, 12), *range(9, 17), *range(18, 24)]
    assert result(config, tmp_path / "always") == result(config, tmp_path / "never")


def test_accumulation_shares_the_batch(make_run: Any) -> None:
    assert parallel.accumulation(make_run()) == 1
    assert parallel.accumulation(make_run("parallel.micro_batch_sequences=2")) == 2
    both = make_run("parallel.devices=2", "parallel.micro_batch_sequences=1")
    assert parallel.accumulation(both) == 2


@pytest.mark.slow
def test_loader_processes_change_nothing(make_run: Any, tmp_path: Path) -> None:
    alone, helped = make_run(), make_run("parallel.workers=2")
    train(alone, tmp_path / "alone")
    assert train(helped, tmp_path / "helped", stop_event=StopAfter(10)) == "preempted"
    assert train(helped, tmp_path / "helped") == "done"
    # The weights' files differ, since they name their configuration; nothing else does.
    (metrics, milestones), (metrics2, milestones2) = (
        result(alone, tmp_path / "alone"),
        result(helped, tmp_path / "helped"),
    )
    assert metrics == metrics2
    assert [m | {"sha256": ""} for m in milestones] == [m | {"sha256": ""} for m in milestones2]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_compiled_blocks_give_the_same_run(make_run: Any, tmp_path: Path, arch: Arch) -> None:
    eager, compiled = make_run(arch=arch), make_run("parallel.compile=true", arch=arch)
    assert eager.run_id == compiled.run_id
    train(eager, tmp_path / "eager")
    train(compiled, tmp_path / "compiled")
    first, second = result(eager, tmp_path / "eager"), result(compiled, tmp_path / "compiled")
    for a, b in zip(first[1], second[1], strict=True):
        # Fused kernels round differently in float32; 24 steps of Adam amplify it little.
        assert a["val_loss"] == pytest.approx(b["val_loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_every_architecture_resumes_exactly(make_run: Any, tmp_path: Path, arch: Arch) -> None:
    config = make_run(arch=arch)
    train(config, tmp_path / "whole")
    while train(config, tmp_path / "pieces", stop_event=StopAfter(7)) != "done":
        pass
    assert result(config, tmp_path / "pieces") == result(config, tmp_path / "whole")


def test_a_run_without_compiled_kernels_says_so(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(library.VARIABLE, "auto")
    monkeypatch.setattr(library, "_built", lambda: (None, "no C++ compiler is found"))
    config = make_run()
    assert train(config, tmp_path) == "done"
    path = tmp_path / config.run_id
    environment = json.loads((path / "environment.json").read_text())
    assert environment["cpu_kernels"] == "torch (no C++ compiler is found)"
    first = (path / "log.txt").read_text().splitlines()[0]
    assert first.endswith(
        "kernels several times slower than compiled ones: torch (no C++ compiler is found)"
    )

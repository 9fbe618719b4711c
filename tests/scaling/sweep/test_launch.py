"""The launcher: every run ends in its record, by whomever and however often it is started."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from linscale.errors import LinscaleError
from models.config import ConfigError
from scaling.config.experiment import Experiment
from scaling.config.run import RunConfig
from scaling.sweep import launch as launching
from scaling.sweep.launch import environments, launch
from scaling.system.claims import claim
from tests.support.launches import FAKE, STEPS, finish, gate, run_config, started, states, steps


def test_every_run_is_trained_once_longest_first(
    make_experiment: Callable[..., Experiment], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    assert launch(make_experiment("a", "b", "c"), sweep, jobs=1, train=FAKE)
    assert started(sweep) == ["c", "b", "a"]
    assert states(sweep) == {"a": "done", "b": "done", "c": "done"}
    assert steps(sweep, "a") == list(range(1, STEPS + 1))
    assert "3 done" in capsys.readouterr().out
    record = json.loads((sweep / "sweep.json").read_text())
    assert record["experiment"] == "# exp"
    assert [r.rpartition("-")[0] for r in record["runs"]] == ["a", "b", "c"]


def test_runs_begin_in_the_order_of_the_experiment_if_asked(
    make_experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    for launcher in ("local", "inline"):
        sweep = tmp_path / launcher
        experiment = make_experiment("b", "c", "a")
        assert launch(experiment, sweep, launcher=launcher, jobs=1, train=FAKE, in_order=True)
        assert started(sweep) == ["b", "c", "a"]
    with pytest.raises(ConfigError, match="--in-order with --launcher slurm"):
        launch(experiment, tmp_path / "slurm", launcher="slurm", in_order=True)


def test_again_changes_nothing(make_experiment: Callable[..., Experiment], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    assert launch(make_experiment("a", "diverges"), sweep, jobs=2, train=FAKE)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in sweep.rglob("*") if p.is_file()}
    # Neither data nor workers are needed: a function that does not exist goes unnoticed.
    assert launch(make_experiment("a", "diverges"), sweep, jobs=2, train="nowhere:train")
    del before[sweep / "sweep.lock"]
    for path, content in before.items():
        assert (path.stat().st_mtime_ns, path.read_bytes()) == content


def test_failed_and_diverged_runs_do_not_stop_the_rest(
    make_experiment: Callable[..., Experiment], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    experiment = make_experiment("a", "diverges", "fails", "b", "breaks")
    assert not launch(experiment, sweep, jobs=2, train=FAKE)
    output = " ".join(capsys.readouterr().out.split())
    assert states(sweep)["a"] == states(sweep)["b"] == "done"
    assert states(sweep)["diverges"] == "diverged"
    assert started(sweep).count("fails") == 1  # not again in the same launch
    assert "the disk is made of cheese" in output
    assert "the loss became nan" in output
    assert "ZeroDivisionError: no one expected this" in output
    assert "Traceback" in "".join(p.read_text() for p in sweep.glob("worker-*.log"))
    # A failed run is tried again by the next launch; a diverged one is a result.
    (sweep / "mended").touch()
    assert launch(make_experiment("a", "diverges", "fails", "b"), sweep, jobs=2, train=FAKE)
    assert states(sweep)["fails"] == "done"
    assert started(sweep).count("diverges") == 1


def test_a_directory_of_another_run_fails_alone(
    make_experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    experiment = make_experiment("a", "b")
    foreign = sweep / experiment.runs[0].run_id
    foreign.mkdir(parents=True)
    (foreign / "config.json").write_text(
        json.dumps({"schema": 1, **make_experiment("c").runs[0].to_json()})
    )
    assert not launch(experiment, sweep, jobs=2, train=FAKE)
    assert states(sweep) == {"b": "done"}


def test_two_launches_share_a_sweep(
    spawn_launch: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    names = ["waits-1", "waits-2", "waits-3", "waits-4", "b", "c"]
    first, second = spawn_launch(sweep, *names), spawn_launch(sweep, *names)
    holders = {gate(sweep, f"waits-{i}") for i in (1, 2, 3, 4)}
    assert len(holders) == 4  # two workers of each launch, all at work
    (sweep / "go").touch()
    for process in (first, second):
        code, output = finish(process)
        assert code == 0, output
    assert set(states(sweep).values()) == {"done"}
    assert not (sweep / "two-at-once").exists()
    assert sorted(started(sweep)) == sorted(names)


def test_inline_trains_here(
    make_experiment: Callable[..., Experiment], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    assert not launch(make_experiment("a", "fails", "b"), sweep, launcher="inline", train=FAKE)
    assert started(sweep) == ["b", "fails", "a"]
    assert states(sweep)["a"] == "done"
    assert "made of cheese" in " ".join(capsys.readouterr().out.split())
    (sweep / "mended").touch()
    assert launch(make_experiment("a", "fails", "b"), sweep, launcher="inline", train=FAKE)


def test_runs_of_earlier_overrides_stay_in_the_record(
    make_experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    assert launch(make_experiment("a", "b"), sweep, jobs=1, train=FAKE)
    assert launch(make_experiment("c"), sweep, jobs=1, train=FAKE)
    second = dataclasses.replace(make_experiment("d"), text="# another")
    assert launch(second, sweep, jobs=1, train=FAKE)
    written = json.loads((sweep / "sweep.json").read_text())
    assert [r.rpartition("-")[0] for r in written["runs"]] == ["a", "b", "c", "d"]
    assert [each["text"] for each in written["experiments"]] == ["# exp", "# another"]


def test_workers_that_cannot_start_are_explained(
    make_experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    with pytest.raises(LinscaleError, match=r"end before they can train.*No module named 'nowhere"):
        launch(make_experiment("a"), tmp_path / "sweep", jobs=1, train="nowhere:train")


def test_bad_arguments_and_data_are_refused_before_anything_starts(
    make_experiment: Callable[..., Experiment], launch_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="launcher='cloud': must be one of local, inline"):
        launch(make_experiment("a"), tmp_path / "sweep", launcher="cloud", train=FAKE)
    with pytest.raises(ConfigError, match="jobs=0"):
        launch(make_experiment("a"), tmp_path / "sweep", jobs=0, train=FAKE)
    missing = run_config("a", launch_data).override(["data.corpus=text:none/*.txt"])
    experiment = Experiment(name="e", path=tmp_path / "e.py", text="", runs=[missing])
    with pytest.raises(LinscaleError, match="no file matches"):
        launch(experiment, tmp_path / "sweep", train=FAKE)
    small = run_config("a", launch_data).override(["model.vocab_size=200"])
    experiment = Experiment(name="e", path=tmp_path / "e.py", text="", runs=[small])
    with pytest.raises(ConfigError, match=r"bytes has 256 tokens; set model\.vocab_size=256"):
        launch(experiment, tmp_path / "sweep", train=FAKE)
    assert not (tmp_path / "sweep").exists()


def test_workers_share_cores_and_devices(
    launch_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    plain = [run_config("a", launch_data)]

    def shape(configs: list[RunConfig], jobs: int | None) -> tuple[int, str]:
        found = environments(configs, jobs)
        assert all("CUDA_VISIBLE_DEVICES" not in e for e in found)
        return len(found), found[0]["OMP_NUM_THREADS"]

    assert shape(plain, None) == (8, "1")
    assert shape(plain, 2) == (2, "4")
    assert shape(plain, 16) == (16, "1")
    assert shape([run_config("a", launch_data, threads=4)], None) == (2, "4")
    assert shape([run_config("a", launch_data, devices=2)], None) == (4, "1")

    monkeypatch.setattr(launching, "_gpus", lambda: ["0", "1", "2", "3"])
    on_gpu = run_config("a", launch_data).override(["parallel.accelerator=auto"])
    found = environments([on_gpu], None)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in found] == ["0", "1", "2", "3"]
    found = environments([on_gpu.override(["parallel.devices=2"])], None)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in found] == ["0,1", "2,3"]
    found = environments([on_gpu], 5)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in found] == ["0", "1", "2", "3", "0"]
    found = environments([on_gpu.override(["parallel.devices=4", "data.batch_sequences=8"])], None)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in found] == ["0,1,2,3"]


def test_inline_waits_for_a_run_that_another_process_is_saving(
    make_experiment: Callable[..., Experiment], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a worker does whose pool was killed; the run is trained when it lets go."""
    experiment = make_experiment("a", "b")
    sweep = tmp_path / "sweep"
    held = claim(sweep / experiment.runs[1].run_id)
    assert held is not None
    threading.Timer(1.0, held.release).start()
    assert launch(experiment, sweep, launcher="inline", train=FAKE)
    assert set(states(sweep).values()) == {"done"}
    assert f"process {os.getpid()} on " in capsys.readouterr().out

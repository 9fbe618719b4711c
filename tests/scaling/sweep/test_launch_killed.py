"""Workers and launchers that are killed or interrupted: every run goes on and ends."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from scaling.config.experiment import Experiment
from scaling.record.record import RunRecord
from scaling.sweep.launch import launch
from scaling.system.claims import holder
from tests.support.launches import (
    FAKE,
    STEPS,
    alive,
    finish,
    gate,
    started,
    states,
    steps,
    wait_for,
)


def test_a_killed_worker_is_replaced_and_its_run_goes_on(
    make_experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    killed: list[int] = []

    def kill_twice() -> None:
        for _ in range(2):
            pid = gate(sweep, "waits")
            killed.append(pid)
            (sweep / "at-gate-waits").unlink()
            os.kill(pid, signal.SIGKILL)
        killed.append(gate(sweep, "waits"))
        (sweep / "go").touch()

    thread = threading.Thread(target=kill_twice)
    thread.start()
    assert launch(make_experiment("a", "waits"), sweep, jobs=2, train=FAKE)
    thread.join()
    assert len(set(killed)) == 3
    assert states(sweep) == {"a": "done", "waits": "done"}
    assert steps(sweep, "waits") == list(range(1, STEPS + 1))


def test_a_run_that_always_kills_its_worker_has_failed(
    make_experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    assert not launch(make_experiment("crashes", "a"), sweep, jobs=1, train=FAKE)
    assert states(sweep) == {"a": "done", "crashes": "failed"}
    assert started(sweep).count("crashes") == 3
    record = RunRecord(make_experiment("crashes").runs[0], sweep)
    assert "ended 3 times in a row (signal SIGKILL)" in record.reason


def test_a_run_that_gets_further_each_time_may_die_often(
    make_experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    assert launch(make_experiment("stumbles"), sweep, jobs=1, train=FAKE)
    assert steps(sweep, "stumbles") == list(range(1, STEPS + 1))


def test_what_a_killed_worker_started_ends_with_it(
    make_experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    assert launch(make_experiment("parent"), sweep, jobs=1, train=FAKE)
    children = [int(p.name.partition("-")[2]) for p in sweep.glob("child-*")]
    assert len(children) == 2
    assert not any(map(alive, children))


def test_a_launch_takes_over_from_one_that_was_killed(
    spawn_launch: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    first = spawn_launch(sweep, "waits-1", "waits-2")
    pids = [gate(sweep, "waits-1"), gate(sweep, "waits-2")]
    second = spawn_launch(sweep, "waits-1", "waits-2")
    first.send_signal(signal.SIGKILL)
    first.communicate()
    wait_for(lambda: not any(map(alive, pids)), "orphaned workers to end")
    assert {gate(sweep, "waits-1"), gate(sweep, "waits-2")}.isdisjoint(pids)
    (sweep / "go").touch()
    code, output = finish(second)
    assert code == 0, output
    assert states(sweep) == {"waits-1": "done", "waits-2": "done"}
    assert not (sweep / "two-at-once").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_the_same_command_continues(
    spawn_launch: Callable[..., subprocess.Popen[str]], tmp_path: Path, number: signal.Signals
) -> None:
    sweep = tmp_path / "sweep"
    process = spawn_launch(sweep, "a", "waits-1", "waits-2")
    pids = [gate(sweep, "waits-1"), gate(sweep, "waits-2")]
    process.send_signal(number)
    code, output = finish(process)
    assert code == 1, output
    assert "the same command continues" in output
    assert not any(map(alive, pids))
    assert states(sweep) == {"waits-1": "preempted", "waits-2": "preempted"}
    (sweep / "go").touch()
    code, output = finish(spawn_launch(sweep, "a", "waits-1", "waits-2"))
    assert code == 0, output
    assert steps(sweep, "waits-1") == list(range(1, STEPS + 1))


def test_a_second_interrupt_kills(
    spawn_launch: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    process = spawn_launch(sweep, "stubborn")
    pid = gate(sweep, "stubborn")
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    wait_for(lambda: "stopping" in process.stdout.readline(), "the first interrupt")  # type: ignore[union-attr]
    assert alive(pid)
    process.send_signal(signal.SIGINT)
    code, _ = finish(process)
    assert code == 1
    assert not alive(pid)
    assert holder(next(sweep.glob("stubborn-*"))) is None


def test_a_worker_that_is_told_to_end_hands_its_run_on(
    make_experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"

    def terminate() -> None:
        os.kill(gate(sweep, "waits"), signal.SIGTERM)
        wait_for(lambda: started(sweep).count("waits") == 2, "another worker")
        (sweep / "go").touch()

    thread = threading.Thread(target=terminate)
    thread.start()
    assert launch(make_experiment("waits"), sweep, jobs=1, train=FAKE)
    thread.join()
    assert steps(sweep, "waits") == list(range(1, STEPS + 1))


def test_inline_saves_when_interrupted(
    make_experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"

    def interrupt() -> None:
        os.kill(gate(sweep, "waits"), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    handler = signal.getsignal(signal.SIGINT)
    assert not launch(make_experiment("a", "waits"), sweep, launcher="inline", train=FAKE)
    thread.join()
    assert states(sweep) == {"waits": "preempted"}
    assert signal.getsignal(signal.SIGINT) is handler

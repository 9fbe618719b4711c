"""Runs that make their steps together: each as if it were alone. Here something that keeps and
calls the captured function stands in for a graph."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from linscale.errors import LinscaleError
from models.config import ConfigError
from scaling.config.run import RunConfig
from scaling.sweep.fuse import attempt_together, fused, groups
from scaling.sweep.launch import launch
from scaling.training import captured, together
from scaling.training.train import train
from tests.support.results import StopAfter, lines, metrics

GRAPH = "parallel.cuda_graph=true"


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many runs each captured step is of."""
    made: list[int] = []

    def capture(run: captured.Run) -> captured.Run:
        return run

    def side_by_side(members: list[captured.CapturedStep]) -> None:
        made.append(len(members))
        real(members)

    real = together.side_by_side
    monkeypatch.setattr(captured, "capture_on", lambda device: capture)
    monkeypatch.setattr(together, "side_by_side", side_by_side)
    return made


def sweep(make_run: Any) -> list[RunConfig]:
    """Other seeds, rates and lengths."""
    common = (GRAPH, "schedule.kind=cosine", "budget.horizons=()")
    return [
        make_run(*common, arch="tnl"),
        make_run(*common, "seed=1", "optim.lr=1e-3", arch="tnl"),
        make_run(*common, "seed=2", "budget.tokens=2000", arch="tnl"),
    ]


def same(run: RunConfig, one: Path, other: Path) -> None:
    """Record and weights, to the bit."""
    assert metrics(run, one) == metrics(run, other)
    first, second = (
        torch.load(
            place / run.run_id / lines(run, place, "milestones.jsonl")[-1]["checkpoint"],
            weights_only=True,
        )
        for place in (one, other)
    )
    assert first["step"] == second["step"] == run.steps
    assert all(torch.equal(x, second["model"][name]) for name, x in first["model"].items())


def test_each_is_as_if_alone(make_run: Any, tmp_path: Path, steps: list[int]) -> None:
    runs = sweep(make_run)
    outcomes = attempt_together(runs, tmp_path / "fused", train, threading.Event())
    assert [outcome.state for outcome in outcomes] == ["done"] * 3
    # Three at once until the shortest has ended.
    assert steps.count(3) > 5
    assert steps.count(2) > 2
    for run in runs:
        plain = run.override(["parallel.cuda_graph=false"])
        assert train(plain, tmp_path / "alone") == "done"
        same(run, tmp_path / "alone", tmp_path / "fused")


def test_they_stop_and_go_on(make_run: Any, tmp_path: Path, steps: list[int]) -> None:
    """Together, alone, and together again."""
    runs = sweep(make_run)[:2]
    stops = [StopAfter(15), threading.Event()]
    outcomes = attempt_together(runs, tmp_path / "fused", train, stops[0])  # pyright: ignore[reportArgumentType]
    assert [outcome.state for outcome in outcomes] == ["preempted"] * 2
    train(runs[0], tmp_path / "fused", stop_event=StopAfter(4))
    outcomes = attempt_together(runs, tmp_path / "fused", train, stops[1])
    assert [outcome.state for outcome in outcomes] == ["done"] * 2
    for run in runs:
        train(run, tmp_path / "alone")
        same(run, tmp_path / "alone", tmp_path / "fused")


def test_one_that_fails_leaves_the_others(
    make_run: Any, tmp_path: Path, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = sweep(make_run)[:2]

    def fail_late(config: RunConfig, *rest: Any, **options: Any) -> str:
        if config.run_id == runs[1].run_id:
            train(config, *rest, **options | {"stop_event": StopAfter(9)})
            raise LinscaleError("the disk is full")
        return train(config, *rest, **options)

    outcomes = attempt_together(runs, tmp_path, fail_late, threading.Event())
    assert [outcome.state for outcome in outcomes] == ["done", "failed"]
    assert outcomes[1].reason == "the disk is full"
    assert steps[-1] == 1


def test_an_error_of_the_common_step_reaches_all(
    make_run: Any, tmp_path: Path, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(members: list[Any]) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(together, "side_by_side", fail)
    outcomes = attempt_together(sweep(make_run), tmp_path, train, threading.Event())
    assert {outcome.state for outcome in outcomes} == {"failed"}
    assert all("out of memory" in outcome.reason for outcome in outcomes)


def test_runs_of_one_shape(make_run: Any) -> None:
    runs = sweep(make_run)
    other = make_run(GRAPH, arch="hgrn2")
    found = groups([runs[0], other, *runs[1:]], 2)
    assert found == [runs[:2], [runs[2]], [other]]


def test_not_on_a_cpu(make_run: Any, tmp_path: Path, make_experiment: Any) -> None:
    with pytest.raises(ConfigError, match=r"--fuse: llama-test trains on a CPU.*--jobs"):
        fused(make_run())
    experiment = make_experiment("a", "b")
    with pytest.raises(ConfigError, match="trains on a CPU"):
        launch(experiment, tmp_path / "sweep", fuse=2)
    for options, message in [
        ({"fuse": 1}, "at least 2"),
        ({"fuse": 2, "jobs": 2}, "--fuse with --jobs"),
        ({"fuse": 2, "launcher": "slurm"}, "--fuse with --launcher slurm"),
    ]:
        with pytest.raises(ConfigError, match=message):
            launch(experiment, tmp_path / "sweep", **options)

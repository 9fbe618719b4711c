"""`parallel.cuda_graph`: the step as one function, with and without something that captures it.

What captures here keeps the function and calls it again, where a CUDA device would replay what it
launched; so that all but the graph itself is what runs there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models.config import ConfigError
from scaling.training import captured
from scaling.training.train import train
from tests.support.results import StopAfter, lines, metrics

WHOLE = "parallel.cuda_graph=true"


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is captured and replayed, by something that stands in for a graph."""
    done: list[str] = []

    def capture(run: captured.Run) -> captured.Run:
        done.append("captured")

        def replay() -> None:
            done.append("replayed")
            run()

        return replay

    monkeypatch.setattr(captured, "capture_on", lambda device: capture)
    return done


def weights(run: Any, sweep: Path) -> dict[str, torch.Tensor]:
    path = sweep / run.run_id / lines(run, sweep, "milestones.jsonl")[-1]["checkpoint"]
    return torch.load(path, weights_only=True)["model"]


def same(plain: Any, plain_sweep: Path, other: Any, sweep: Path) -> None:
    """Records and the last weights, to the bit."""
    assert plain.run_id == other.run_id
    assert metrics(plain, plain_sweep) == metrics(other, sweep)
    first, second = weights(plain, plain_sweep), weights(other, sweep)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("arch", "changes"),
    [
        ("tnl", ()),
        ("hgrn2", ("parallel.micro_batch_sequences=2", "parallel.precision=bf16")),
        ("llama", ("optim.clip_norm=none", "model.mup_base_dim=16", "divergence.policy=skip")),
    ],
)
def test_to_the_bit_the_plain_step(
    arch: str, changes: tuple[str, ...], make_run: Any, tmp_path: Path, replays: list[str]
) -> None:
    plain = make_run(*changes, arch=arch)
    whole = plain.override([WHOLE])
    train(plain, tmp_path / "plain")
    assert not replays
    train(whole, tmp_path / "whole")
    same(plain, tmp_path / "plain", whole, tmp_path / "whole")
    # Segments of 6, 2, 2, 4, 9 and 7 steps: a capture in each that is long enough; every fifth step
    # and the last record norms and are made without the graph.
    assert replays.count("captured") == 3
    assert replays.count("replayed") >= 6


def test_targets_that_count_in_some_places(
    make_run: Any, tmp_path: Path, replays: list[str]
) -> None:
    plain = make_run(
        "data.corpus=task:mqar:pairs=4,vocab=64", "parallel.micro_batch_sequences=1",
        "budget.horizons=()", "data.sequence_length=32", "schedule.kind=constant",
    )  # fmt: skip
    whole = plain.override([WHOLE])
    train(plain, tmp_path / "plain")
    train(whole, tmp_path / "whole")
    same(plain, tmp_path / "plain", whole, tmp_path / "whole")
    assert "replayed" in replays


def test_a_run_goes_on_captured_or_not(make_run: Any, tmp_path: Path, replays: list[str]) -> None:
    plain = make_run("schedule.kind=cosine", arch="tnl")
    whole = plain.override([WHOLE])
    train(plain, tmp_path / "plain")
    order = [whole, plain, whole, plain, whole, plain, whole]
    for run in order:
        if train(run, tmp_path / "pieces", stop_event=StopAfter(5)) == "done":
            break
    same(plain, tmp_path / "plain", plain, tmp_path / "pieces")
    assert "replayed" in replays


def test_on_a_cpu_nothing_is_captured(make_run: Any, tmp_path: Path) -> None:
    plain = make_run("budget.horizons=()", "schedule.kind=constant")
    whole = plain.override([WHOLE])
    assert captured.capture_on(torch.device("cpu")) is None
    assert captured.capture_on(torch.device("cuda")) is captured.cuda_capture
    train(plain, tmp_path / "plain")
    train(whole, tmp_path / "whole")
    same(plain, tmp_path / "plain", whole, tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("parallel.devices=2", "ranks meet"),
        ("parallel.strategy=fsdp", "ranks meet"),
        ("data.document_mask=true", "examples in a row changes"),
        ("linearize.teacher=somewhere", "what a stage does changes"),
    ],
)
def test_what_a_graph_cannot_hold(change: str, why: str, make_run: Any) -> None:
    more = ["model.arch=supra"] if "teacher" in change else []
    with pytest.raises(ConfigError, match=rf"cuda_graph=True with .*{why}.*leave"):
        make_run(WHOLE, change, *more)

"""Loggers hear every line of metrics.jsonl; one that is not installed is named before training."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import loggers as lightning_loggers

from linscale.errors import LinscaleError
from scaling.config.experiment import Experiment
from scaling.sweep.launch import launch
from scaling.training.train import train


class Spy:
    """Takes the place of a Lightning logger."""

    made: list[Spy]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.arguments, self.options = arguments, options
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.hyperparameters: dict[str, Any] = {}
        self.ended = ""
        Spy.made.append(self)

    def log_hyperparams(self, values: dict[str, Any]) -> None:
        self.hyperparameters = values

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.lines.append((step, values))

    def finalize(self, status: str) -> None:
        self.ended = status


def test_every_line_reaches_the_loggers(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Spy.made = []
    for name in ("TensorBoardLogger", "WandbLogger", "MLFlowLogger"):
        monkeypatch.setattr(lightning_loggers, name, Spy)
    plain = make_run("budget.tokens=1280", "budget.horizons=()")
    config = plain.override(["loggers=tensorboard,wandb,mlflow"])
    assert config.run_id == plain.run_id
    train(config, tmp_path / "sweep")
    board, wandb, mlflow = Spy.made
    assert board.arguments == (tmp_path / "sweep" / config.run_id,)
    assert wandb.options["id"] == config.run_id
    assert mlflow.options["experiment_name"] == "sweep"
    stored = [
        json.loads(line)
        for line in (tmp_path / "sweep" / config.run_id / "metrics.jsonl").read_text().splitlines()
    ]
    for spy in Spy.made:
        assert spy.hyperparameters == config.to_json()
        assert spy.ended == "success"
        assert [step for step, _ in spy.lines] == [line["step"] for line in stored]
    trunk, *_, last = board.lines
    assert trunk[1]["train/loss"] == stored[0]["loss"]
    assert last[1]["validation/loss"] == stored[-1]["loss"]
    assert any("decay/loss" in values for _, values in board.lines)


def test_a_logger_that_is_not_installed_is_named(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("no wandb here", name="wandb")

    monkeypatch.setattr(lightning_loggers, "WandbLogger", missing)
    with pytest.raises(LinscaleError, match="loggers=wandb: wandb is not installed; pip install"):
        train(make_run("loggers=wandb"), tmp_path)


def test_a_launch_that_lacks_a_logger_begins_nothing(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    run = make_run("loggers=tensorboard")
    experiment = Experiment(name="logged", path=Path("logged.py"), text="", runs=[run])
    with pytest.raises(LinscaleError, match="loggers=tensorboard: tensorboard is not installed"):
        launch(experiment, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()

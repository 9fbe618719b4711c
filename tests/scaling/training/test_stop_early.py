"""A run that is asked to stop early saves, says so, and can go on as if nothing had been."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from analysis.io.frames import words
from analysis.io.records import load_sweep
from models.config import ConfigError, toy_config
from scaling.cli import early as command
from scaling.cli.main import app
from scaling.config.experiment import Experiment
from scaling.config.run import BudgetConfig, DataConfig, ParallelConfig, RunConfig
from scaling.record.early import FILE, ask_to_stop, asked_to_stop, go_on
from scaling.record.head import read_head
from scaling.sweep.launch import launch
from scaling.sweep.status import status_rows, summary
from scaling.training import callbacks
from scaling.training.train import train


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setenv("LINSCALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(callbacks, "STATUS_SECONDS", 0.0)
    lines = [json.dumps({"text": f"document {i} " * 20}) for i in range(60)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    return RunConfig(
        name="tiny",
        model=toy_config("tnl", 32, vocab_size=256, layers=1),
        data=DataConfig(corpus=f"jsonl:{tmp_path}/corpus.jsonl", sequence_length=16,
                        batch_sequences=4, validation_fraction=0.3, validation_blocks=4),
        budget=BudgetConfig(tokens=64 * 40, horizons=(64 * 20,)),
        parallel=ParallelConfig(accelerator="cpu", threads=1),
    )  # fmt: skip


def _losses(run_dir: Path) -> list[tuple[str, int, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["segment"], line["step"], line["loss"]) for line in lines]


def test_it_stops_is_left_out_and_goes_on(config: RunConfig, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    assert train(config, tmp_path / "whole") == "done"
    run_dir = sweep / config.run_id
    run_dir.mkdir(parents=True)
    assert ask_to_stop(run_dir, "dominated: it is too slow")
    assert not ask_to_stop(run_dir, "again")
    assert train(config, sweep) == "stopped"
    head = read_head(run_dir)
    assert (head.state, head.reason) == ("stopped", "dominated: it is too slow")
    assert 0 < head.tokens < 64 * 20
    # Visible everywhere, and not tried again.
    assert summary(status_rows(sweep)) == "1 stopped"
    reasons = words(load_sweep(sweep).exclusions, "reason")
    assert reasons == ["stopped early: dominated: it is too slow"]
    assert train(config, sweep) == "stopped"
    experiment = Experiment(name="sweep", path=Path("sweep.py"), text="", runs=[config])
    assert launch(experiment, sweep, launcher="inline")
    assert read_head(run_dir).tokens == head.tokens
    # Let go on, it ends with the numbers of a run that was never stopped, and is not asked again.
    assert go_on(config, sweep)
    assert not go_on(config, sweep)
    assert asked_to_stop(run_dir) == ""
    assert not ask_to_stop(run_dir, "again")
    assert launch(experiment, sweep, launcher="inline")
    assert read_head(run_dir).state == "done"
    assert _losses(run_dir) == _losses(tmp_path / "whole" / config.run_id)


def test_a_request_that_cannot_be_read_stops_nothing(config: RunConfig, tmp_path: Path) -> None:
    run_dir = tmp_path / config.run_id
    run_dir.mkdir()
    (run_dir / FILE).write_text("{")
    assert asked_to_stop(run_dir) == ""
    assert train(config, tmp_path) == "done"


def test_a_sweep_is_watched_while_it_runs(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule is asked between steps; what it finds is stopped, a look that fails ends nothing."""
    sweep, told = tmp_path / "sweep", list[str]()
    long = replace(config, budget=BudgetConfig(tokens=64 * 20_000))
    looks = iter([ValueError("half a line"), {long.run_id: "diverging: up it goes"}])

    def hopeless(_: Path) -> dict[str, str]:
        found = next(looks, {})
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(command, "SECONDS", 0.3)
    monkeypatch.setattr(command, "_hopeless", hopeless)
    with command.stopping(sweep, told.append):
        assert train(long, sweep) == "stopped"
    assert told[0] == "--stop-early: ValueError: half a line"
    assert told[1] == f"stopping {long.run_id}: diverging: up it goes"


def test_commands(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = tmp_path / "sweep"
    train(config, sweep)
    say = CliRunner().invoke(app, ["stop-early", str(sweep)])
    assert say.stdout == "no live run is beyond hope\n"
    monkeypatch.setattr(command, "_hopeless", lambda _: {config.run_id: "diverging: up it goes"})
    say = CliRunner().invoke(app, ["stop-early", str(sweep), "--dry-run"])
    assert say.stdout == f"would stop {config.run_id}: diverging: up it goes\n"
    assert asked_to_stop(sweep / config.run_id) == ""
    say = CliRunner().invoke(app, ["stop-early", str(sweep)])
    assert say.stdout == f"stopping {config.run_id}: diverging: up it goes\n"
    assert asked_to_stop(sweep / config.run_id) == "diverging: up it goes"
    refused = CliRunner().invoke(app, ["run", "quickstart", "--launcher", "slurm", "--stop-early"])
    assert isinstance(refused.exception, ConfigError)
    assert "linscale stop-early DIR" in str(refused.exception)

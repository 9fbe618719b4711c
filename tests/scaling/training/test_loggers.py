"""Loggers get every line of metrics.jsonl once, and never hurt a run."""

from __future__ import annotations

import importlib.machinery
import json
import sys
import threading
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import loggers as lightning_loggers
from typer.testing import CliRunner

from linscale.errors import LinscaleError
from scaling.cli.main import app
from scaling.config.experiment import Experiment
from scaling.sweep.launch import launch
from scaling.training import follower, loggers
from scaling.training.train import train
from tests.support.results import StopAfter, lines

KINDS = ("TensorBoardLogger", "WandbLogger", "MLFlowLogger")


class Spy:
    """Takes the place of a Lightning logger: a server that outlives the run's processes."""

    made: list[Spy]
    down: bool
    stored: list[tuple[int, dict[str, float]]]
    """Of all spies."""
    fails_after: int | None
    hangs: threading.Event | None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.arguments, self.options = arguments, options
        self.version = "the-run"
        self.experiment = self
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.hyperparameters: dict[str, Any] = {}
        self.ended = ""
        self.states: list[str] = []
        Spy.made.append(self)

    def update_run(self, run_id: str, status: str) -> None:
        self.states.append(f"{run_id} {status}")

    def log_hyperparams(self, values: dict[str, Any]) -> None:
        self.hyperparameters = values

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        if Spy.hangs is not None:
            Spy.hangs.wait()
        if Spy.fails_after is not None and len(Spy.stored) >= Spy.fails_after:
            Spy.down = True
        if Spy.down:
            raise ConnectionError("no route to host")
        self.lines.append((step, values))
        Spy.stored.append((step, values))

    def save(self) -> None: ...

    def finalize(self, status: str) -> None:
        self.ended = status


@pytest.fixture
def spies(monkeypatch: pytest.MonkeyPatch) -> type[Spy]:
    Spy.made, Spy.stored, Spy.down, Spy.fails_after, Spy.hangs = [], [], False, None, None
    for name in KINDS:
        monkeypatch.setattr(lightning_loggers, name, Spy)
    monkeypatch.setattr(loggers, "PACKAGES", dict.fromkeys(loggers.PACKAGES, ("json",)))
    monkeypatch.setattr(follower, "RETRY_SECONDS", (0.01, 0.02))
    return Spy


def steps(config: Any, sweep: Path) -> list[int]:
    return [line["step"] for line in lines(config, sweep)]


def test_every_line_reaches_the_loggers(make_run: Any, tmp_path: Path, spies: type[Spy]) -> None:
    plain = make_run("budget.tokens=1280", "budget.horizons=()")
    config = plain.override(["loggers=tensorboard,wandb,mlflow"])
    assert config.run_id == plain.run_id
    train(config, tmp_path / "sweep")
    by_kind = {len(spy.options): spy for spy in spies.made}
    board, mlflow, wandb = by_kind[2], by_kind[4], by_kind[5]
    assert board.arguments == (tmp_path / "sweep" / config.run_id,)
    assert wandb.options["id"] == config.run_id
    assert mlflow.options["experiment_name"] == "sweep"
    stored = lines(config, tmp_path / "sweep")
    for spy in spies.made:
        assert spy.hyperparameters == config.to_json()
        assert spy.ended == "success"
        assert [step for step, _ in spy.lines] == [line["step"] for line in stored]
    trunk, *_, last = board.lines
    assert trunk[1]["train/loss"] == stored[0]["loss"]
    assert last[1]["validation/loss"] == stored[-1]["loss"]
    assert any("decay/loss" in values for _, values in board.lines)


def test_trackio_is_one_run_of_its_project(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A stand-in with the interface of trackio 0.43; what it prints stays off standard output,
    which is the pool's."""
    begun: list[dict[str, Any]] = []
    logged: list[tuple[int, dict[str, float]]] = []

    class Run:
        def log(self, metrics: dict[str, float], step: int) -> None:
            logged.append((step, metrics))

        def finish(self) -> None:
            print("* Run finished")

    def init(**options: Any) -> Run:
        print("* Created new run")
        begun.append(options)
        return Run()

    trackio = types.ModuleType("trackio")
    setattr(trackio, "init", init)  # noqa: B010
    trackio.__spec__ = importlib.machinery.ModuleSpec("trackio", None)
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    config = make_run("budget.tokens=1280", "budget.horizons=()", "loggers=trackio")
    train(config, tmp_path / "sweep")
    (options,) = begun
    assert (options["project"], options["name"]) == ("sweep", config.run_id)
    assert options["resume"] == "allow"
    assert options["config"] == config.to_json()
    assert [step for step, _ in logged] == steps(config, tmp_path / "sweep")
    assert logged[0][1]["train/loss"] == lines(config, tmp_path / "sweep")[0]["loss"]
    assert "*" not in capsys.readouterr().out


def test_a_server_that_dies_costs_a_line_and_is_caught_up(
    make_run: Any, tmp_path: Path, spies: type[Spy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "END_SECONDS", 0.2)
    spies.fails_after = 7
    config = make_run("loggers=mlflow")
    assert train(config, tmp_path) == "done"
    log = (tmp_path / config.run_id / "log.txt").read_text()
    assert log.count("does not work now (ConnectionError: no route to host)") == 1
    assert "`linscale log-to mlflow" in log
    assert len(spies.stored) == 7

    result = CliRunner().invoke(app, ["log-to", "mlflow", str(tmp_path / config.run_id)])
    assert "no route to host" in str(result.exception)
    spies.down, spies.fails_after = False, None
    result = CliRunner().invoke(app, ["log-to", "mlflow", str(tmp_path)])
    assert f"{len(steps(config, tmp_path)) - 7} lines sent to mlflow" in result.output
    assert [step for step, _ in spies.stored] == steps(config, tmp_path)
    assert spies.made[-1].options["run_id"] == "the-run"  # one run there, whatever happened
    assert spies.made[-1].ended == "success"
    result = CliRunner().invoke(app, ["log-to", "mlflow", str(tmp_path)])
    assert "0 lines sent" in result.output


def test_a_server_that_comes_back_gets_all_in_the_same_session(
    make_run: Any, tmp_path: Path, spies: type[Spy]
) -> None:
    spies.down = True
    threading.Timer(0.5, lambda: setattr(Spy, "down", False)).start()
    config = make_run("loggers=wandb")
    assert train(config, tmp_path) == "done"
    assert [step for step, _ in spies.stored] == steps(config, tmp_path)


def test_a_server_that_hangs_holds_up_the_end_only(
    make_run: Any, tmp_path: Path, spies: type[Spy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "END_SECONDS", 0.2)
    spies.hangs = threading.Event()
    config = make_run("loggers=tensorboard")
    assert train(config, tmp_path) == "done"
    assert "not all metrics have arrived" in (tmp_path / config.run_id / "log.txt").read_text()
    spies.hangs.set()
    for thread in threading.enumerate():  # or it would send to the spies of the next test
        if thread.name == "tensorboard":
            thread.join(60)
            assert not thread.is_alive()


def test_a_resumed_run_is_one_run_without_a_line_twice(
    make_run: Any, tmp_path: Path, spies: type[Spy]
) -> None:
    config = make_run("loggers=mlflow", "budget.checkpoint_every_tokens=640")
    for count in (7, 9):
        assert train(config, tmp_path, stop_event=StopAfter(count)) == "preempted"
        assert spies.made[-1].ended == "KILLED"
        # As after a kill: the run goes on from step 5, and lines beyond it are written again.
        last = max((tmp_path / config.run_id / "checkpoints").glob("resume-*"), key=str)
        last.unlink()
    train(config, tmp_path)
    first, *later = spies.made
    assert first.options["run_id"] is None
    assert all(spy.options["run_id"] == "the-run" for spy in later)
    assert all(spy.states == ["the-run RUNNING"] for spy in later)
    assert not any(spy.hyperparameters for spy in later)
    assert [step for step, _ in spies.stored] == steps(config, tmp_path)


def test_the_rank_of_a_cluster_is_not_that_of_the_run(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under `srun -n 4`: this process is number 1 of the job, and the only one of its run."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    written: list[int] = []

    class Board(Spy):
        @rank_zero_only
        def log_metrics(self, values: dict[str, float], step: int) -> None:
            written.append(step)

    Spy.made = []
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # what Lightning takes from it on import
    monkeypatch.setattr(lightning_loggers, "TensorBoardLogger", Board)
    monkeypatch.setattr(loggers, "PACKAGES", dict.fromkeys(loggers.PACKAGES, ("json",)))
    config = make_run("budget.tokens=1280", "budget.horizons=()", "loggers=tensorboard")
    train(config, tmp_path)
    assert written == steps(config, tmp_path)


def test_a_logger_that_is_not_installed_is_named(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "PACKAGES", dict.fromkeys(loggers.PACKAGES, ("no_such",)))
    with pytest.raises(LinscaleError, match="loggers=wandb: wandb is not installed; pip install"):
        train(make_run("loggers=wandb"), tmp_path)


def experiment(run: Any) -> Experiment:
    return Experiment(name="logged", path=Path("logged.py"), text="", runs=[run])


def test_a_launch_that_lacks_a_logger_begins_nothing(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "PACKAGES", dict.fromkeys(loggers.PACKAGES, ("no_such",)))
    with pytest.raises(LinscaleError, match="loggers=tensorboard: tensorboard is not installed"):
        launch(experiment(make_run("loggers=tensorboard")), tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


class Server(BaseHTTPRequestHandler):
    status = 401

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(json.dumps({}).encode())

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{httpd.server_address[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        yield address
        httpd.shutdown()


def test_credentials_are_checked_before_a_launch(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str, spies: type[Spy]
) -> None:
    with pytest.raises(LinscaleError, match=rf"{server} refuses the credentials \(HTTP 401\)"):
        launch(experiment(make_run("loggers=mlflow")), tmp_path / "sweep")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(LinscaleError, match=r"no credentials for api.wandb.ai; run `wandb login`"):
        launch(experiment(make_run("loggers=wandb")), tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert loggers.check_servers(["wandb"], tmp_path) == []


def test_a_server_that_is_away_stops_no_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (told,) = loggers.check_servers(["mlflow"], tmp_path)
    assert "cannot be reached" in told
    assert "runs go on without it" in told

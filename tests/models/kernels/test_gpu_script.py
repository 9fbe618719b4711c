"""`python -m experiments.gpu` walked through without a GPU: the driver, and every part."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.benchmarks import kernels_gpu
from experiments.gpu import __main__ as driver
from experiments.gpu import check, first, ladder, serving, slow_rows, training
from experiments.gpu.steps import MINUTES, PARTS, Step, steps
from models import config
from models.kernels import launch, selfcheck
from models.kernels.tools import tune
from models.kernels.triton.common import interpreted

in_interpreter = pytest.mark.skipif(not interpreted(), reason="needs TRITON_INTERPRET=1")


def test_pieces_are_short_named_once_and_there(tmp_path: Path) -> None:
    found = list(steps(tmp_path))
    assert [part for part in PARTS if any(x.part == part for x in found)] == list(PARTS)
    assert sorted(found, key=lambda x: PARTS.index(x.part)) == found
    assert len({x.name for x in found}) == len(found)
    for step in found:
        assert step.minutes <= MINUTES == 8
        module = step.command[step.command.index("-m") + 1]
        assert find_spec(module) is not None, module


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts programs in the place of the pieces."""

    def put(**programs: str) -> None:
        made = [
            Step(
                part="first", name=name, command=(sys.executable, "-c", program),
                minutes=0.005 if "sleep" in program else 1, resumable=name == "long",
            )
            for name, program in programs.items()
        ]  # fmt: skip
        monkeypatch.setattr(driver, "steps", lambda out, sizes: made)

    return put


def test_everything_is_written_and_a_second_run_goes_on(
    pieces: Callable[..., None], tmp_path: Path
) -> None:
    counted = (
        "from pathlib import Path; p = Path('{}'); p.touch(); p.write_text(p.read_text() + 'x')"
    )
    ran = tmp_path / "ran"
    good = counted.format(ran) + "; print('{\"right\": true}'); print('{not json')"
    pieces(good=good, bad="print('why'); raise SystemExit(3)", long="import time; time.sleep(60)")
    out = ["--out", str(tmp_path / "out")]
    assert driver.main(out) == 1
    assert driver.main(out) == 1
    assert ran.read_text() == "x"
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": "good", "right": True}]
    ends = [json.loads(x) for x in (tmp_path / "out" / "steps.jsonl").read_text().splitlines()]
    # The one that was cut short was started again, the one that failed was not.
    assert [(x["name"], x["status"]) for x in ends] == [
        ("good", 0), ("bad", 3), ("long", -1), ("long", -1),
    ]  # fmt: skip
    assert ends[1]["last"] == "why"
    pieces(good=good, bad="pass", long="pass")
    assert driver.main([*out, "--again"]) == 0
    assert ran.read_text() == "x"


def test_no_piece_begins_that_would_not_end(pieces: Callable[..., None], tmp_path: Path) -> None:
    pieces(good="pass")
    assert driver.main(["--out", str(tmp_path), "--minutes", "0.5"]) == 2
    assert not (tmp_path / "steps.jsonl").exists()


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models and shapes on the CPU; times are not taken."""

    def small(arch: config.Arch, size: str) -> config.ModelConfig:
        return config.ModelConfig(arch=arch, vocab_size=64, dim=32, layers=1, heads=2, glu_dim=32)

    def once(function: Callable[[], object]) -> tuple[float, float, float]:
        function()
        return 0.4, 0.5, 0.6

    for module, name, value in (
        (config, "paper_config", small), (kernels_gpu, "DEVICE", "cpu"),
        (kernels_gpu, "quantiles", once), (kernels_gpu, "TOKENS", 16), (first, "DEVICE", "cpu"),
        (first, "SHAPE", (1, 20, 1, 16)), (first, "REPEATS", 2), (serving, "LENGTHS", (5,)),
        (serving, "BATCH", 2), (training, "ACCELERATOR", "cpu"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)


@in_interpreter
@pytest.mark.usefixtures("on_cpu")
def test_first_minutes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = {"device": "NVIDIA H200", "arch": "sm_90", "triton": "3.6.0", "ptxas": "12.8"}
    monkeypatch.setattr(selfcheck, "versions", lambda device: found)
    assert first.main("versions") == 0
    assert len(json.loads(capsys.readouterr().out)["known"]) == 2
    some = {mode: launch.KERNELS[mode] for mode in ("none", "gate")}  # one of each family
    monkeypatch.setattr(launch, "KERNELS", some)
    assert [row["right"] for row in first.operations(tokens=20, dim=16)] == [True, True]
    assert first.main("repeats") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["mode"], row["packed"]) for row in rows] == [
        ("none", False), ("none", True), ("gate", False), ("gate", True),
    ]  # fmt: skip
    monkeypatch.setattr(selfcheck, "errors", lambda *_: {"none": 0.5})
    assert first.main("small") == 1  # a wrong kernel fails the piece


@pytest.mark.parametrize(("status", "expected"), [(0, 0), (1, 1), (5, 0)])
def test_check_goes_on_after_what_passed(
    status: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What passed before is what pytest leaves out; that nothing is left counts as done."""
    started: list[tuple[list[str], dict[str, str]]] = []

    def run(command: list[str], cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        started.append((command, env))
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(subprocess, "run", run)
    (tmp_path / "passed.txt").write_text("one\n")
    assert check.main(tmp_path) == expected
    [(command, environment)] = started
    assert command[1:6] == ["-m", "pytest", "-q", "-m", "gpu"]
    assert Path(environment["LINSCALE_GPU_DONE"]).read_text() == "one\n"
    assert environment["LINSCALE_GPU_RECORD"] == str(tmp_path / "passed.txt")


@pytest.mark.slow
def test_check_runs_pytest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest on a file without GPU tests: nothing is left."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # one process
    assert check.main(tmp_path, "tests/models/kernels/test_reference.py") == 0
    assert (tmp_path / "done.txt").read_text() == ""


@pytest.mark.usefixtures("on_cpu")
def test_training_parts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append("block"))
    monkeypatch.setattr(torch.optim, "AdamW", lambda x, **_: torch.optim.SGD(x, lr=0.0))
    for part in ("profile", "compiled"):
        assert training.main(part, "70M", Path()) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["arch"] for row in rows if row["part"] == "profile"] == list(config.ARCHS)
    assert all(len(row["top"]) == training.TOP for row in rows if row["part"] == "profile")
    rates = [row for row in rows if row["part"] == "compiled"]
    assert [row["compile"] for row in rates] == [False, True] * len(config.ARCHS)
    assert all(row["tokens_per_second"] == 16 / 0.5e-3 for row in rates)
    assert len(compiled) == len(config.ARCHS)


@pytest.mark.slow
@pytest.mark.usefixtures("on_cpu")
def test_killed_and_gone_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "ARCHS", ("tnl",))
    monkeypatch.setenv("LINSCALE_CACHE", str(tmp_path / "cache"))
    assert training.main("resume", "70M", tmp_path) == 0
    [row] = [json.loads(x) for x in capsys.readouterr().out.splitlines() if x.startswith("{")]
    assert row["killed"]
    assert row["same_metrics"]
    assert row["same_weights"]


def test_slow_rows_are_tuned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def row(mode: str, name: str, both: float, dim: int = 128) -> dict[str, Any]:
        return {"part": "standard", "shape": f"B1 T8 H1 D{dim}", "mode": mode, "name": name,
                "forward": 1.0, "both": both, "floor_bytes": [0, 1e9]}  # fmt: skip

    records = [
        {"part": "run", "bandwidth": 1e12},  # the floor is 1 ms
        row("none", "linscale", 2.0), row("none", "fla linear_attn", 5.0),  # fast
        row("hgrn2", "linscale", 2.4), row("hgrn2", "fla HGRN2", 3.0),  # 1.25 times as fast
        row("cosine", "linscale", 10.0, 60),  # 10 times the floor
        row("channel", "fla gla", 1.0), {"part": "standard", "failed": "no"},
    ]  # fmt: skip
    assert slow_rows.slow(records) == [("phase", 60), ("vector", 128)]
    assert slow_rows.main(tmp_path) == 1  # nothing measured yet
    (tmp_path / "kernels.jsonl").write_text("\n".join(map(json.dumps, records)))
    tuned: list[Any] = []
    monkeypatch.setattr(tune, "tune", lambda families, dims, **_: tuned.append((families, dims)))
    for _ in range(2):
        assert slow_rows.main(tmp_path) == 0
    assert tuned == [(("phase",), [64]), (("vector",), [128])]


@pytest.mark.usefixtures("on_cpu")
def test_serving(capsys: pytest.CaptureFixture[str]) -> None:
    assert serving.main("70M") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["part"] for row in rows] == ["prefill", "step"] * len(config.ARCHS)


@pytest.mark.usefixtures("on_cpu")
def test_ladder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The forecast is written once, before the larger rung, and cannot be changed."""

    def train(run: Any, sweep: Path) -> str:
        folder = sweep / run.run_id
        folder.mkdir(parents=True, exist_ok=True)
        row = {"split": "validation", "loss": 7.0 * ladder.compute_of(run) ** -0.05}
        (folder / "metrics.jsonl").write_text(json.dumps(row))
        (folder / "status.json").write_text('{"state": "done"}')
        return "done"

    monkeypatch.setattr(ladder, "train", train)
    with pytest.raises(SystemExit, match="comes before the run"):
        ladder.main("rung", tmp_path)
    with pytest.raises(SystemExit, match="0 rungs have ended"):
        ladder.main("forecast", tmp_path)
    for part in ("rungs", "forecast", "rung"):
        assert ladder.main(part, tmp_path) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == len(config.ARCHS) * (len(ladder.DIMS) + 1) + 1
    for row in rows[-len(config.ARCHS) :]:
        assert row["inside"]
        assert row["loss"] == pytest.approx(row["forecast_loss"], rel=1e-6)
    path = tmp_path / "forecast.json"
    path.write_text(path.read_text().replace('"loss": ', '"loss": 1'))
    with pytest.raises(SystemExit, match="changed after it was sealed"):
        ladder.main("rung", tmp_path)

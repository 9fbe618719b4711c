"""`parallel.precision=auto`: what the device computes in, the same for the whole of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from linscale.errors import LinscaleError
from models.config import ConfigError
from scaling.config.experiment import Experiment
from scaling.plan.accelerator import native_precision
from scaling.plan.memory import memory
from scaling.plan.plan import place, rung
from scaling.record.record import RunRecord
from scaling.sweep.launch import launch
from scaling.system.devices import DEVICES, find_device
from scaling.training import parallel
from scaling.training.train import train
from tests.support.results import StopAfter, metrics


def test_it_is_the_run_that_fp32_was(make_run: Any) -> None:
    run = make_run("parallel.precision=auto")
    assert run.parallel.precision == make_run().parallel.precision == "auto"
    assert run.run_id == make_run("parallel.precision=fp32").run_id
    assert run.run_id == make_run("parallel.native_precision=bf16").run_id
    assert run.run_id != make_run("parallel.precision=bf16").run_id


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp32")])
def test_bf16_where_it_is_native(
    native: bool, precision: str, make_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native)
    assert native_precision("cuda") == precision
    assert native_precision("cpu") == "fp32"
    monkeypatch.setattr(parallel, "accelerator", lambda config: "cuda")
    decided = parallel.decide(make_run("parallel.strategy=single"))
    assert decided.parallel.bf16 == native
    assert decided.run_id == make_run().run_id
    asked = make_run("parallel.strategy=single", "parallel.precision=fp32")
    assert parallel.decide(asked).parallel.bf16 is False


def test_a_plan_counts_what_the_device_computes_in(make_run: Any) -> None:
    run = make_run("parallel.accelerator=auto")
    half, whole = (memory(run.override([f"parallel.precision={p}"])) for p in ("bf16", "fp32"))
    assert half != whole
    assert rung(run, DEVICES["h100"]).memory_per_device == half.total
    assert rung(run, find_device("cpu")).memory_per_device == whole.total
    placed = place(run, DEVICES["h100"], 1, 1)
    assert placed.parallel.asked_precision is None  # the device that it meets decides
    assert placed.run_id == run.run_id


def test_a_run_stays_in_the_precision_that_it_was_begun_in(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun where bf16 is native, stopped, and gone on with on this CPU."""
    run = make_run("budget.horizons=()", "schedule.kind=constant")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(parallel, "native_precision", lambda kind: "bf16")
        assert train(run, tmp_path, stop_event=StopAfter(5)) == "preempted"
    with pytest.raises(LinscaleError, match=r"precision='fp32': .* was begun in bf16 .*--out"):
        train(run.override(["parallel.precision=fp32"]), tmp_path)
    assert train(run, tmp_path) == "done"
    record = RunRecord(run, tmp_path)
    assert record.environment["precision"] == "bf16"
    explicit = run.override(["parallel.precision=bf16"])
    assert train(explicit, tmp_path / "bf16") == "done"
    assert metrics(run, tmp_path) == metrics(explicit, tmp_path / "bf16")
    fp32 = run.override(["parallel.precision=fp32"])
    experiment = Experiment(name="exp", path=tmp_path / "exp.py", text="# exp", runs=[fp32])
    with pytest.raises(LinscaleError, match="was begun in bf16"):
        launch(experiment, tmp_path, launcher="inline")


def test_a_record_from_before_keeps_its_precision(make_run: Any, tmp_path: Path) -> None:
    """Its environment does not say; its configuration does."""
    run = make_run("parallel.precision=fp32", "budget.horizons=()", "schedule.kind=constant")
    train(run, tmp_path)
    path = RunRecord(run, tmp_path).path / "environment.json"
    content = json.loads(path.read_text())
    del content["precision"]
    path.write_text(json.dumps(content))
    other = make_run(
        "budget.horizons=()", "schedule.kind=constant", "parallel.native_precision=bf16"
    )
    experiment = Experiment(name="exp", path=tmp_path / "exp.py", text="# exp", runs=[other])
    with pytest.raises(LinscaleError, match="begun in fp32"):
        launch(experiment, tmp_path, launcher="inline")


def test_a_device_that_cannot_says_so(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "an old GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    run = make_run("parallel.accelerator=cuda", "parallel.strategy=single")
    assert parallel.decide(run).parallel.bf16 is False
    with pytest.raises(ConfigError, match="cannot compute in bf16"):
        parallel.decide(run, "bf16")

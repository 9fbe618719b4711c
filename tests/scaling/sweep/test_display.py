"""What a running sweep shows, on a terminal and elsewhere."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from models.config import toy_config
from scaling.config.run import BudgetConfig, RunConfig
from scaling.sweep import display as display_module
from scaling.sweep.display import SweepDisplay
from scaling.sweep.task import Task


def task(sweep: Path, name: str, state: str, trained: int, flops: float) -> Task:
    """A task with the record of a run of 1000 tokens."""
    model = toy_config("tnl", 32, vocab_size=256)
    config = RunConfig(name=name, model=model, budget=BudgetConfig(tokens=10_000))
    folder = sweep / config.run_id
    folder.mkdir(parents=True)
    status = {
        "state": "running" if state in ("running", "elsewhere") else state,
        "tokens": trained,
        "tokens_total": 1000,
        "loss": 2.25,
        "tokens_per_second": 123_456.0,
        "eta_seconds": 130.0,
        "updated": datetime.now(UTC).isoformat(),
        "hostname": "far",
    }
    (folder / "status.json").write_text(json.dumps(status))
    return Task(config=config, flops=flops, state=state)


@pytest.fixture
def tasks(tmp_path: Path) -> list[Task]:
    # 600 + 0.5 x 200 + 0.25 x 100 of 1000 FLOPs are done: 72.5 %.
    return [
        task(tmp_path, "ended", "done", 1000, 600.0),
        task(tmp_path, "here", "running", 500, 200.0),
        task(tmp_path, "there", "elsewhere", 250, 100.0),
        task(tmp_path, "later", "waiting", 0, 100.0),
    ]


def plain(text: str) -> str:
    return " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", " ", text).split())


def test_terminal_shows_runs_under_way_and_the_whole(
    tmp_path: Path,
    tasks: list[Task],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "180")
    with SweepDisplay(tmp_path, tasks, table=True) as display:
        display.refresh()
        shown = plain(capsys.readouterr().out)
        tasks[1].state, tasks[1].reason = "failed", "no disk"
        display.show_end(tasks[1])
        said = plain(capsys.readouterr().out)
    assert f"{tasks[1].run_id} " in shown
    assert "500 2.2500 123,456 2:10 min" in shown
    assert "on far, another launch" in shown
    assert "1 of 4 runs" in shown
    assert "72% of the compute" in shown
    assert tasks[3].run_id not in shown
    assert f"failed {tasks[1].run_id} no disk (2 left)" in said


def test_elsewhere_a_line_says_how_far_things_are(
    tmp_path: Path,
    tasks: list[Task],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(display_module, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(display_module, "REFRESH_SECONDS", 0.0)
    with SweepDisplay(tmp_path, tasks, table=True) as display:
        display.refresh()
        display.show_end(tasks[0])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f" 72% of the sweep, unknown time left | {tasks[1].run_id} 50% loss 2.2500",
        f"done      {tasks[0].run_id}  val loss   (3 left)",
    ]


def test_time_left_follows_the_rate_of_work(
    tmp_path: Path, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(display_module.time, "monotonic", lambda: clock[0])
    display = SweepDisplay(tmp_path, tasks, table=False)
    assert display._share() == (pytest.approx(0.725), None)
    clock[0] += 10
    tasks[2].state = "done"  # 75 FLOPs in 10 seconds; 200 are left
    done, left = display._share()
    assert done == pytest.approx(0.8)
    assert left == pytest.approx(200 / 7.5)

"""An experiment shortened to some minutes, and the disk that a plan names, against the files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from models.config import ConfigError
from scaling.config.experiment import Experiment, load_experiment
from scaling.config.run import RunConfig
from scaling.plan.plan import disk_bytes, rung
from scaling.plan.within import within, within_this_machine
from scaling.system.devices import GIB, Device
from scaling.training.train import train
from tests.scaling.conftest import MakeRun

MACHINE = Device(
    name="box", peak_flops=1e11, memory=64 * GIB, efficiency=0.4, is_host=True
)  # 20 runs of the quickstart, 1.52e13 FLOPs: 6.3 minutes


@pytest.fixture
def quickstart() -> Experiment:
    return load_experiment(Path("quickstart"), [])


def minutes_of(runs: list[RunConfig]) -> float:
    return 60 * sum(rung(run, MACHINE).device_hours for run in runs)


def test_what_fits_is_left_alone(quickstart: Experiment) -> None:
    whole, said = within(quickstart, 60, MACHINE)
    assert whole.runs == quickstart.runs
    assert whole.name == "quickstart-60min"
    assert "all of it fits: about 6 minutes" in said


@pytest.mark.parametrize(("minutes", "sizes"), [(4, 5), (1.5, 4), (0.9, 4)])
def test_as_many_sizes_as_see_a_quarter_of_their_tokens(
    quickstart: Experiment, minutes: float, sizes: int
) -> None:
    """By hand: all five sizes take 6.3 minutes and the four smaller ones 2.9."""
    short, said = within(quickstart, minutes, MACHINE)
    assert len({run.size for run in short.runs}) == sizes
    assert len(short.runs) == 4 * sizes
    assert minutes_of(short.runs) == pytest.approx(minutes, rel=0.1)
    assert short.name == f"quickstart-{minutes:g}min"
    assert f"({sizes} of 5 sizes)" in said
    for run in short.runs:
        first, second, last = run.horizon_steps
        assert last == pytest.approx(2 * second, rel=0.05)
        assert second == pytest.approx(2 * first, rel=0.05)
        assert run.steps == last


def test_the_same_command_goes_on_with_the_same_runs(
    quickstart: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The speed is measured once: a slower measurement later changes nothing."""
    monkeypatch.setattr("scaling.plan.within.device_for", lambda runs: MACHINE)
    first, _ = within_this_machine(quickstart, 3, tmp_path / "sweep")
    slower = replace(MACHINE, peak_flops=MACHINE.peak_flops / 2)
    monkeypatch.setattr("scaling.plan.within.device_for", lambda runs: slower)
    again, _ = within_this_machine(quickstart, 3, tmp_path / "sweep")
    assert [run.run_id for run in again.runs] == [run.run_id for run in first.runs]
    fresh, _ = within_this_machine(quickstart, 3, tmp_path / "other")
    assert [run.run_id for run in fresh.runs] != [run.run_id for run in first.runs]


def test_too_short_is_refused(quickstart: Experiment) -> None:
    with pytest.raises(ConfigError, match=r"too short for quickstart .* give more"):
        within(quickstart, 0.01, MACHINE)
    with pytest.raises(ConfigError, match="must be more than 0"):
        within(quickstart, -1, MACHINE)


def test_disk_is_what_lies_there(make_run: MakeRun, tmp_path: Path) -> None:
    """Milestones of three horizons, in float32, and the end of the trunk with both moments, three
    times as large; every file has a kilobyte or two of structure."""
    config = make_run()
    assert train(config, tmp_path) == "done"
    files = sorted((tmp_path / config.run_id / "checkpoints").glob("*.pt"))
    assert [file.name.split("-")[0] for file in files] == ["milestone"] * 3 + ["resume"]
    kept, most = disk_bytes(config)
    assert sum(file.stat().st_size for file in files) == pytest.approx(kept, rel=0.15)
    assert most == kept + 4 * 3 * (kept / 6)  # four resume points, three times a milestone each
    longer = replace(config, budget=replace(config.budget, keep_every_tokens=4 * 32 * 8))
    assert disk_bytes(longer)[0] == kept + 3 * 3 * (kept / 6)

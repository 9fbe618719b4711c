"""Sweeps that choose their runs: the loop, its record, and what it does after being killed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from linscale.errors import LinscaleError
from models.config import toy_config
from scaling.cli.adaptive import run_chosen
from scaling.cli.main import app
from scaling.config.experiment import Experiment
from scaling.config.run import BudgetConfig, DataConfig, ParallelConfig, RunConfig
from scaling.plan.costs import flops
from scaling.plan.plan import trained_tokens
from scaling.plan.shorter import candidates, forms
from scaling.record.record import RunRecord
from scaling.sweep import adaptive
from scaling.sweep.adaptive import Asked, run_adaptive
from scaling.sweep.launch import launch
from scaling.sweep.ledger import FILE, Ledger
from scaling.sweep.slurm import SlurmOptions
from scaling.system.devices import find_device

ROOT = Path(__file__).resolve().parents[3]
STEP = 64
HORIZONS = (STEP * 40, STEP * 80, STEP * 160)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Experiment]:
    """An experiment of llama and tnl at some widths, with three horizons."""
    monkeypatch.setenv("LINSCALE_CACHE", str(tmp_path / "cache"))
    lines = [json.dumps({"text": f"document {i} " * 20}) for i in range(60)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))

    def experiment(dims: tuple[int, ...], seeds: int = 1, name: str = "") -> Experiment:
        runs = [
            RunConfig(
                name=f"{name}{arch}-d{dim}",
                size=f"d{dim}",
                seed=seed,
                model=toy_config(arch, dim, vocab_size=256),
                data=DataConfig(corpus=f"jsonl:{tmp_path}/corpus.jsonl", sequence_length=16,
                                batch_sequences=4, validation_fraction=0.3, validation_blocks=4),
                budget=BudgetConfig(tokens=HORIZONS[-1], horizons=HORIZONS[:-1]),
                parallel=ParallelConfig(accelerator="cpu", threads=1),
            )
            for seed in range(seeds) for dim in dims for arch in ("llama", "tnl")
        ]  # fmt: skip
        return Experiment(name="chosen", path=Path("chosen.py"), text="", runs=runs)

    return experiment


def _by_law(sweep: Path) -> Callable[[Experiment], bool]:
    return partial(launch, sweep_dir=sweep, launcher="inline",
                   train="tests.support.law_training:train")  # fmt: skip


def _choose(experiment: Experiment, sweep: Path, **changes: Any) -> bool:
    options: dict[str, Any] = {"targets": ["width(a)<0.5"], "budget": 1e15, "batch": 2,
                               "waits": False}  # fmt: skip
    return run_chosen(experiment, sweep, _by_law(sweep), **(options | changes))


def _asked(experiment: Experiment) -> Asked:
    rows, runs = candidates(experiment.runs, find_device("cpu"))
    return Asked(settings={"budget": 1.0}, candidates=rows, runs=runs)


def _plan_of(*batches: list[str]) -> Callable[..., tuple[list[Any], dict[str, Any]]]:
    """Decides on these batches, one after the other, whatever was measured."""
    left = list(batches)

    def decide(asked: Asked, state: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        runs = left.pop(0) if left else []
        return [], {"why": "narrow" if runs else "target", "words": "so it is", "runs": runs,
                    "cost": float(len(runs)), "widths": []}  # fmt: skip

    return decide


def test_a_run_can_be_had_up_to_each_of_its_horizons(make: Callable[..., Experiment]) -> None:
    (run, _) = make((32,)).runs
    found = forms(run)
    assert [f.budget.tokens for f in found if f] == [*HORIZONS]
    assert found[-1] == run
    assert len({f.trunk_id for f in found if f}) == 1
    assert len({f.run_id for f in found if f}) == 3
    assert found[1] is not None
    assert found[1].budget.horizons == HORIZONS[:2]
    rows, runs = candidates([run], find_device("cpu"))
    assert [row["run_id"] for row in rows] == [f.run_id for f in found if f] == [*runs]
    for row, form in zip(rows, runs.values(), strict=True):
        assert row["cost"] == pytest.approx(flops(form, trained_tokens(form)))


def test_a_run_that_cannot_go_on_is_had_whole(make: Callable[..., Experiment]) -> None:
    (run, _) = make((32,)).runs
    kept = replace(run, budget=replace(run.budget, keep_trunk=False))
    assert forms(kept) == [None, None, kept]
    cosine = run.override(["schedule.kind=cosine", "budget.horizons="])
    assert forms(cosine) == [cosine]


def test_a_sweep_stops_at_its_target_and_is_replayed(
    make: Callable[..., Experiment], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    experiment = make((16, 32, 48, 64, 80), seeds=2)
    assert _choose(experiment, sweep, targets=["width(multiplier)<2.5"])
    entries = Ledger(sweep).entries
    assert entries[0].decision["why"] == "opening"
    assert [e.decision["why"] for e in entries][-1] in ("target", "exhausted")
    started = (sweep / "started").read_text().split()
    assert sorted(started) == sorted(run for entry in entries for run in entry.runs)
    for entry in entries[1:]:
        assert entry.state["spent"] == pytest.approx(
            sum(e.decision["cost"] for e in entries[: entry.number - 1])
        )
    shown = CliRunner().invoke(app, ["decisions", str(sweep), "--replay", "--json"])
    answer = json.loads(shown.stdout)
    assert answer["other"] == []
    assert len(answer["decisions"]) == len(entries)
    # The same command finds it finished, trains nothing, and writes nothing.
    before = (sweep / FILE).read_bytes()
    assert _choose(experiment, sweep, targets=["width(multiplier)<2.5"])
    assert (sweep / FILE).read_bytes() == before
    assert (sweep / "started").read_text().split() == started
    # A record that was changed is found.
    (sweep / FILE).write_text(before.decode().replace('"why": "opening"', '"why": "narrow"', 1))
    again = CliRunner().invoke(app, ["decisions", str(sweep), "--replay"])
    assert again.exit_code == 1
    assert "decided otherwise: 1" in again.stdout


def test_killed_between_decision_and_runs_it_goes_on(
    make: Callable[..., Experiment], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    experiment = make((16, 32, 48, 64), seeds=2)

    class Killed(Exception):
        pass

    def dies(part: Experiment) -> bool:
        _by_law(sweep)(replace(part, runs=part.runs[:3]))
        raise Killed

    with pytest.raises(Killed):
        run_chosen(experiment, sweep, dies, targets=["width(a)<9"], budget=1e15, batch=2,
                   waits=False)  # fmt: skip
    first = Ledger(sweep).entries
    assert len(first) == 1
    with (sweep / FILE).open("a") as file:
        file.write('{"kind": "decision", "number": 2, "sta')  # torn while it was written
    assert _choose(experiment, sweep, targets=["width(a)<9"])
    entries = Ledger(sweep).entries
    assert entries[0] == first[0]
    started = (sweep / "started").read_text().split()
    assert len(started) == len(set(started)) == sum(len(e.runs) for e in entries)


def test_what_was_spent_counts_when_other_targets_are_asked_for(
    make: Callable[..., Experiment], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    experiment = make((16, 32, 48, 64, 80), seeds=2)
    assert _choose(experiment, sweep, targets=["width(a)<9"])
    spent = Ledger(sweep).spent
    assert _choose(experiment, sweep, targets=["width(a)<1e-9"], budget=spent * 1.5)
    last = Ledger(sweep).entries[-1]
    assert last.decision["why"] in ("budget", "exhausted")
    assert spent < Ledger(sweep).spent <= spent * 1.5


def test_diverged_runs_are_not_asked_for_again(
    make: Callable[..., Experiment], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    good, bad = make((16, 32, 48, 64, 80)), make((24,), name="diverges-")
    both = replace(good, runs=[*good.runs, *bad.runs])
    assert _choose(both, sweep, targets=["width(a)<1e-9"])
    entries = Ledger(sweep).entries
    assert entries[-1].decision["why"] == "exhausted"
    tried = [run for entry in entries for run in entry.runs if run.startswith("diverges")]
    assert len(tried) == 2
    assert sorted(entries[-1].state["closed"]) == sorted(tried)


def test_a_failed_run_ends_the_command_and_is_tried_again(
    make: Callable[..., Experiment], tmp_path: Path
) -> None:
    experiment = make((32,))
    ids = [run.run_id for run in experiment.runs]
    sweep, trained = tmp_path / "sweep", list[list[str]]()

    def fails(part: Experiment) -> bool:
        trained.append([run.run_id for run in part.runs])
        for run in part.runs:
            record = RunRecord(run, sweep)
            record.create()
            record.write_status("failed" if len(trained) == 1 else "done", reason="no disk")
        return len(trained) > 1

    told: list[str] = []
    decide = _plan_of(ids)
    assert not run_adaptive(experiment, sweep, _asked(experiment), decide, fails, say=told.append)
    assert run_adaptive(experiment, sweep, _asked(experiment), decide, fails, say=told.append)
    assert trained == [ids, ids]
    assert "decision 1: so it is; now 2 runs" in told[0]


def test_a_chosen_run_that_the_experiment_has_lost_is_named(
    make: Callable[..., Experiment], tmp_path: Path
) -> None:
    experiment, other = make((32,)), make((48,))
    sweep = tmp_path / "sweep"
    ids = [experiment.runs[0].run_id]
    run_adaptive(experiment, sweep, _asked(experiment), _plan_of(ids), lambda _: False,
                 say=lambda _: None)  # fmt: skip
    with pytest.raises(LinscaleError, match="is no candidate of the experiment any more"):
        run_adaptive(other, sweep, _asked(other), _plan_of(), lambda _: True, say=lambda _: None)


def test_jobs_are_waited_for(
    make: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the stand-in for SLURM; runs that are under way are not submitted again."""
    pytest.importorskip("submitit")
    stand_in, state = ROOT / "tests" / "support" / "slurm_stand_in", tmp_path / "queue"
    state.mkdir()
    monkeypatch.setenv("SLURM_STAND_IN", str(state))
    monkeypatch.setenv("PATH", f"{stand_in}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(adaptive, "POLL_SECONDS", 0.2)
    monkeypatch.setattr(adaptive, "LOST", 200)
    experiment = make((16, 32))
    ids = [run.run_id for run in experiment.runs]
    sweep = tmp_path / "sweep"
    start = partial(launch, sweep_dir=sweep, launcher="slurm", slurm=SlurmOptions(),
                    train="tests.support.law_training:train")  # fmt: skip
    assert run_adaptive(experiment, sweep, _asked(experiment), _plan_of(ids[:2], ids[2:]), start,
                        waits=True, say=lambda _: None)  # fmt: skip
    assert sorted((sweep / "started").read_text().split()) == sorted(ids)
    jobs = [json.loads(line) for line in (sweep / "slurm" / "jobs.jsonl").read_text().splitlines()]
    assert [job["run_id"] for job in jobs] == ids


def test_a_job_that_is_gone_is_said(
    make: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaptive, "POLL_SECONDS", 0.01)
    experiment = make((32,))
    ids = [experiment.runs[0].run_id]
    with pytest.raises(LinscaleError, match="has left the queue without a result"):
        run_adaptive(experiment, tmp_path / "sweep", _asked(experiment), _plan_of(ids),
                     lambda _: True, waits=True, say=lambda _: None)  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "width(a)<1"], "--target without --adaptive: has no effect"),
        (["--budget", "1e15"], "--budget without --adaptive: has no effect"),
        (["--batch", "2"], "--batch without --adaptive: has no effect"),
        (["--adaptive"], "--adaptive: needs a --target"),
        (["--adaptive", "--target", "width(a)<1"], "--adaptive: needs a --budget"),
        (
            ["--adaptive", "--target", "a<1", "--budget", "1e15"],
            r"write width\(QUANTITY\)<NUMBER",
        ),
        (
            ["--adaptive", "--target", "width(a)<1", "--budget", "1e3"],
            "1e[+]03 FLOPs are left, and the runs without which no law can be fitted cost",
        ),
        (
            ["--adaptive", "--target", "width(a)<1", "--budget", "1e15", "--in-order"],
            "--in-order with --adaptive",
        ),
    ],
)
def test_options_are_checked(options: list[str], message: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = CliRunner().invoke(app, ["run", "quickstart", "--out", str(out), *options])
    assert isinstance(answer.exception, LinscaleError | ValueError)
    with pytest.raises(type(answer.exception), match=message):
        raise answer.exception
    assert not list(out.glob("*/config.json"))


def test_a_sweep_without_decisions_says_so(tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["decisions", str(tmp_path)])
    assert "has no adaptive.jsonl" in str(answer.exception)

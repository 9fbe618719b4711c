"""The SLURM launcher against stand-ins for sbatch, srun and scontrol, and submitit's own executor.

The stand-ins (tests/support/slurm_stand_in) run the tasks of an array on this machine; submitit
writes the scripts, loads the pickles and requeues as on a cluster.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from linscale.errors import LinscaleError
from models.config import ConfigError, toy_config
from scaling.cli.main import app
from scaling.config.experiment import Experiment
from scaling.config.run import BudgetConfig, DataConfig, ParallelConfig, RunConfig
from scaling.record.record import RunRecord, read_states
from scaling.sweep.launch import launch
from scaling.sweep.slurm import SlurmOptions, parse_extra, resources, submit
from scaling.sweep.slurm_queue import longest, minutes
from scaling.sweep.slurm_task import SlurmRun
from scaling.sweep.status import status_rows, summary
from scaling.system import claims
from scaling.system.claims import claim
from tests.support.results import result

pytest.importorskip("submitit")

ROOT = Path(__file__).resolve().parents[3]
STAND_IN = ROOT / "tests" / "support" / "slurm_stand_in"
FAKE = "tests.support.fake_training:train"
STEPS = [*range(1, 11)]  # of fake_training


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cluster of one machine; the folder of its jobs."""
    state = tmp_path / "queue"
    state.mkdir()
    monkeypatch.setenv("SLURM_STAND_IN", str(state))
    monkeypatch.setenv("PATH", f"{STAND_IN}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("LINSCALE_CACHE", str(tmp_path / "cache"))
    return state


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Experiment]:
    """An experiment of tiny runs with these names, on a corpus of a few documents."""
    lines = [json.dumps({"text": f"document {i} " * 20}) for i in range(60)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))

    def experiment(*names: str, threads: tuple[int, ...] = ()) -> Experiment:
        runs = [
            RunConfig(
                name=name,
                model=toy_config("tnl", 32, vocab_size=256, layers=1),
                data=DataConfig(
                    corpus=f"jsonl:{tmp_path}/corpus.jsonl",
                    sequence_length=16,
                    batch_sequences=4,
                    validation_fraction=0.3,
                    validation_blocks=4,
                ),
                budget=BudgetConfig(tokens=64 * 400, checkpoint_every_tokens=64 * 100),
                parallel=ParallelConfig(accelerator="cpu", threads=count),
            )
            for name, count in zip(names, threads or (1,) * len(names), strict=True)
        ]
        return Experiment(name="exp", path=tmp_path / "exp.py", text="# exp", runs=runs)

    return experiment


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def scripts(queue: Path) -> list[str]:
    return [path.read_text() for path in sorted(queue.glob("job-*/script"))]


def tasks_of(script: str) -> int:
    """Tasks of a job: of its array, or one."""
    array = re.search(r"^#SBATCH --array=0-(\d+)", script, re.MULTILINE)
    return int(array.group(1)) + 1 if array else 1


def wait_for_jobs(queue: Path, tasks: int) -> None:
    wait_for(lambda: len(list(queue.glob("job-*/*.ended"))) == tasks, f"{tasks} tasks to end")


def states(sweep: Path) -> dict[str, str]:
    return {run_id.rpartition("-")[0]: state for run_id, state in read_states(sweep).items()}


def steps(sweep: Path, name: str) -> list[int]:
    (path,) = sweep.glob(f"{name}-????????/steps")
    return [int(line) for line in path.read_text().splitlines()]


def flag(script: str, name: str) -> str:
    match = re.search(rf"^#SBATCH --{name}=(.*)$", script, re.MULTILINE)
    assert match, f"{name} is not in the script"
    return match.group(1)


def test_a_sweep_is_one_array(
    queue: Path, make: Callable[..., Experiment], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    options = SlurmOptions(partition="long", time="1:30:00", extra={"account": "physics"})
    assert launch(make("a", "diverges", "b"), sweep, launcher="slurm", slurm=options, train=FAKE)
    (script,) = scripts(queue)
    assert flag(script, "array") == "0-2%3"
    assert flag(script, "partition") == "long"
    assert flag(script, "account") == "physics"
    assert flag(script, "time") == "90"
    assert flag(script, "signal") == "USR2@180"
    assert flag(script, "cpus-per-task") == "1"
    assert "#SBATCH --requeue" in script
    said = capsys.readouterr().out
    assert "job 100: 3 runs, each on 1 node with 1 core" in said
    assert "at most 90:00 min" in said
    wait_for_jobs(queue, 3)
    assert states(sweep) == {"a": "done", "diverges": "diverged", "b": "done"}
    # A second submission has nothing left to do.
    assert launch(make("a", "diverges", "b"), sweep, launcher="slurm", train=FAKE)
    assert len(scripts(queue)) == 1
    assert "0 runs submitted" in capsys.readouterr().out
    assert steps(sweep, "a") == STEPS


def test_rungs_of_other_needs_go_into_an_array_of_their_own(
    queue: Path, make: Callable[..., Experiment], tmp_path: Path
) -> None:
    experiment = make("a", "b", "c", threads=(1, 3, 1))
    assert launch(experiment, tmp_path / "sweep", launcher="slurm", train=FAKE)
    one, two = scripts(queue)
    assert (flag(one, "array"), flag(one, "cpus-per-task")) == ("0-1%2", "1")
    assert flag(two, "cpus-per-task") == "3"
    assert "--array" not in two
    # The plan's time with its margin, in minutes: these runs take seconds.
    assert 10 < int(flag(one, "time")) < 60
    wait_for_jobs(queue, 3)
    assert states(tmp_path / "sweep") == {"a": "done", "b": "done", "c": "done"}


def test_submitting_twice_trains_nothing_twice(
    queue: Path, make: Callable[..., Experiment], tmp_path: Path
) -> None:
    """The second submission comes while the first one's runs wait or start; claims decide."""
    sweep = tmp_path / "sweep"
    names = ("waits-a", "waits-b")
    held = [claim(sweep / run.run_id) for run in make(*names).runs]
    assert launch(make(*names), sweep, launcher="slurm", train=FAKE)
    assert scripts(queue) == []  # what is under way is not submitted
    for one in held:
        assert one is not None
        one.release()
    assert launch(make(*names), sweep, launcher="slurm", train=FAKE)
    assert launch(make(*names), sweep, launcher="slurm", train=FAKE)
    wait_for(lambda: len(list(sweep.glob("at-gate-*"))) == 2, "both runs")
    (sweep / "go").touch()
    # A run that had started by the second submission was left out of it.
    wait_for_jobs(queue, sum(map(tasks_of, scripts(queue))))
    assert set(states(sweep).values()) == {"done"}
    assert not (sweep / "two-at-once").exists()
    assert [steps(sweep, name) for name in names] == [STEPS, STEPS]


def test_a_task_that_fails_fails_its_job(
    queue: Path, make: Callable[..., Experiment], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    assert launch(make("fails"), sweep, launcher="slurm", train=FAKE)
    wait_for_jobs(queue, 1)
    (code,) = queue.glob("job-*/*.exit")
    assert code.read_text().split() == ["1"]
    log = queue / "job-100" / "0.log"
    assert "the disk is made of cheese" in log.read_text()


def test_preemption_saves_requeues_and_goes_on(
    queue: Path, make: Callable[..., Experiment], tmp_path: Path
) -> None:
    """A real run: SIGUSR2 twice, and the record of a run that nobody disturbed."""
    experiment = make("tnl")
    (config,) = experiment.runs
    assert launch(experiment, tmp_path / "whole", launcher="inline")
    sweep = tmp_path / "sweep"
    assert launch(experiment, sweep, launcher="slurm", slurm=SlurmOptions(time="20"))
    metrics = sweep / config.run_id / "metrics.jsonl"
    pid_file = queue / "job-100" / "100.pid"
    pids: set[int] = set()
    for lines in (5, 100):
        wait_for(lambda n=lines: metrics.exists() and metrics.read_text().count("\n") >= n, "steps")
        wait_for(lambda: int(pid_file.read_text() or 0) not in pids, "the task to start again")
        pid = int(pid_file.read_text())
        pids.add(pid)
        os.kill(pid, signal.SIGUSR2)
        wait_for(lambda p=pid: not Path(f"/proc/{p}").exists(), "the task to end")
    wait_for_jobs(queue, 1)
    codes = (queue / "job-100" / "100.exit").read_text().split()
    assert codes == ["255", "255", "0"]  # submitit leaves a requeued job with -1
    assert states(sweep) == {"tnl": "done"}
    assert result(config, sweep) == result(config, tmp_path / "whole")
    log = (sweep / config.run_id / "log.txt").read_text()
    assert log.count("preempted: asked to stop") == 2


def test_several_nodes(queue: Path, make: Callable[..., Experiment], tmp_path: Path) -> None:
    """What is asked for, and what a node starts; the stand-in has one node, which is enough for a
    rendezvous of one."""
    (config,) = make("tnl").runs
    assert resources(config.override(["parallel.nodes=2"]), 1e9).nodes == 2
    sweep = tmp_path / "sweep"
    code = (
        "import sys, json; from pathlib import Path; from scaling.config.run import RunConfig\n"
        "from scaling.sweep.slurm_task import train_on_nodes\n"
        "config = RunConfig.from_json(json.loads(sys.argv[1]))\n"
        "print(train_on_nodes(config, Path(sys.argv[2])))\n"
    )
    (sweep / "slurm").mkdir(parents=True)
    slurm = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "localhost"}
    # A rank of a group of one: fsdp makes a run distributed whatever its size.
    short = config.override(["parallel.strategy=fsdp", f"budget.tokens={64 * 3}"])
    result = subprocess.run(
        [sys.executable, "-c", code, json.dumps(short.to_json()), str(sweep)],
        env=os.environ | slurm,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "done"
    assert states(sweep) == {"tnl": "done"}


def test_scancel_saves_and_is_not_requeued(
    queue: Path, make: Callable[..., Experiment], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    assert launch(make("waits"), sweep, launcher="slurm", train=FAKE)
    wait_for(lambda: (sweep / "at-gate-waits").exists(), "the gate")
    os.kill(int((queue / "job-100" / "100.pid").read_text()), signal.SIGTERM)
    wait_for_jobs(queue, 1)
    assert (queue / "job-100" / "100.exit").read_text().split() == ["0"]
    assert states(sweep) == {"waits": "preempted"}
    assert steps(sweep, "waits") == STEPS[:4]


def test_submitits_local_executor_requeues_too(
    queue: Path, make: Callable[..., Experiment], tmp_path: Path
) -> None:
    """The same task under submitit's own executor, with its own way to requeue."""
    from submitit import LocalExecutor

    sweep = tmp_path / "sweep"
    (config,) = make("waits").runs
    executor = LocalExecutor(tmp_path / "jobs")
    executor.update_parameters(timeout_min=5)
    job = executor.submit(SlurmRun(config, sweep, FAKE))
    wait_for(lambda: (sweep / "at-gate-waits").exists(), "the gate")
    os.kill(int((sweep / "at-gate-waits").read_text()), signal.SIGUSR2)
    wait_for(lambda: (sweep / "started").read_text().split() == ["waits"] * 2, "a second start")
    (sweep / "go").touch()
    assert job.result() == "done"
    assert steps(sweep, "waits") == STEPS


def test_the_claim_of_a_dead_node_runs_out(
    make: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is requeued after its node died finds a claim of that node, and waits, whatever
    that node's clock was."""
    monkeypatch.setattr(claims, "STALE_SECONDS", 3.0)
    (config,) = make("a").runs
    folder = tmp_path / "sweep" / config.run_id
    folder.mkdir(parents=True)
    held = {"hostname": "node-7", "pid": 1, "since": time.time()}
    (folder / "claim").write_text(json.dumps(held))
    ahead = time.time() + 3600
    os.utime(folder / "claim", (ahead, ahead))
    assert SlurmRun(config, tmp_path / "sweep", FAKE)() == "done"
    assert RunRecord(config, tmp_path / "sweep").state == "done"


def test_what_is_asked_for_is_what_the_plan_shows(
    queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes of four, or none given: `plan` and `run --dry-run` name the same devices."""
    monkeypatch.chdir(tmp_path)
    for options, nodes, gpus in (
        (["--nodes", "2", "--gpus-per-node", "4"], 2, 4),
        (["--nodes", "1"], 1, 8),
        ([], 1, 1),
    ):
        chosen = ["paper_ladder", "--device", "h200", "--only", "size=1B arch=llama", *options]
        planned = CliRunner().invoke(app, ["plan", *chosen, "--json"])
        (rung,) = json.loads(planned.output)
        assert (rung["nodes"], rung["devices"]) == (nodes, nodes * gpus)
        assert rung["wall_hours"] == pytest.approx(rung["device_hours"] / (nodes * gpus))
        dry = CliRunner().invoke(app, ["run", *chosen, "--launcher", "slurm", "--dry-run"])
        assert dry.exit_code == 0, dry.output
        assert (flag(dry.output, "nodes"), flag(dry.output, "gpus-per-node")) == (
            str(nodes), str(gpus),
        )  # fmt: skip
        assert rung["run_id"] in dry.output
    assert scripts(queue) == []
    assert not (tmp_path / "runs").exists()
    assert list(tmp_path.glob("slurm*")) == []


def test_options_of_a_dry_run(
    queue: Path, make: Callable[..., Experiment], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = SlurmOptions(
        partition="gpu", at_most=1, setup=("module load cuda",),
        extra={"gres": "gpu:a100:1", "qos": "long"},
    )  # fmt: skip
    experiment = make("a", "b")
    on_gpus = [run.override(["parallel.accelerator=cuda"]) for run in experiment.runs]
    asked = Experiment(name="exp", path=experiment.path, text="", runs=on_gpus)
    assert launch(asked, tmp_path / "sweep", launcher="slurm", slurm=options, dry_run=True)
    script = capsys.readouterr().out
    assert flag(script, "array") == "0-1%1"
    assert (flag(script, "gres"), flag(script, "qos")) == ("gpu:a100:1", "long")
    assert "gpus-per-node" not in script
    assert script.index("module load cuda") < script.index("srun")
    assert not (tmp_path / "sweep").exists()


def test_a_partition_has_the_last_word(
    queue: Path, make: Callable[..., Experiment], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stand-in's partition gpu allows two days; a run that needs more is chained."""
    assert longest("gpu") == 2880
    assert longest(None) is None  # the default partition, cpu, has no limit
    experiment = make("a")
    sweep = tmp_path / "sweep"
    with pytest.raises(ConfigError, match=r"--time 3-00:00:00: partition gpu allows 2880 minutes"):
        launch(experiment, sweep, launcher="slurm", train=FAKE,
               slurm=SlurmOptions(partition="gpu", time="3-00:00:00"))  # fmt: skip
    long = [run.override(["budget.tokens=2e12", "budget.checkpoint_every_tokens=none"])
            for run in experiment.runs]  # fmt: skip
    asked = Experiment(name="exp", path=experiment.path, text="", runs=long)
    assert launch(asked, sweep, launcher="slurm", dry_run=True, slurm=SlurmOptions(partition="gpu"))
    said = capsys.readouterr().out
    assert flag(said, "time") == "2880"
    assert re.search(r"the longest may need [\d,]+ days: it saves, is requeued", said)


def test_status_knows_the_queue(
    queue: Path, make: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that wait are queued with their ids; where squeue is not, the ids stay."""
    sweep = tmp_path / "sweep"
    (queue / "hold").touch()
    assert launch(make("a", "b"), sweep, launcher="slurm", train=FAKE)
    rows = status_rows(sweep)
    assert [(row["state"], row["job_id"]) for row in rows] == [
        ("queued", "100_0"), ("queued", "100_1"),
    ]  # fmt: skip
    assert summary(rows) == "2 queued"
    (queue / "hold").unlink()
    wait_for_jobs(queue, 2)
    assert {row["state"] for row in status_rows(sweep)} == {"done"}
    assert [row["run_id"][0] for row in status_rows(sweep, "name=b")] == ["b"]
    monkeypatch.setenv("PATH", "")
    assert [row["job_id"] for row in status_rows(sweep)] == ["100_0", "100_1"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30", 30), ("0:30", 1), ("90:00", 90), ("1:30:00", 90), ("2-00", 2880), ("1-06:30", 1830),
     ("1-00:00:01", 1441)],
)  # fmt: skip
def test_time_limits(text: str, expected: int) -> None:
    """The forms of `man sbatch`; whole minutes, rounded up."""
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "1h", "-5", "1:2:3:4"])
def test_a_time_limit_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match="write minutes"):
        minutes(text)


@pytest.mark.parametrize("bad", ["a\nrm -rf ~", "a\rb", "a\x00b", "a\u2028b"])
@pytest.mark.parametrize("place", ["partition", "extra", "out"])
def test_lines_in_an_option_or_a_path_are_refused(
    queue: Path, make: Callable[..., Experiment], tmp_path: Path, place: str, bad: str
) -> None:
    """submitit would write them into the batch script, where they are run."""
    if place == "out" and "\x00" in bad:
        pytest.skip("no path holds a null")
    options = {
        "partition": SlurmOptions(partition=bad),
        "extra": SlurmOptions(extra={"comment": bad}),
        "out": SlurmOptions(),
    }[place]
    sweep = tmp_path / (bad if place == "out" else "sweep")
    with pytest.raises(ConfigError, match=r"would end a line of the batch script"):
        submit(make("one").runs, sweep, options, FAKE)
    assert scripts(queue) == []


def test_extra_options_are_checked() -> None:
    assert parse_extra(["account=a", "constraint=a100|h100"]) == {
        "account": "a",
        "constraint": "a100|h100",
    }
    for bad, message in (("account", "name=value"), ("time=3", "follows from the plan")):
        with pytest.raises(ConfigError, match=message):
            parse_extra([bad])


def test_without_a_cluster_the_error_says_so(
    make: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINSCALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LinscaleError, match="sbatch: not found; --launcher slurm runs on a login"):
        launch(make("a"), tmp_path / "sweep", launcher="slurm", train=FAKE)


def test_what_sbatch_refuses_is_said(
    queue: Path, make: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "refuses"
    folder.mkdir()
    (folder / "sbatch").write_text("#!/bin/sh\necho 'invalid partition specified' >&2\nexit 1\n")
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(LinscaleError, match="invalid partition specified"):
        launch(make("a"), tmp_path / "sweep", launcher="slurm", train=FAKE)

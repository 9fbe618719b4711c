"""The launcher: every run ends in its record, whatever is killed, stopped or started twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from models.config import ConfigError, toy_config
from scaling import launch as launching
from scaling.claims import holder
from scaling.config import BudgetConfig, DataConfig, ParallelConfig, RunConfig
from scaling.errors import LinscaleError
from scaling.experiment import Experiment
from scaling.launch import environments, launch
from scaling.record import RunRecord, read_states

STEPS = 10  # of fake_training
FAKE = "fake_training:train"


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus, small enough to cost nothing, and its cache."""
    folder = tmp_path_factory.mktemp("launch-data")
    lines = [json.dumps({"text": f"document {i} " * 20}) for i in range(60)]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(autouse=True)
def environment(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINSCALE_CACHE", str(cache / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.chdir(tmp_path)


def run_config(name: str, cache: Path, tokens: int = 640, **parallel: int) -> RunConfig:
    return RunConfig(
        name=name,
        model=toy_config("tnl", 32, vocab_size=256),
        data=DataConfig(
            corpus=f"jsonl:{cache}/corpus.jsonl",
            sequence_length=16,
            batch_sequences=4,
            validation_fraction=0.3,
        ),
        budget=BudgetConfig(tokens=tokens),
        parallel=ParallelConfig(accelerator="cpu", **parallel),  # type: ignore[arg-type]
    )


@pytest.fixture
def make(cache: Path, tmp_path: Path) -> Callable[..., Experiment]:
    """An experiment of runs with these names; each longer than the one before."""

    def experiment(*names: str) -> Experiment:
        runs = [run_config(name, cache, 640 * (i + 1)) for i, name in enumerate(names)]
        return Experiment(name="exp", path=tmp_path / "exp.py", text="# exp", runs=runs)

    return experiment


def states(sweep: Path) -> dict[str, str]:
    """Name of the run -> state."""
    return {run_id.rpartition("-")[0]: state for run_id, state in read_states(sweep).items()}


def steps(sweep: Path, name: str) -> list[int]:
    (path,) = sweep.glob(f"{name}-????????/steps")
    return [int(line) for line in path.read_text().splitlines()]


def started(sweep: Path) -> list[str]:
    return (sweep / "started").read_text().split()


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Generous: on a busy machine it only has to come true at all."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gate(sweep: Path, name: str) -> int:
    """Wait until a run is at its gate; the process that trains it."""
    path = sweep / f"at-gate-{name}"
    wait_for(lambda: path.exists() and path.read_text(), f"{name} at its gate")
    return int(path.read_text())


SCRIPT = """
import sys
from pathlib import Path
from scaling.experiment import load_experiment
from scaling.launch import launch
ok = launch(load_experiment(Path(sys.argv[1]), []), Path(sys.argv[2]), jobs=2, train={fake!r})
sys.exit(0 if ok else 1)
"""


@pytest.fixture
def spawn(cache: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """A launch in a process of its own: sweep directory and names of the runs."""

    def start(sweep: Path, *names: str) -> subprocess.Popen[str]:
        (tmp_path / "exp.py").write_text(
            "import sys\n"
            f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            "from pathlib import Path\n"
            "from test_launch import run_config\n"
            "def runs():\n"
            f"    return [run_config(n, Path({str(cache)!r}), 640 * (i + 1))"
            f" for i, n in enumerate({names!r})]\n"
        )
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT.format(fake=FAKE), tmp_path / "exp.py", sweep],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=200)
    return process.returncode, output


def test_every_run_is_trained_once_longest_first(
    make: Callable[..., Experiment], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    assert launch(make("a", "b", "c"), sweep, jobs=1, train=FAKE)
    assert started(sweep) == ["c", "b", "a"]
    assert states(sweep) == {"a": "done", "b": "done", "c": "done"}
    assert steps(sweep, "a") == list(range(1, STEPS + 1))
    assert "3 done" in capsys.readouterr().out
    record = json.loads((sweep / "sweep.json").read_text())
    assert record["experiment"] == "# exp"
    assert [r.rpartition("-")[0] for r in record["runs"]] == ["a", "b", "c"]


def test_again_changes_nothing(make: Callable[..., Experiment], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    assert launch(make("a", "diverges"), sweep, jobs=2, train=FAKE)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in sweep.rglob("*") if p.is_file()}
    # Neither data nor workers are needed: a function that does not exist goes unnoticed.
    assert launch(make("a", "diverges"), sweep, jobs=2, train="nowhere:train")
    del before[sweep / "sweep.lock"]
    for path, content in before.items():
        assert (path.stat().st_mtime_ns, path.read_bytes()) == content


def test_failed_and_diverged_runs_do_not_stop_the_rest(
    make: Callable[..., Experiment], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    experiment = make("a", "diverges", "fails", "b", "breaks")
    assert not launch(experiment, sweep, jobs=2, train=FAKE)
    output = " ".join(capsys.readouterr().out.split())
    assert states(sweep)["a"] == states(sweep)["b"] == "done"
    assert states(sweep)["diverges"] == "diverged"
    assert started(sweep).count("fails") == 1  # not again in the same launch
    assert "the disk is made of cheese" in output
    assert "the loss became nan" in output
    assert "ZeroDivisionError: no one expected this" in output
    assert "Traceback" in "".join(p.read_text() for p in sweep.glob("worker-*.log"))
    # A failed run is tried again by the next launch; a diverged one is a result.
    (sweep / "mended").touch()
    assert launch(make("a", "diverges", "fails", "b"), sweep, jobs=2, train=FAKE)
    assert states(sweep)["fails"] == "done"
    assert started(sweep).count("diverges") == 1


def test_a_killed_worker_is_replaced_and_its_run_goes_on(
    make: Callable[..., Experiment], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    killed: list[int] = []

    def kill_twice() -> None:
        for _ in range(2):
            pid = gate(sweep, "waits")
            killed.append(pid)
            (sweep / "at-gate-waits").unlink()
            os.kill(pid, signal.SIGKILL)
        killed.append(gate(sweep, "waits"))
        (sweep / "go").touch()

    thread = threading.Thread(target=kill_twice)
    thread.start()
    assert launch(make("a", "waits"), sweep, jobs=2, train=FAKE)
    thread.join()
    assert len(set(killed)) == 3
    assert states(sweep) == {"a": "done", "waits": "done"}
    assert steps(sweep, "waits") == list(range(1, STEPS + 1))


def test_a_run_that_always_kills_its_worker_has_failed(
    make: Callable[..., Experiment], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    assert not launch(make("crashes", "a"), sweep, jobs=1, train=FAKE)
    assert states(sweep) == {"a": "done", "crashes": "failed"}
    assert started(sweep).count("crashes") == 3
    record = RunRecord(make("crashes").runs[0], sweep)
    assert "ended 3 times in a row (signal SIGKILL)" in record.reason


def test_a_run_that_gets_further_each_time_may_die_often(
    make: Callable[..., Experiment], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    assert launch(make("stumbles"), sweep, jobs=1, train=FAKE)
    assert steps(sweep, "stumbles") == list(range(1, STEPS + 1))


def test_what_a_killed_worker_started_ends_with_it(
    make: Callable[..., Experiment], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    assert launch(make("parent"), sweep, jobs=1, train=FAKE)
    children = [int(p.name.partition("-")[2]) for p in sweep.glob("child-*")]
    assert len(children) == 2
    assert not any(map(alive, children))


def test_a_directory_of_another_run_fails_alone(
    make: Callable[..., Experiment], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    experiment = make("a", "b")
    foreign = sweep / experiment.runs[0].run_id
    foreign.mkdir(parents=True)
    (foreign / "config.json").write_text(json.dumps({"schema": 1, **make("c").runs[0].to_json()}))
    assert not launch(experiment, sweep, jobs=2, train=FAKE)
    assert states(sweep) == {"b": "done"}


def test_two_launches_share_a_sweep(
    spawn: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    names = ["waits-1", "waits-2", "waits-3", "waits-4", "b", "c"]
    first, second = spawn(sweep, *names), spawn(sweep, *names)
    holders = {gate(sweep, f"waits-{i}") for i in (1, 2, 3, 4)}
    assert len(holders) == 4  # two workers of each launch, all at work
    (sweep / "go").touch()
    for process in (first, second):
        code, output = finish(process)
        assert code == 0, output
    assert set(states(sweep).values()) == {"done"}
    assert not (sweep / "two-at-once").exists()
    assert sorted(started(sweep)) == sorted(names)


def test_a_launch_takes_over_from_one_that_was_killed(
    spawn: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    first = spawn(sweep, "waits-1", "waits-2")
    pids = [gate(sweep, "waits-1"), gate(sweep, "waits-2")]
    second = spawn(sweep, "waits-1", "waits-2")
    first.send_signal(signal.SIGKILL)
    first.communicate()
    wait_for(lambda: not any(map(alive, pids)), "orphaned workers to end")
    assert {gate(sweep, "waits-1"), gate(sweep, "waits-2")}.isdisjoint(pids)
    (sweep / "go").touch()
    code, output = finish(second)
    assert code == 0, output
    assert states(sweep) == {"waits-1": "done", "waits-2": "done"}
    assert not (sweep / "two-at-once").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_the_same_command_continues(
    spawn: Callable[..., subprocess.Popen[str]], tmp_path: Path, number: signal.Signals
) -> None:
    sweep = tmp_path / "sweep"
    process = spawn(sweep, "a", "waits-1", "waits-2")
    pids = [gate(sweep, "waits-1"), gate(sweep, "waits-2")]
    process.send_signal(number)
    code, output = finish(process)
    assert code == 1, output
    assert "the same command continues" in output
    assert not any(map(alive, pids))
    assert states(sweep) == {"waits-1": "preempted", "waits-2": "preempted"}
    (sweep / "go").touch()
    code, output = finish(spawn(sweep, "a", "waits-1", "waits-2"))
    assert code == 0, output
    assert steps(sweep, "waits-1") == list(range(1, STEPS + 1))


def test_a_second_interrupt_kills(
    spawn: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    process = spawn(sweep, "stubborn")
    pid = gate(sweep, "stubborn")
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    wait_for(lambda: "stopping" in process.stdout.readline(), "the first interrupt")  # type: ignore[union-attr]
    assert alive(pid)
    process.send_signal(signal.SIGINT)
    code, _ = finish(process)
    assert code == 1
    assert not alive(pid)
    assert holder(next(sweep.glob("stubborn-*"))) is None


def test_a_worker_that_is_told_to_end_hands_its_run_on(
    make: Callable[..., Experiment], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"

    def terminate() -> None:
        os.kill(gate(sweep, "waits"), signal.SIGTERM)
        wait_for(lambda: started(sweep).count("waits") == 2, "another worker")
        (sweep / "go").touch()

    thread = threading.Thread(target=terminate)
    thread.start()
    assert launch(make("waits"), sweep, jobs=1, train=FAKE)
    thread.join()
    assert steps(sweep, "waits") == list(range(1, STEPS + 1))


def test_inline_trains_here(
    make: Callable[..., Experiment], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    assert not launch(make("a", "fails", "b"), sweep, launcher="inline", train=FAKE)
    assert started(sweep) == ["b", "fails", "a"]
    assert states(sweep)["a"] == "done"
    assert "made of cheese" in " ".join(capsys.readouterr().out.split())
    (sweep / "mended").touch()
    assert launch(make("a", "fails", "b"), sweep, launcher="inline", train=FAKE)


def test_inline_saves_when_interrupted(make: Callable[..., Experiment], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"

    def interrupt() -> None:
        os.kill(gate(sweep, "waits"), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    handler = signal.getsignal(signal.SIGINT)
    assert not launch(make("a", "waits"), sweep, launcher="inline", train=FAKE)
    thread.join()
    assert states(sweep) == {"waits": "preempted"}
    assert signal.getsignal(signal.SIGINT) is handler


def test_runs_of_earlier_overrides_stay_in_the_record(
    make: Callable[..., Experiment], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    assert launch(make("a", "b"), sweep, jobs=1, train=FAKE)
    assert launch(make("c"), sweep, jobs=1, train=FAKE)
    runs = json.loads((sweep / "sweep.json").read_text())["runs"]
    assert [r.rpartition("-")[0] for r in runs] == ["a", "b", "c"]


def test_workers_that_cannot_start_are_explained(
    make: Callable[..., Experiment], tmp_path: Path
) -> None:
    with pytest.raises(LinscaleError, match=r"end before they can train.*No module named 'nowhere"):
        launch(make("a"), tmp_path / "sweep", jobs=1, train="nowhere:train")


def test_bad_arguments_and_data_are_refused_before_anything_starts(
    make: Callable[..., Experiment], cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="launcher='cloud': must be one of local, inline"):
        launch(make("a"), tmp_path / "sweep", launcher="cloud", train=FAKE)
    with pytest.raises(ConfigError, match="jobs=0"):
        launch(make("a"), tmp_path / "sweep", jobs=0, train=FAKE)
    missing = run_config("a", cache).override(["data.corpus=text:none/*.txt"])
    experiment = Experiment(name="e", path=tmp_path / "e.py", text="", runs=[missing])
    with pytest.raises(LinscaleError, match="no file matches"):
        launch(experiment, tmp_path / "sweep", train=FAKE)
    small = run_config("a", cache).override(["model.vocab_size=200"])
    experiment = Experiment(name="e", path=tmp_path / "e.py", text="", runs=[small])
    with pytest.raises(ConfigError, match=r"bytes has 256 tokens; set model\.vocab_size=256"):
        launch(experiment, tmp_path / "sweep", train=FAKE)
    assert not list((tmp_path / "sweep").glob("*/status.json"))


def test_workers_share_cores_and_devices(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    plain = [run_config("a", cache)]

    def shape(configs: list[RunConfig], jobs: int | None) -> tuple[int, str]:
        found = environments(configs, jobs)
        assert all("CUDA_VISIBLE_DEVICES" not in e for e in found)
        return len(found), found[0]["OMP_NUM_THREADS"]

    assert shape(plain, None) == (8, "1")
    assert shape(plain, 2) == (2, "4")
    assert shape(plain, 16) == (16, "1")
    assert shape([run_config("a", cache, threads=4)], None) == (2, "4")
    assert shape([run_config("a", cache, devices=2)], None) == (4, "1")

    monkeypatch.setattr(launching, "_gpus", lambda: ["0", "1", "2", "3"])
    on_gpu = run_config("a", cache).override(["parallel.accelerator=auto"])
    found = environments([on_gpu], None)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in found] == ["0", "1", "2", "3"]
    found = environments([on_gpu.override(["parallel.devices=2"])], None)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in found] == ["0,1", "2,3"]
    found = environments([on_gpu], 5)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in found] == ["0", "1", "2", "3", "0"]
    found = environments([on_gpu.override(["parallel.devices=4", "data.batch_sequences=8"])], None)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in found] == ["0,1,2,3"]

"""Evaluating a sweep: what is written, resuming, the pool, and errors."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch

from linscale.errors import LinscaleError
from models.config import ConfigError
from scaling.cli.evaluate import _by_reason
from scaling.evaluation.evaluate import SUITES, evaluate, expand
from scaling.evaluation.request import Request
from scaling.evaluation.results import EvaluationError, Measure, Origin, Results
from scaling.evaluation.settings import Settings
from scaling.evaluation.targets import targets
from scaling.evaluation.tasks import Subject
from scaling.evaluation.work import evaluate_targets
from scaling.record.pretrained import load_pretrained
from scaling.system.claims import claim


def only_run(directory):
    return next(path.parent for path in directory.glob("*/config.json"))


def read(run):
    return [json.loads(line) for line in (run / "evals.jsonl").read_text().splitlines()]


def ask(*tasks, **settings):
    return Request(tasks=tasks, settings=Settings(**settings))


def test_a_sweep_is_evaluated_once_and_resumed(sweep):
    run = only_run(sweep)
    request = ask("perplexity", "sliding", "document", "position", "context", window=16, limit=3)
    first = evaluate(sweep, ask("perplexity"))
    assert (first.new, first.kept, first.failures) == (2, 0, [])
    milestones = [json.loads(line) for line in (run / "milestones.jsonl").read_text().splitlines()]
    for milestone in milestones:
        lines = [line for line in read(run) if line["tokens"] == milestone["tokens"]]
        assert {line["metric"]: line["value"] for line in lines} == {
            "nats_per_token": pytest.approx(milestone["val_loss"], abs=1e-5),
            "bits_per_byte": pytest.approx(milestone["val_bpb"], abs=1e-5),
        }
        assert lines[0]["flops"] == milestone["flops"]
        assert lines[0]["checkpoint"] == milestone["checkpoint"]
    before = (run / "evals.jsonl").read_bytes()
    again = evaluate(sweep, ask("perplexity"))
    assert (again.new, again.kept) == (0, 2)
    assert again.lines == first.lines
    assert (run / "evals.jsonl").read_bytes() == before
    last = run / milestones[-1]["checkpoint"]
    more = evaluate(last, request)
    assert (more.new, more.kept, more.failures) == (5, 0, [])
    assert (run / "evals.jsonl").read_bytes().startswith(before)
    held = claim(request.write(sweep) / run.name)
    assert held is not None
    with held:
        assert evaluate(run, request).elsewhere == [run.name]


def test_a_damaged_checkpoint_fails_alone(sweep):
    run = only_run(sweep)
    first, last = targets(run)
    content = first.path.read_bytes()
    first.path.write_bytes(content[:1000])
    try:
        outcome = evaluate(run, ask("perplexity", limit=1))
    finally:
        first.path.write_bytes(content)
    assert outcome.new == 1
    (failure,) = outcome.failures
    assert "damaged" in failure
    assert {line["checkpoint"] for line in outcome.lines} == {last.origin.checkpoint}


def test_another_tokenizer_is_refused(sweep):
    run = only_run(sweep)
    path = run / "environment.json"
    text = path.read_text()
    stored = json.loads(text)
    stored["data"]["tokenizer_sha256"] = "0" * 64
    path.write_text(json.dumps(stored))
    try:
        outcome = evaluate(run, ask("document", limit=1))
    finally:
        path.write_text(text)
    assert outcome.new == 0
    assert "its tokenizer bytes is not the one that it was trained with" in outcome.failures[0]


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't "
     "allocate memory: you tried to allocate 1 bytes")],
)  # fmt: skip
def test_memory_that_runs_out_is_said_in_words(sweep, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr("scaling.evaluation.work._run", fail)
    stop = threading.Event()
    (failure,) = evaluate_targets(targets(sweep)[:1], ask("context"), print, stop)
    assert "context: memory ran out; lower --batch-size" in failure


def test_needles_keep_their_grid(sweep):
    outcome = evaluate(sweep, ask("needle", lengths=(260, 300), depths=3, scorer="contains"))
    assert (outcome.new, outcome.failures) == (2, [])
    (cells,) = [line["grid"] for line in outcome.lines if "grid" in line][:1]
    assert cells["lengths"] == [260, 300]
    assert cells["depths"] == [0, 0.5, 1]
    assert [len(row) for row in cells["scores"]] == [2, 2, 2]
    short = evaluate(sweep, ask("needle", lengths=(20,), depths=1))
    assert "20 tokens does not hold needle and question" in short.failures[0]


def test_the_paper_suite_without_its_data(sweep, tmp_path):
    """What is there is evaluated, the rest is listed once with how to prepare it."""
    pytest.importorskip("lm_eval")
    questions = [{"query": "Is it?\n", "choices": ["no", "yes"], "gold": 1}] * 3
    (tmp_path / "boolq.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    settings = Settings(data=tmp_path, lengths=(260,), depths=2, limit=2)
    names = expand([], "paper", settings)
    assert tuple(names) == SUITES["paper"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        outcome = evaluate(sweep, Request(tasks=tuple(names), settings=settings))
    there = {"perplexity", "boolq", "needle", "needle_standard"}
    assert {line["task"] for line in outcome.lines} == there
    assert outcome.new == 2 * len(there)
    assert {failure.partition(":")[0] for failure in outcome.failures} == set(names) - there
    assert all("with network: " in failure for failure in outcome.failures)


@pytest.mark.slow
def test_several_runs_are_evaluated_by_a_pool(sweep, tmp_path):
    """Two runs, one of which has a damaged checkpoint; then the same command again."""
    import shutil

    from scaling.config.run import RunConfig

    run = only_run(sweep)
    for name in ("tnl-one", "tnl-two"):
        values = json.loads((run / "config.json").read_text())
        head = {key: values.pop(key) for key in ("schema", "run_id", "sweep")}
        config = RunConfig.from_json(values | {"name": name})
        copy = tmp_path / "sweep" / config.run_id
        shutil.copytree(run, copy)
        (copy / "evals.jsonl").unlink(missing_ok=True)
        (copy / "config.json").write_text(
            json.dumps(head | {"run_id": config.run_id} | config.to_json())
        )
    good, bad = sorted(path.parent for path in (tmp_path / "sweep").glob("*/config.json"))
    broken = targets(bad)[0].path
    content = broken.read_bytes()
    broken.write_bytes(content[:100])
    said = []
    first = evaluate(tmp_path / "sweep", ask("perplexity", "position"), jobs=2, say=said.append)
    assert (first.new, first.kept) == (6, 0)
    assert len(first.failures) == 1
    assert broken.name in first.failures[0]
    assert sum("nats_per_token" in line for line in said) == 6
    broken.write_bytes(content)
    # as if killed half way: a task is missing in the one run, both in the other's first milestone
    lines = (good / "evals.jsonl").read_text().splitlines(keepends=True)
    (good / "evals.jsonl").write_text("".join(x for x in lines if '"position"' not in x))
    again = evaluate(tmp_path / "sweep", ask("perplexity", "position"), jobs=2, say=said.append)
    assert (again.new, again.kept, again.failures) == (4, 4, [])
    assert sorted(read(good)[0]) == sorted(first.lines[0].keys() - {"run"})


@pytest.mark.slow
def test_runs_are_submitted_to_slurm(sweep, tmp_path, monkeypatch):
    """Against the stand-in for sbatch that the launcher of training is tested with."""
    pytest.importorskip("submitit")
    stand_in = Path(__file__).resolve().parents[3] / "tests" / "support" / "slurm_stand_in"
    (tmp_path / "queue").mkdir()
    monkeypatch.setenv("SLURM_STAND_IN", str(tmp_path / "queue"))
    monkeypatch.setenv("PATH", f"{stand_in}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    outcome = evaluate(sweep, ask("position", limit=2), launcher="slurm")
    assert outcome.new == 0
    assert len(outcome.submitted) == 1
    assert outcome.submitted[0].startswith("job 100: 1 run, each on 1 node with 1 core")
    deadline = time.monotonic() + 240
    while not list((tmp_path / "queue").glob("job-*/*.ended")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    later = evaluate(sweep, ask("position", limit=2))
    assert (later.new, later.kept) == (0, 2)
    with pytest.raises(ConfigError, match="evaluates whole runs of a sweep"):
        evaluate(targets(sweep)[0].path, ask("document"), launcher="slurm")


def test_results_survive_a_torn_line(tmp_path):
    origin = Origin(checkpoint="checkpoints/a.pt", tokens=1, flops=2.0)
    measure = Measure(metric="acc", value=0.5, stderr=None, n=4)
    Results(tmp_path).add(origin, "task", {"limit": None}, [measure])
    path = tmp_path / "evals.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"task": "oth')
    results = Results(tmp_path)
    assert results.has(origin, "task", {"limit": None})
    assert not results.has(origin, "task", {"limit": 1})
    results.add(origin, "other", {}, [measure])
    assert path.read_bytes().startswith(whole)
    other_process = Results(tmp_path)
    other_process.add(origin, "other", {}, [measure])  # has it: written once
    assert len(Results(tmp_path).lines) == 2
    path.write_bytes(b"nonsense\n" + whole)
    with pytest.raises(EvaluationError, match="line 1"):
        Results(tmp_path)
    bad = Measure(metric="acc", value=float("nan"), stderr=None, n=1)
    with pytest.raises(EvaluationError, match="acc is nan"):
        results.add(origin, "third", {}, [bad])


def test_errors_name_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr("scaling.evaluation.harness.known_tasks", lambda: ["hellaswag", "arc_easy"])
    for names, suite, message in (
        (["perplexty"], None, "did you mean perplexity"),
        (["hellaswga"], None, "did you mean hellaswag"),
        ([], "papre", "choose quick or csr or scrolls or paper"),
        ([], None, "no tasks"),
    ):
        with pytest.raises(EvaluationError, match=message):
            expand(names, suite, Settings())
    with pytest.raises(EvaluationError, match="no such checkpoint"):
        targets(tmp_path / "missing")
    with pytest.raises(EvaluationError, match="none of its 0 runs"):
        targets(tmp_path)
    with pytest.raises(EvaluationError, match="--batch-size 0"):
        Settings(batch_size=0)
    with pytest.raises(EvaluationError, match="--scorer fuzzy: must be exact or contains"):
        Settings(scorer="fuzzy")
    with pytest.raises(EvaluationError, match=r"--depth-growth 0\.5: must be at least 1"):
        Settings(depth_growth=0.5)
    for options in ({"launcher": "cloud"}, {"jobs": 0}):
        with pytest.raises(ConfigError, match="must be"):
            evaluate(tmp_path, ask("perplexity"), **options)
    with pytest.raises(LinscaleError, match="no such directory"):
        Settings(data=tmp_path / "missing")


def test_a_reason_is_listed_once():
    why = "a continuation does not fit; raise --max-length."
    failures = [f"a/1.pt, boolq: {why}", "piqa: no data: get them", f"a/2.pt, boolq: {why}"]
    assert _by_reason(failures) == [
        f"a/1.pt, boolq and 1 more: {why}",
        "piqa: no data: get them",
    ]


def test_other_validation_blocks_than_the_runs_are_refused(sweep: Path, tmp_path: Path) -> None:
    """A text that was held out has changed since the run was trained."""
    copy = tmp_path / "sweep"
    shutil.copytree(sweep, copy)
    run = only_run(copy)
    environment = json.loads((run / "environment.json").read_text())
    subject = Subject(load_pretrained(run), Settings())
    assert len(subject.prepared.validation)
    environment["data"]["validation_sha256"] = "0" * 64
    (run / "environment.json").write_text(json.dumps(environment))
    subject = Subject(load_pretrained(run), Settings())
    with pytest.raises(EvaluationError, match="the validation blocks are not those of the run"):
        _ = subject.prepared

"""Evaluating a sweep: what is written, resuming, and errors."""

from __future__ import annotations

import json

import pytest

from scaling.evaluation.evaluate import evaluate, expand
from scaling.evaluation.results import EvaluationError, Measure, Origin, Results, only_here
from scaling.evaluation.settings import Settings
from scaling.evaluation.targets import targets


def only_run(directory):
    return next(path.parent for path in directory.glob("*/config.json"))


def read(run):
    return [json.loads(line) for line in (run / "evals.jsonl").read_text().splitlines()]


def test_a_sweep_is_evaluated_once_and_resumed(sweep):
    run = only_run(sweep)
    settings = Settings(window=16, limit=3)
    names = ["perplexity", "sliding", "document", "position", "context"]
    first = evaluate(sweep, names[:1], Settings())
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
    again = evaluate(sweep, names[:1], Settings())
    assert (again.new, again.kept) == (0, 2)
    assert again.lines == first.lines
    assert (run / "evals.jsonl").read_bytes() == before
    last = run / milestones[-1]["checkpoint"]
    more = evaluate(last, names, settings)
    assert (more.new, more.kept, more.failures) == (5, 0, [])
    assert (run / "evals.jsonl").read_bytes().startswith(before)
    with only_here(run) as mine:
        assert mine
        assert evaluate(run, names, settings).elsewhere == [run.name]


def test_a_damaged_checkpoint_fails_alone(sweep):
    run = only_run(sweep)
    first, last = targets(run)
    content = first.path.read_bytes()
    first.path.write_bytes(content[:1000])
    try:
        outcome = evaluate(run, ["perplexity"], Settings(limit=1))
    finally:
        first.path.write_bytes(content)
    assert outcome.new == 1
    (failure,) = outcome.failures
    assert "damaged" in failure
    assert {line["checkpoint"] for line in outcome.lines} == {last.origin.checkpoint}


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
        ([], "papre", "choose quick or csr"),
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
    with pytest.raises(EvaluationError, match="no such directory"):
        Settings(data=tmp_path / "missing")

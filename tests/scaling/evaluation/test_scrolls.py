"""SCROLLS from tiny files: prompts as the harness's own, metrics by hand."""

from __future__ import annotations

import json
import sys
import types

import pytest

from scaling.evaluation import harness
from scaling.evaluation.results import EvaluationError
from scaling.evaluation.scrolls import TASKS, f1, normalise, questions, rouge
from scaling.evaluation.settings import Settings
from scaling.evaluation.tasks import Subject

pytest.importorskip("lm_eval")

ROWS = {
    "gov_report": [{"id": "a", "input": "A long report.", "output": "The cat sat."}],
    "summ_screen_fd": [{"id": "a", "input": "INT. ROOM", "output": "They talk."}],
    "qmsum": [{"id": "a", "input": "What was said?\n\nA: yes. B: no.", "output": "Both."}],
    "qasper": [
        {"id": "a", "input": "Is it so?\n\nA paper.", "output": "Yes"},
        {"id": "b", "input": "Which corpus?\n\nA paper.", "output": "The corpus of Ann"},
        {"id": "b", "input": "Which corpus?\n\nA paper.", "output": "Ann's"},
    ],
    "narrative_qa": [{"id": "a", "input": "Who ran?\n\nAnn ran.", "output": "Ann"}],
    "quality": [
        {
            "id": "a",
            "input": "Who?\n\n (A) Ann B. (B) Bo\n (C) Cy (D) Di\n\nBo came.\n\nHe left.",
            "output": "Bo",
        }
    ],
    "contract_nli": [{"id": "a", "input": "It binds.\n\nA contract.", "output": "Entailment"}],
}


@pytest.fixture
def data(tmp_path):
    for folder, rows in ROWS.items():
        (tmp_path / folder).mkdir()
        text = "".join(json.dumps({"pid": row["id"], **row}) + "\n" for row in rows)
        (tmp_path / folder / "validation.jsonl").write_text(text)
    return tmp_path


@pytest.fixture
def theirs(monkeypatch):
    """The harness's own tasks, which look for a module that transformers 5 has no more."""
    squad = types.ModuleType("squad_metrics")
    squad.normalize_answer = normalise
    package = types.ModuleType("transformers.data.metrics")
    package.squad_metrics = squad
    monkeypatch.setitem(sys.modules, "transformers.data.metrics", package)
    from lm_eval.tasks.scrolls import task

    names = {
        "scrolls_govreport": task.GovReport,
        "scrolls_summscreenfd": task.SummScreenFD,
        "scrolls_qmsum": task.QMSum,
        "scrolls_qasper": task.Qasper,
        "scrolls_narrativeqa": task.NarrativeQA,
        "scrolls_quality": task.QuALITY,
        "scrolls_contractnli": task.ContractNLI,
    }

    def requests(name, rows):
        it = object.__new__(names[name])
        merged = {}
        for row in rows:
            doc = {"id": row["id"], "pid": row["id"], "input": row["input"], "outputs": []}
            merged.setdefault(row["id"], doc)["outputs"].append(row["output"])
        found = []
        for row in merged.values():
            (doc,) = it._process_doc(row)
            made = it.construct_requests(doc, it.doc_to_text(doc))
            made = made if isinstance(made, list) else [made]
            found += [(one.request_type, *one.args) for one in made]
        return found

    return requests


@pytest.mark.parametrize("name", TASKS)
def test_requests_are_the_harness_own(data, theirs, name):
    (task,) = harness.build(name, Settings(data=data)).values()
    task.build_all_requests()
    ours = [(one.request_type, *one.args) for one in task.instances]
    assert ours == theirs(name, ROWS[TASKS[name].folder])
    # an id is one question
    assert len(task.eval_docs) == len({row["id"] for row in ROWS[TASKS[name].folder]})


def test_metrics_by_hand():
    assert normalise("The  Cat's, a dog!") == "cats dog"
    assert f1("the cat sat", ["A cat ran fast", "dog"]) == pytest.approx(100 * 2 / 5)
    assert f1("nothing", ["else"]) == 0
    found = rouge("the cat sat down", ["the cat ran", "sat"])
    # unigrams: 2 of 4 and 3 -> 4/7; 1 of 4 and 1 -> 2/5; bigrams: 1 of 3 and 2 -> 2/5
    assert found["rouge1"] == pytest.approx(100 * 4 / 7)
    assert found["rouge2"] == pytest.approx(100 * 2 / 5)
    assert found["rougeL"] == pytest.approx(100 * 4 / 7)


def test_every_data_set_gives_its_metrics(make_toy, data):
    subject = Subject(make_toy("tnl", context=300), Settings(data=data))  # 256 are generated
    for name, task in TASKS.items():
        by = {m.metric: m for m in harness.run_task(name, subject)}
        assert tuple(by) == task.metrics
        assert all(0 <= m.value <= 100 for m in by.values())
        assert {m.n for m in by.values()} == {2 if name == "scrolls_qasper" else 1}


def test_a_choice_is_made_by_log_likelihood_per_character(data):
    (task,) = harness.build("scrolls_quality", Settings(data=data)).values()
    doc = task.eval_docs[0]
    assert doc["choices"] == ["Ann B.", "Bo", "Cy", "Di"]
    wins = [(-6.0, False), (-1.9, False), (-4.0, False), (-4.0, False)]  # per character -1, -0.95
    assert task.process_results(doc, wins) == {"em": 100.0}
    assert task.process_results(doc, [(-5.0, False), *wins[1:]]) == {"em": 0.0}
    (qasper,) = harness.build("scrolls_qasper", Settings(data=data)).values()
    yes, free = qasper.eval_docs
    assert qasper.process_results(yes, [(-1.0, False), (-2.0, False)]) == {"f1": 100.0}
    assert qasper.process_results(yes, [(-2.0, False), (-1.0, False)]) == {"f1": 0.0}
    assert qasper.process_results(free, [" anns"]) == {"f1": 100.0}


def test_files_that_are_not_the_data_set(data):
    with pytest.raises(EvaluationError, match="line 1: has no 'output'"):
        questions("scrolls_qasper", [{"id": "a", "input": "b"}])
    with pytest.raises(EvaluationError, match=r"no question of this data set.*quality\.zip"):
        questions("scrolls_quality", ROWS["contract_nli"])
    (data / "qasper" / "validation.jsonl").rename(data / "qasper" / "test.jsonl")
    with pytest.raises(EvaluationError, match=r"has no validation\.jsonl"):
        harness.build("scrolls_qasper", Settings(data=data))

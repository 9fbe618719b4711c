"""SCROLLS (arXiv 2201.03533) as tasks of lm-evaluation-harness: zero-shot, greedy, on `validation`.

    a line {"id", "input", "output"}  ->  a question: prompt, choices or none, reference answers
    choices     -> the likeliest (its log-likelihood over its characters)   EM, or F1 for Qasper
    none        -> greedy text up to the end of the line                    F1 or ROUGE

Prompts, choices and the split are those of the harness's own SCROLLS tasks, which transformers 5
cannot import. Lines with one `id` are one question with several reference answers. Contexts that
are too long lose their beginning, as everywhere in the harness.

Metrics, in percent, are the benchmark's own: F1 of words after SQuAD's normalisation and F-measures
of ROUGE-1, -2 and -L without stemming, both the best over the references; EM is accuracy. Whole
averages, the paper's and the benchmark's, are taken in `analysis.io.evals`.
"""

from __future__ import annotations

import functools
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from scaling.evaluation.results import EvaluationError

if TYPE_CHECKING:
    from datasets import Dataset
    from lm_eval.api.task import Task

URL = "https://huggingface.co/datasets/tau/scrolls/resolve/main"
"""Where the benchmark is published, one zip file a data set."""
NLI = ("Not mentioned", "Entailment", "Contradiction")
"""Answers of ContractNLI."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question of a data set."""

    prompt: str
    choices: list[str]
    """To choose from; []: free text."""
    gold: int
    """Index of the right choice; -1 for free text and Qasper's yes or no."""
    outputs: list[str]
    """Reference answers."""


@dataclass(frozen=True, kw_only=True)
class Scrolls:
    """One data set of the benchmark."""

    folder: str
    """Its name in the benchmark: FOLDER.zip holds FOLDER/validation.jsonl."""
    metrics: tuple[str, ...]
    question: Callable[[str, list[str]], Question]
    """From `input` and the reference answers."""


def _summary(text: str, outputs: list[str]) -> Question:
    prompt = f"{text}\n\nQuestion: What is a summary of the preceding text?\nAnswer:"
    return Question(prompt=prompt, choices=[], gold=-1, outputs=outputs)


def _split(text: str) -> tuple[str, str]:
    """The question, which comes first, and the document."""
    question, _, document = text.partition("\n\n")
    return question, document


def _answer(text: str, outputs: list[str]) -> Question:
    question, document = _split(text)
    prompt = f"{document}\n\nQuestion: {question}\nAnswer:"
    return Question(prompt=prompt, choices=[], gold=-1, outputs=outputs)


def _paper(text: str, outputs: list[str]) -> Question:
    found = _answer(text, outputs)
    yes_or_no = all(normalise(output) in ("yes", "no") for output in outputs)
    choices = ["yes", "no"] if yes_or_no else []
    return Question(prompt=found.prompt, choices=choices, gold=-1, outputs=outputs)


def _quality(text: str, outputs: list[str]) -> Question:
    question, rest = _split(text)
    end = rest.find("\n\n", rest.find("(D)"))
    pieces = re.split(r" *\([A-D]\) *", rest[:end])[1:]
    choices = [" ".join(piece.split()) for piece in pieces]
    gold = choices.index(" ".join(outputs[0].split()))
    prompt = f"{rest[end:].strip()}\n\nQuestion: {question}\nAnswer:"
    return Question(prompt=prompt, choices=choices, gold=gold, outputs=outputs)


def _contract(text: str, outputs: list[str]) -> Question:
    question, document = _split(text)
    prompt = f"{document}\n\nHypothesis: {question}\nConclusion:"
    return Question(prompt=prompt, choices=list(NLI), gold=NLI.index(outputs[0]), outputs=outputs)


_ROUGE = ("rouge1", "rouge2", "rougeL")
TASKS: dict[str, Scrolls] = {
    "scrolls_govreport": Scrolls(folder="gov_report", metrics=_ROUGE, question=_summary),
    "scrolls_summscreenfd": Scrolls(folder="summ_screen_fd", metrics=_ROUGE, question=_summary),
    "scrolls_qmsum": Scrolls(folder="qmsum", metrics=_ROUGE, question=_answer),
    "scrolls_qasper": Scrolls(folder="qasper", metrics=("f1",), question=_paper),
    "scrolls_narrativeqa": Scrolls(folder="narrative_qa", metrics=("f1",), question=_answer),
    "scrolls_quality": Scrolls(folder="quality", metrics=("em",), question=_quality),
    "scrolls_contractnli": Scrolls(folder="contract_nli", metrics=("em",), question=_contract),
}
"""Tasks by their names in the harness."""


def questions(name: str, rows: Sequence[dict[str, Any]]) -> list[Question]:
    """The questions of a data set, in the order of their first lines.

    Args:
        name: of the task.
        rows: lines of `validation.jsonl`.

    Raises:
        EvaluationError: a line is none of this data set.
    """
    inputs: dict[str, str] = {}
    outputs: dict[str, list[str]] = {}
    for number, row in enumerate(rows, start=1):
        try:
            inputs.setdefault(row["id"], row["input"])
            outputs.setdefault(row["id"], []).append(row["output"])
        except KeyError as error:
            raise EvaluationError(
                f"{TASKS[name].folder}/validation.jsonl, line {number}: has no {error}; each line "
                "is a JSON object with id, input and output, as the benchmark publishes it."
            ) from None
    try:
        return [TASKS[name].question(text, outputs[key]) for key, text in inputs.items()]
    except (ValueError, AttributeError) as error:
        raise EvaluationError(
            f"{TASKS[name].folder}/validation.jsonl: a line is no question of this data set "
            f"({error}); unpack {URL}/{TASKS[name].folder}.zip again."
        ) from None


def build(name: str, validation: Dataset) -> Task:
    """A data set as a task of the harness."""
    from datasets import Dataset
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask

    metrics = TASKS[name].metrics
    rows = [
        vars(question) for question in questions(name, cast(list[dict[str, Any]], list(validation)))
    ]

    class ScrollsTask(ConfigurableTask):
        """Questions with choices are scored, those without are answered in free text."""

        def construct_requests(self, doc: Any, ctx: Any, **kwargs: Any) -> Any:
            for unused in ("apply_chat_template", "chat_template"):
                kwargs.pop(unused, None)
            if not doc["choices"]:
                arguments = (ctx, {"until": ["\n"]})
                return Instance("generate_until", doc, arguments, 0, **kwargs)
            return [
                Instance("loglikelihood", doc, (ctx, f" {choice}"), number, **kwargs)
                for number, choice in enumerate(doc["choices"])
            ]

        def process_results(self, doc: Any, results: Any) -> dict[str, Any]:
            return _scores(metrics, doc, results)

        def aggregation(self) -> dict[str, Any]:
            return dict.fromkeys(metrics, np.mean)

        def higher_is_better(self) -> dict[str, bool]:
            return dict.fromkeys(metrics, True)

    return ScrollsTask(
        config={
            "task": name,
            "custom_dataset": lambda **_: {"validation": Dataset.from_list(rows)},
            "validation_split": "validation",
            "output_type": "generate_until",
            "num_fewshot": 0,
            "doc_to_text": "prompt",
            "doc_to_target": "outputs",
            "metric_list": [
                {"metric": m, "aggregation": np.mean, "higher_is_better": True} for m in metrics
            ],
            "process_results": _scores,  # says that the metrics are none of the harness's
        }
    )


def _scores(
    metrics: tuple[str, ...], doc: dict[str, Any], results: Sequence[Any]
) -> dict[str, float]:
    """Metrics of one question, in percent."""
    if metrics == ("em",):
        per_character = [
            score / len(c) for (score, _), c in zip(results, doc["choices"], strict=True)
        ]
        return {"em": 100.0 * (int(np.argmax(per_character)) == doc["gold"])}
    if doc["choices"]:
        (yes, _), (no, _) = results
        answer = "yes" if yes > no else "no"
    else:
        answer = results[0]
    if metrics == ("f1",):
        return {"f1": f1(answer.strip() or "Unanswerable", doc["outputs"])}
    return rouge(answer, doc["outputs"])


def f1(answer: str, references: Sequence[str]) -> float:
    """F1 of words, the best over the references, in percent."""

    def one(reference: str) -> float:
        ours, theirs = normalise(answer).split(), normalise(reference).split()
        common = sum((Counter(ours) & Counter(theirs)).values())
        return 200.0 * common / (len(ours) + len(theirs)) if common else 0.0

    return max(map(one, references))


def rouge(answer: str, references: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, -2 and -L F-measures, each the best over the references, in percent."""
    scores = [_scorer().score(reference, answer) for reference in references]
    return {name: 100.0 * max(score[name].fmeasure for score in scores) for name in _ROUGE}


@functools.cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(_ROUGE), use_stemmer=False)


def normalise(text: str) -> str:
    """Lower case, without punctuation, articles and spare spaces, as in SQuAD's metric."""
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())

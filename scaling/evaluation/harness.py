"""Tasks of lm-evaluation-harness on our models, its own and local ones.

A name is looked up in this order:

1. `NAME.jsonl` in the folder of --data, for the names of `LOCAL`: works without network. Fields:
   `query`, `choices`, `gold` for multiple choice; `context_options`, `continuation`, `gold` for
   winogrande; `context`, `continuation` for lambada_openai. Prompts are those of the harness's task
   of the same name; COPA keeps the comma that the files have before the connecting word.
2. The harness's own tasks, whose data come from the Hugging Face hub or its cache.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.evaluation.results import EvaluationError, Measure
from scaling.evaluation.settings import Settings, file_sha256

if TYPE_CHECKING:
    from lm_eval.api.task import Task

    from scaling.evaluation.tasks import Subject

CSR = ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
"""Tasks of the paper's average of commonsense reasoning; `analysis.evals` takes it."""

_CHOICES = ("query", "choices", "gold")
LOCAL: dict[str, tuple[str, ...]] = {
    "arc_easy": _CHOICES,
    "arc_challenge": _CHOICES,
    "boolq": _CHOICES,
    "copa": _CHOICES,
    "piqa": _CHOICES,
    "winogrande": ("context_options", "continuation", "gold"),
    "lambada_openai": ("context", "continuation"),
}
"""Tasks that can be read from local files -> the fields of a line."""


def local_file(name: str, settings: Settings) -> Path | None:
    """The local file of a task, None where there is none."""
    path = None if settings.data is None else settings.data / f"{name}.jsonl"
    return path if name in LOCAL and path is not None and path.is_file() else None


def recorded(name: str, settings: Settings) -> dict[str, Any]:
    """The settings that change the numbers of a harness task."""
    path = local_file(name, settings)
    data = None if path is None else [path.name, file_sha256(path)]
    return {"limit": settings.limit, "max_length": settings.max_length, "data": data}


def require_harness() -> None:
    """Raises EvaluationError when lm-evaluation-harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise EvaluationError(
            "lm-evaluation-harness is not installed; install it with: pip install lm-eval"
        )


@functools.cache
def _manager() -> Any:
    require_harness()
    from lm_eval.tasks import TaskManager

    return TaskManager()  # reads thousands of YAML files: seconds, or minutes on a slow disk


def known_tasks() -> list[str]:
    """Names of the harness's own tasks."""
    return list(_manager().all_tasks)


def run_task(name: str, subject: Subject) -> list[Measure]:
    """Evaluate one task.

    Raises:
        EvaluationError: the harness or the data of the task are not there, or a text is too long.
    """
    require_harness()
    from lm_eval.evaluator import evaluate

    from scaling.evaluation.harness_model import HarnessModel

    path = local_file(name, subject.settings)
    tasks = {name: local_task(name, path)} if path is not None else _own_tasks(name)
    model = HarnessModel(
        subject.pretrained,
        max_length=subject.settings.max_length or subject.context,
        batch_size=subject.settings.batch_size,
    )
    outcome: Any = evaluate(
        model, tasks, limit=subject.settings.limit, bootstrap_iters=0, log_samples=False
    )
    measures: list[Measure] = []
    for task, values in outcome["results"].items():
        count = outcome["n-samples"][task]["effective"] if task in outcome["n-samples"] else 0
        label = "" if len(outcome["results"]) == 1 else f"{task}."
        measures += _measures(values, label, count)
    return measures


def _measures(values: dict[str, Any], label: str, n: int) -> list[Measure]:
    """The harness's results of one task; its names are `metric,filter`."""
    found = []
    for key, value in values.items():
        metric, comma, kind = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        suffix = "" if kind == "none" else f",{kind}"
        spread = values.get(f"{metric}_stderr,{kind}")
        # The mean of zeros and ones has its error in closed form; the harness's others are
        # bootstraps, which are left out.
        if not isinstance(spread, int | float) and metric in ("acc", "acc_norm") and n > 1:
            spread = math.sqrt(value * (1 - value) / (n - 1))
        stderr = float(spread) if isinstance(spread, int | float) else None
        found.append(
            Measure(metric=label + metric + suffix, value=float(value), stderr=stderr, n=n)
        )
    return found


def _own_tasks(name: str) -> Any:
    try:
        return _manager().load([name])
    except Exception as error:  # datasets and the hub raise many kinds
        text = " ".join(str(error).split())[:200]
        local = f", or {name}.jsonl in the folder of --data" if name in LOCAL else ""
        raise EvaluationError(
            f"its data set cannot be loaded ({type(error).__name__}: {text}). With network, load "
            f"it once and copy the cache (HF_HOME) here: lm-eval run --model dummy --tasks {name} "
            f"--limit 1; then set HF_HUB_OFFLINE=1{local}."
        ) from None


def local_task(name: str, path: Path) -> Task:
    """A task of the harness whose questions are the lines of a file.

    Raises:
        EvaluationError: a line that is not JSON or lacks a field.
    """
    require_harness()
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    rows = _read(path, LOCAL[name])
    config: dict[str, Any] = {
        "task": name,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "num_fewshot": 0,
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "doc_to_text": _question,
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in ("acc", "acc_norm")
        ],
    }
    if name == "boolq":
        config["doc_to_text"] = _boolq
    if name == "copa":
        config["doc_to_text"] = "query"
    if name == "winogrande":
        config |= {
            "doc_to_choice": "context_options",
            "doc_to_text": _gold,
            "doc_to_target": "continuation",
            "metric_list": config["metric_list"][:1],
        }
    if name == "lambada_openai":
        del config["doc_to_choice"]
        config |= {
            "output_type": "loglikelihood",
            "doc_to_text": "context",
            "doc_to_target": _continuation,
            "metric_list": [
                {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
                {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            ],
        }
    return ConfigurableTask(config=config)


def _question(row: dict[str, Any]) -> str:
    return f"{row['query']}Answer:"


def _boolq(row: dict[str, Any]) -> str:
    return f"{row['query'].removeprefix('Passage: ')}Answer:"


def _gold(row: dict[str, Any]) -> int:
    return row["gold"]


def _continuation(row: dict[str, Any]) -> str:
    return f" {row['continuation']}"


def _read(path: Path, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
            rows.append({name: line[name] for name in fields})
        except (ValueError, KeyError, TypeError) as error:
            raise EvaluationError(
                f"{path}, line {number}: is no question ({type(error).__name__}: {error}); each "
                f"line is a JSON object with {', '.join(fields)}."
            ) from None
    if not rows:
        raise EvaluationError(f"{path}: holds no questions.")
    return rows

"""Tasks of lm-evaluation-harness on our models.

A name is looked up in the folder of --data first (`scaling.evaluation.local_tasks`), and works
without network then. Else the harness loads the data from the Hugging Face hub or its cache.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from scaling.evaluation import local_tasks, scrolls
from scaling.evaluation.results import EvaluationError, Measure
from scaling.evaluation.settings import Settings

if TYPE_CHECKING:
    from lm_eval.api.task import Task

    from scaling.evaluation.tasks import Subject

CSR = ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
"""Tasks of the paper's average of commonsense reasoning; `analysis.io.evals` takes it."""
FOLDERS = {
    "arc_challenge": "arc",
    "arc_easy": "arc",
    "boolq": "super_glue/boolq",
    "copa": "super_glue/copa",
    "hellaswag": "hellaswag",
    "lambada_openai": "lambada",
    "openbookqa": "openbookqa",
    "piqa": "piqa",
    "wikitext": "wikitext",
    "winogrande": "winogrande",
}
"""Where the harness keeps the tasks of the suites: reading one folder takes no time, reading its
whole index of 14,000 files up to a minute."""
_HUB_SECONDS = 5.0
"""How long the hub may take to answer before its tasks are looked for in the cache alone."""


def label(name: str, settings: Settings) -> dict[str, Any]:
    """The settings that change the numbers of a harness task."""
    path = local_tasks.find(name, settings)
    data = None if path is None else local_tasks.fingerprint(path)
    return {"limit": settings.limit, "max_length": settings.max_length, "data": data}


def require_harness() -> None:
    """Raises EvaluationError when lm-evaluation-harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise EvaluationError(
            "lm-evaluation-harness is not installed; install it with: pip install lm-eval"
        )
    import datasets

    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of each default that it takes


def is_known(name: str, settings: Settings) -> bool:
    """Whether a task is the harness's; its index is read for names outside the suites only."""
    if name in FOLDERS or name in scrolls.TASKS or local_tasks.find(name, settings) is not None:
        return True
    return name in known_tasks()


def known_tasks() -> list[str]:
    """Names of the harness's own tasks."""
    return list(_manager(None).all_tasks)


@functools.cache
def _manager(folder: str | None) -> Any:
    """The harness's tasks in one of its folders, or all of them."""
    require_harness()
    import lm_eval.tasks

    if folder is None:
        return lm_eval.tasks.TaskManager()
    path = Path(lm_eval.tasks.__file__).parent / folder
    return lm_eval.tasks.TaskManager(include_defaults=False, include_path=path)


def build(name: str, settings: Settings) -> dict[str, Task]:
    """A task with its questions; a group of the harness is several.

    Raises:
        EvaluationError: the harness or the data are not there, or the data are damaged; the message
            says how to prepare them.
    """
    require_harness()
    path = local_tasks.find(name, settings)
    if path is not None and path.is_file():
        return {name: local_tasks.from_lines(name, path)}
    try:
        if name in scrolls.TASKS:
            return {name: scrolls.build(name, _scrolls(name, path))}
        manager, spec = _manager(FOLDERS.get(name)), name
        if path is None:
            _offline_without_hub()
        else:
            spec = _on_splits(manager.task_index.get(name), local_tasks.read_folder(path))
        return manager.load([spec])["tasks"]
    except EvaluationError:
        raise
    except Exception as error:  # datasets, the hub and tasks' own code raise many kinds
        text = " ".join(str(error).split())[:200]
        if path is not None:
            raise EvaluationError(
                f"{path}: is not the data set of {name} ({type(error).__name__}: {text}); "
                f"{_preparation(name)}"
            ) from None
        unreachable = isinstance(error, ConnectionError) or "Offline" in type(error).__name__
        why = (
            "its data set is neither in --data nor in the cache of the Hugging Face hub, which "
            "cannot be reached"
            if unreachable
            else f"its data set cannot be loaded ({type(error).__name__}: {text})"
        )
        raise EvaluationError(f"{why}; {_preparation(name)}") from None


def _on_splits(entry: Any, splits: dict[str, Any]) -> dict[str, Any]:
    """The harness's own definition of a task, on local data."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if entry is None or entry.yaml_path is None:
        raise ValueError("the harness has no such task")
    config = load_yaml(entry.yaml_path, resolve_func=True)
    for key in ("tag", "group", "task_list"):
        config.pop(key, None)
    for key in ("training_split", "validation_split", "test_split", "fewshot_split"):
        if config.get(key) not in splits:
            config.pop(key, None)  # zero-shot needs no examples
    return config | {"task": entry.name, "custom_dataset": lambda **_: splits}


def _scrolls(name: str, path: Path | None) -> Any:
    """The validation split of a data set of SCROLLS."""
    from datasets import load_dataset

    folder = scrolls.TASKS[name].folder
    if path is None:
        _offline_without_hub()
        inside = f"zip://{folder}/validation.jsonl::{scrolls.URL}/{folder}.zip"
        return load_dataset("json", data_files=inside, split="train")
    splits = local_tasks.read_folder(path)
    if "validation" not in splits:
        raise EvaluationError(f"{path}: has no validation.jsonl; {_preparation(name)}")
    return splits["validation"]


def _preparation(name: str) -> str:
    """How to get the data of a task to a machine without network."""
    if name in scrolls.TASKS:
        folder = scrolls.TASKS[name].folder
        return (
            f"with network: curl -LO {scrolls.URL}/{folder}.zip; unzip it in a folder DATA, so "
            f"that DATA/{folder}/validation.jsonl is there, and give --data DATA."
        )
    entry = _manager(FOLDERS.get(name)).task_index.get(name)
    config = getattr(entry, "cfg", None) or {}
    source = [repr(config[key]) for key in ("dataset_path", "dataset_name") if config.get(key)]
    if not source:
        return (
            f"with network, load it once (lm-eval run --model dummy --tasks {name} --limit 1), "
            "copy the cache (HF_HOME) here, and set HF_HUB_OFFLINE=1."
        )
    plain = f", or DATA/{name}.jsonl (see docs/evaluation.md)" if name in local_tasks.FIELDS else ""
    return (
        f'with network: python -c "from datasets import load_dataset; '
        f"load_dataset({', '.join(source)}).save_to_disk('DATA/{name}')\"; copy DATA here and give "
        f"--data DATA{plain}."
    )


@functools.cache
def _offline_without_hub() -> None:
    """Where the hub cannot be reached, look in the cache at once instead of trying for long."""
    import datasets.config
    import huggingface_hub.constants as hub

    if hub.HF_HUB_OFFLINE or any(os.environ.get(n) for n in ("HTTPS_PROXY", "https_proxy")):
        return
    address = urlsplit(hub.ENDPOINT)
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), _HUB_SECONDS).close()
    except OSError:
        hub.HF_HUB_OFFLINE = True
        datasets.config.HF_HUB_OFFLINE = True


def run_task(name: str, subject: Subject) -> list[Measure]:
    """Evaluate one task.

    Raises:
        EvaluationError: see `build`, or a text is too long for the model.
    """
    tasks = build(name, subject.settings)
    from lm_eval.evaluator import evaluate

    from scaling.evaluation.harness_model import HarnessModel

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
    if model.truncated:
        subject.say(
            f"{subject.pretrained.name}, {name}: {model.truncated:,} prompts lost their beginning; "
            f"the context is {model.max_length:,} tokens (--max-length)."
        )
    return [
        replace(measure, truncated=model.truncated, context=model.max_length)
        for measure in measures
    ]


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

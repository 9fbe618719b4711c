"""Tasks of the harness whose questions lie in a local folder (--data), without network.

| in the folder             | what it holds                                                       |
|---------------------------|---------------------------------------------------------------------|
| `NAME.jsonl`              | questions in the plain fields of `FIELDS`, for the names in it      |
| `NAME/`                   | the task's own data set, as `Dataset.save_to_disk` leaves it        |
| `NAME/SPLIT.jsonl`        | the same split by split; also .json, .parquet, .arrow               |
| `qasper/validation.jsonl` | SCROLLS, as its zip files unpack (`scaling.evaluation.scrolls`)     |

`NAME/` keeps the harness's own prompts and works for every task of the harness. Prompts of
`NAME.jsonl` are those of the harness's task of the same name; COPA keeps the comma that the files
have before the connecting word.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from scaling.evaluation import scrolls
from scaling.evaluation.results import EvaluationError
from scaling.evaluation.settings import Settings, file_sha256

if TYPE_CHECKING:
    from lm_eval.api.task import Task

_CHOICES = ("query", "choices", "gold")
FIELDS: dict[str, tuple[str, ...]] = {
    "arc_easy": _CHOICES,
    "arc_challenge": _CHOICES,
    "boolq": _CHOICES,
    "copa": _CHOICES,
    "hellaswag": _CHOICES,
    "openbookqa": _CHOICES,
    "piqa": _CHOICES,
    "winogrande": ("context_options", "continuation", "gold"),
    "lambada_openai": ("context", "continuation"),
}
"""Tasks that can be read from `NAME.jsonl` -> the fields of a line."""
_KINDS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".arrow": "arrow"}
"""Suffix -> reader of `datasets`."""


def find(name: str, settings: Settings) -> Path | None:
    """The file or folder of a task's questions, None where there is none."""
    if settings.data is None:
        return None
    plain = settings.data / f"{name}.jsonl"
    if name in FIELDS and plain.is_file():
        return plain
    own = scrolls.TASKS[name].folder if name in scrolls.TASKS else name
    folder = settings.data / own
    return folder if folder.is_dir() else None


def fingerprint(path: Path) -> list[str]:
    """Name and SHA-256 of a file, or of all the files of a folder."""
    if path.is_file():
        return [path.name, file_sha256(path)]
    whole = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        whole.update(f"{file.relative_to(path)} {file_sha256(file)}\n".encode())
    return [path.name, whole.hexdigest()]


def read_folder(path: Path) -> dict[str, Any]:
    """The splits of a task's data set in a folder.

    Raises:
        EvaluationError: it holds none, or files that cannot be read.
    """
    from datasets import load_dataset, load_from_disk

    files = {p.stem: p for p in sorted(path.iterdir()) if p.suffix in _KINDS}
    files = {split: p for split, p in files.items() if not split.startswith("dataset_")}
    saved = (path / "dataset_dict.json").is_file()
    if not saved and not files:
        raise EvaluationError(
            f"{path}: holds no split; put validation.jsonl or test.jsonl there (also .parquet, "
            ".arrow), or what Dataset.save_to_disk writes."
        )
    try:
        if saved:
            return cast(dict[str, Any], load_from_disk(str(path)))
        return {
            split: load_dataset(_KINDS[p.suffix], data_files=str(p), split="train")
            for split, p in files.items()
        }
    except Exception as error:  # datasets and pyarrow raise many kinds
        text = " ".join(str(error).split())[:200]
        raise EvaluationError(
            f"{path}: cannot be read as a data set ({type(error).__name__}: {text})."
        ) from None


def from_lines(name: str, path: Path) -> Task:
    """A task of the harness whose questions are the lines of `NAME.jsonl`.

    Raises:
        EvaluationError: a line that is not JSON or lacks a field.
    """
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    rows = _read(path, FIELDS[name])
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
    if name in ("copa", "hellaswag", "openbookqa"):
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

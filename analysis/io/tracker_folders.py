"""Folders that trackers write, as one table.

    events.out.tfevents*     TensorBoard, through its own reader: a row a run and step, a column a
                             scalar; a run is a folder of event files
    mlruns/<exp>/<run>/      MLflow's file store: a row a run, params and the last of each metric
    trackio/*.db             trackio's database of a project, or a folder of them: a row a run and
                             step, a column a metric, and of the configuration
    */trainer_state.json     Hugging Face's Trainer: a row a run and evaluation; of a run's
                             checkpoints the last, whose log holds those before
    results*.json            lm-evaluation-harness: a row a file, a column task/metric

Tags of TensorBoard that were written at other steps leave empty cells.
"""

from __future__ import annotations

import json
import math
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.errors import AnalysisError
from linscale.texts import clean

_EVENTS = "events.out.tfevents*"
_MLFLOW_STATES = {"1": "running", "2": "scheduled", "3": "finished", "4": "failed", "5": "killed"}
"""MLflow's RunStatus by number, as meta.yaml has it."""
_TRAINER = "trainer_state.json"
_DEEPEST = 8
"""Folders below the one given that are looked into."""


def tracker_of(path: Path) -> str:
    """`tensorboard`, `mlflow`, `trackio`, `trainer`, `lm-eval`, or "" where no tracker wrote."""
    if path.is_file():
        return "trackio" if _is_trackio(path) else ""
    if not path.is_dir() or (path / "sweep.json").is_file():
        return ""
    if _below(path, _EVENTS):
        return "tensorboard"
    if _below(path, "meta.yaml") and any(m.parent.joinpath("metrics").is_dir()
                                         for m in _below(path, "meta.yaml")):  # fmt: skip
        return "mlflow"
    if any(map(_is_trackio, path.glob("*.db"))):
        return "trackio"
    if _below(path, _TRAINER):
        return "trainer"
    if any(_is_harness(file) for file in _below(path, "results*.json")[:3]):
        return "lm-eval"
    return ""


def read_tracker(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """The table in a tracker's folder, and what was assumed.

    Raises:
        AnalysisError: nothing in it can be read.
        ImportError: TensorBoard's reader is not installed.
    """
    kind = tracker_of(path)
    rows = {
        "tensorboard": _tensorboard,
        "mlflow": _mlflow,
        "lm-eval": _harness,
        "trainer": _trainer,
        "trackio": _trackio,
    }[kind](path)
    if not rows:
        raise AnalysisError(f"{path} holds no values that can be read ({kind})")
    runs = len({row["run"] for row in rows})
    return pd.DataFrame(rows), [f"{kind}: {len(rows)} rows of {runs} runs below {path.name}"]


def harness_row(record: dict[str, Any], name: str) -> dict[str, Any]:
    """A row of one result file of lm-evaluation-harness: run, N where it says so, task/metric."""
    config = record.get("config") if isinstance(record.get("config"), dict) else {}
    run = record.get("model_name") or (config or {}).get("model_args") or name
    row: dict[str, Any] = {"run": clean(str(run))}
    if isinstance(count := (config or {}).get("model_num_parameters"), int | float):
        row["model_num_parameters"] = count
    for task, metrics in record["results"].items():
        for key, value in metrics.items() if isinstance(metrics, dict) else ():
            metric, _, filters = key.partition(",")
            if isinstance(value, int | float) and "stderr" not in metric:
                row[f"{task}/{metric}" + ("" if filters in ("", "none") else f",{filters}")] = value
    return row


def is_harness_record(record: Any) -> bool:
    """Whether a JSON value is a result file of lm-evaluation-harness."""
    return (
        isinstance(record, dict)
        and isinstance(record.get("results"), dict)
        and bool(record["results"])
        and ("versions" in record or "n-shot" in record or "configs" in record)
    )


def is_trainer_state(record: Any) -> bool:
    """Whether a JSON value is the state of Hugging Face's Trainer."""
    return isinstance(record, dict) and isinstance(record.get("log_history"), list)


def trainer_rows(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The evaluations in a Trainer's log, else its training losses. The state counts FLOPs and
    tokens once, at its own step: FLOPs of other entries are in proportion to their tokens.

    Raises:
        ValueError: an entry of the log is no record.
    """
    log = state["log_history"]
    for entry in log:
        if not isinstance(entry, dict):
            raise ValueError(f"{clean(repr(entry), 40)} stands where a record should")
    measured = [dict(entry) for entry in log if "eval_loss" in entry]
    rows = measured or [dict(entry) for entry in log]
    flops, tokens = (
        value if isinstance(value := state.get(name), int | float) and value > 0 else None
        for name in ("total_flos", "num_input_tokens_seen")
    )
    for row in rows:
        if row.get("step") == state.get("global_step") and tokens is not None:
            row.setdefault("num_input_tokens_seen", tokens)
        seen = row.get("num_input_tokens_seen")
        if flops is not None and tokens is not None and isinstance(seen, int | float):
            row.setdefault("total_flos", flops * seen / tokens)
    return rows


def _trainer(path: Path) -> list[dict[str, Any]]:
    """Of every folder that holds checkpoints the state with the most steps, run by run."""
    last: dict[str, tuple[float, dict[str, Any]]] = {}
    for file in _below(path, _TRAINER):
        state = json.loads(file.read_text(encoding="utf-8"))
        if not is_trainer_state(state):
            continue
        folder = file.parent
        while folder != path and folder.name.startswith("checkpoint-"):
            folder = folder.parent
        name = folder.relative_to(path).as_posix()
        run = path.name if name == "." else name
        steps = float(state.get("global_step") or 0)
        if run not in last or steps > last[run][0]:
            last[run] = (steps, state)
    return [
        {"run": clean(run), **_flat(row)}
        for run, (_, state) in last.items() for row in trainer_rows(state)
    ]  # fmt: skip


def _below(path: Path, pattern: str) -> list[Path]:
    found = [file for file in path.rglob(pattern)
             if len(file.relative_to(path).parts) <= _DEEPEST]  # fmt: skip
    return sorted(found)


def _is_harness(file: Path) -> bool:
    try:
        return is_harness_record(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return False


def _tensorboard(path: Path) -> list[dict[str, Any]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    rows: list[dict[str, Any]] = []
    for folder in sorted({file.parent for file in _below(path, _EVENTS)}):
        reader = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
        reader.Reload()
        tags = reader.Tags()
        name = folder.relative_to(path).as_posix()
        run = path.name if name == "." else name
        by_step: dict[int, dict[str, Any]] = {}

        def put(step: int, tag: str, value: float, steps: Any = by_step, run: str = run) -> None:
            steps.setdefault(step, {"run": clean(run), "step": step})[clean(tag)] = value

        for tag in tags["scalars"]:
            for event in reader.Scalars(tag):
                put(event.step, tag, float(event.value))
        for tag in tags["tensors"]:  # scalars of writers that use the newer form
            plugin = reader.SummaryMetadata(tag).plugin_data.plugin_name
            for event in reader.Tensors(tag) if plugin == "scalars" else ():
                put(event.step, tag, float(tensor_util.make_ndarray(event.tensor_proto)))
        rows += [by_step[step] for step in sorted(by_step)]
    return rows


def _mlflow(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for meta in _below(path, "meta.yaml"):
        folder = meta.parent
        if not (folder / "metrics").is_dir():
            continue
        said = dict(_yaml_lines(meta))
        if said.get("lifecycle_stage") == "deleted":
            continue
        state = said.get("status", "")
        row: dict[str, Any] = {
            "run": clean(said.get("run_name") or said.get("run_id") or folder.name),
            "status": _MLFLOW_STATES.get(state, state.lower()),
        }
        for file in _files(folder / "params"):
            row[clean(file.relative_to(folder / "params").as_posix())] = clean(_text(file))
        for file in _files(folder / "metrics"):
            value = _last_metric(_text(file))
            if math.isfinite(value):
                row[clean(file.relative_to(folder / "metrics").as_posix())] = value
        rows.append(row)
    return rows


def _is_trackio(file: Path) -> bool:
    if file.suffix != ".db":
        return False
    try:
        with closing(_database(file)) as found:
            found.execute("select run_name, step, metrics from metrics limit 1")
    except sqlite3.Error:
        return False
    return True


def _database(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)


def _trackio(path: Path) -> list[dict[str, Any]]:
    """Rows of all runs by step; values that were logged at one step make one row."""
    rows: list[dict[str, Any]] = []
    for file in [path] if path.is_file() else filter(_is_trackio, sorted(path.glob("*.db"))):
        with closing(_database(file)) as found:
            configs = found.execute("select run_id, config from configs").fetchall()
            lines = found.execute(
                "select run_id, run_name, step, metrics from metrics order by run_id, step, id"
            ).fetchall()
        known = {run: _flat(json.loads(text)) for run, text in configs}
        by_step: dict[tuple[str, int], dict[str, Any]] = {}
        for run, name, step, text in lines:
            row = by_step.setdefault(
                (run, step), {"run": clean(name), "step": step, **known.get(run, {})}
            )
            row |= _flat(json.loads(text))
        rows += by_step.values()
    return rows


def _flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Numbers and words of an object, those inside of others as a.b; trackio's own begin with _."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{before}{key}.")
        elif isinstance(value, int | float | str) and not (key.startswith("_") and not before):
            found[clean(f"{before}{key}")] = clean(value) if isinstance(value, str) else value
    return found


def _harness(path: Path) -> list[dict[str, Any]]:
    return [
        harness_row(json.loads(file.read_text(encoding="utf-8")), file.parent.name)
        for file in _below(path, "results*.json") if _is_harness(file)
    ]  # fmt: skip


def _files(folder: Path) -> list[Path]:
    return [file for file in _below(folder, "*") if file.is_file()]


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace").strip()


def _yaml_lines(file: Path) -> list[tuple[str, str]]:
    """The top-level scalars of a meta.yaml, which is flat."""
    pairs = (line.partition(":") for line in _text(file).splitlines() if line[:1].strip())
    return [(key.strip(), value.strip().strip("'\"")) for key, _, value in pairs]


def _last_metric(text: str) -> float:
    """The value at the last step of lines "timestamp value step"; NaN without one."""
    best = (-math.inf, -math.inf, math.nan)
    for line in text.splitlines():
        fields = line.split()
        try:
            stamp, value = float(fields[0]), float(fields[1])
            step = float(fields[2]) if len(fields) > 2 else 0.0
        except (IndexError, ValueError):
            continue
        if (step, stamp) >= best[:2]:
            best = (step, stamp, value)
    return best[2]

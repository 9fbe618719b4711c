"""Folders of TensorBoard, MLflow and lm-evaluation-harness; what was written is read."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from analysis.cli.source import read_source
from analysis.errors import AnalysisError
from analysis.io.sweep_files import is_table
from analysis.io.tables import load_table
from analysis.io.tracker_folders import read_tracker, tracker_of

HARNESS = {
    "results": {
        "wikitext": {"alias": "wikitext", "bits_per_byte,none": 0.9,
                     "bits_per_byte_stderr,none": 1},
        "piqa": {"acc,none": 0.71, "acc_norm,none": 0.72},
    },
    "versions": {"piqa": 1},
    "config": {"model": "hf", "model_num_parameters": 70_000_000},
}  # fmt: skip


def test_runs_of_mlflow(tmp_path: Path) -> None:
    for k, (status, stage) in enumerate([("3", "active"), ("4", "active"), ("3", "deleted"),
                                         ("3", "active")]):  # fmt: skip
        run = tmp_path / "mlruns" / "0" / f"run{k}"
        (run / "metrics" / "eval").mkdir(parents=True)
        (run / "params").mkdir()
        (run / "meta.yaml").write_text(
            f"run_id: run{k}\nrun_name: 'name {k}'\nstatus: {status}\nlifecycle_stage: {stage}\n"
        )
        (run / "params" / "n_params").write_text(f"{k + 1}e7")
        # The last step counts, not the last line.
        (run / "metrics" / "eval" / "loss").write_text(f"1 9.0 0\n3 {3 - k / 10} 20\n2 4.0 10\n")
        (run / "metrics" / "tokens").write_text("3 1e9 20\n")
    assert tracker_of(tmp_path / "mlruns") == "mlflow"
    sweep = load_table(tmp_path / "mlruns")
    assert sweep.points["run_id"].tolist() == ["name 0", "name 3"]
    assert sweep.points["loss"].tolist() == [3.0, 2.7]
    assert sweep.points["n_params"].tolist() == [1e7, 4e7]
    assert sweep.exclusions["reason"].tolist() == ["status is failed"]


def test_results_of_the_harness(tmp_path: Path) -> None:
    for k in (1, 2):
        folder = tmp_path / f"model{k}"
        folder.mkdir()
        record = {**HARNESS, "model_name": f"m{k}"}
        (folder / "results_2026-01-01.json").write_text(json.dumps(record))
    (tmp_path / "model1" / "results_other.json").write_text('{"results": 3}')
    sweep = load_table(tmp_path, loss="wikitext/bits_per_byte")
    assert sweep.points["run_id"].tolist() == ["m1", "m2"]
    assert sweep.points["n_params"].tolist() == [7e7, 7e7]
    assert sweep.points["piqa/acc"].tolist() == [0.71, 0.71]
    assert not [c for c in sweep.points if "stderr" in str(c) and "loss" not in str(c)]
    one = load_table(tmp_path / "model1" / "results_2026-01-01.json", loss="wikitext/bits_per_byte")
    assert one.points["loss"].tolist() == [0.9]


def test_event_files_of_tensorboard(tmp_path: Path) -> None:
    """Written with TensorBoard's own writer."""
    pytest.importorskip("tensorboard")
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    for name, loss in (("small", 3.0), ("large", 2.5)):
        writer = EventFileWriter(str(tmp_path / name))
        for step in (10, 20):
            values = {"val_loss": loss + 1 / step, "tokens": step * 1e6, "n_params": 1e7}
            for tag, value in values.items():
                summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
                writer.add_event(Event(step=step, wall_time=1.0, summary=summary))
        writer.close()
    assert is_table(tmp_path)
    sweep = read_source(tmp_path, loss=None, params=None, tokens=None, compute=None, group=None,
                        chosen={"last_per": "run"})  # fmt: skip
    assert sweep.points["run_id"].tolist() == ["large", "small"]
    assert sweep.points["loss"].tolist() == pytest.approx([2.55, 3.05])
    assert sweep.points["tokens"].tolist() == [2e7, 2e7]


def test_a_database_of_trackio(tmp_path: Path) -> None:
    """The tables that trackio 0.43 makes, as far as they are read; values of one step are one row,
    whoever logged them first."""
    folder = tmp_path / "trackio"
    folder.mkdir()
    with closing(sqlite3.connect(folder / "ladder.db")) as base, base:
        base.execute("create table metrics (id integer primary key, run_id text, timestamp text, "
                     "run_name text, step integer, metrics text)")  # fmt: skip
        base.execute("create table configs (id integer primary key, run_id text, run_name text, "
                     "config text, created_at text)")  # fmt: skip
        base.execute("insert into configs values (1, 'x', 'small', ?, '')",
                     ('{"_Username": "me", "model": {"n_params": 1000000}}',))  # fmt: skip
        for number, (step, text) in enumerate(
            [(20, b'{"val_loss": 3.5}'), (10, b'{"val_loss": 4.5}'), (20, b'{"tokens": 2000000}')]
        ):
            base.execute("insert into metrics values (?, 'x', '', 'small', ?, ?)",
                         (number, step, text))  # fmt: skip
    for place in (folder, folder / "ladder.db"):
        assert tracker_of(place) == "trackio"
        table, notes = read_tracker(place)
        assert table["val_loss"].tolist() == [4.5, 3.5]
        assert table["tokens"].tolist()[1] == 2_000_000
        assert table["model.n_params"].tolist() == [1e6, 1e6]
        assert "_Username" not in table
        assert notes == [f"trackio: 2 rows of 1 runs below {place.name}"]
    (tmp_path / "other.db").write_bytes(b"no database")
    assert tracker_of(tmp_path / "other.db") == ""


def test_other_folders_are_no_tables(tmp_path: Path) -> None:
    assert tracker_of(tmp_path) == ""
    with pytest.raises(AnalysisError, match="directory without runs"):
        load_table(tmp_path)
    (tmp_path / "events.out.tfevents.1").write_bytes(b"")
    (tmp_path / "sweep.json").write_text("{}")
    assert tracker_of(tmp_path) == ""


def test_zstandard(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    path = tmp_path / "t.csv.zst"
    text = b"params,tokens,loss\n1e7,1e9,3\n2e7,1e9,2.9\n"
    with pa.output_stream(str(path), compression="zstd") as file:
        file.write(text)
    assert load_table(path).points["loss"].tolist() == [3.0, 2.9]
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(AnalysisError, match="cannot be read as a table"):
        load_table(path)


def test_a_folder_of_trainer_states(tmp_path: Path) -> None:
    """The last checkpoint of each run; FLOPs of the Trainer are 6 N a token it has seen."""
    for run, size in (("small", 1e7), ("big", 1e8)):
        log: list[dict[str, float]] = []
        for step in (100, 200):
            seen = {"num_input_tokens_seen": step * 1e6}
            log += [{"loss": 5.0, "step": step - 50},
                    {"eval_loss": 4 - step / 1000, "step": step, **seen}]  # fmt: skip
            state = {"global_step": step, "total_flos": 6 * size * step * 1e6,
                     "log_history": log, **seen}  # fmt: skip
            folder = tmp_path / "out" / run / f"checkpoint-{step}"
            folder.mkdir(parents=True)
            (folder / "trainer_state.json").write_text(json.dumps(state))
    sweep = load_table(tmp_path / "out")
    points = sweep.points.sort_values(["run_id", "tokens"])
    assert points["run_id"].tolist() == ["big", "big", "small", "small"]
    assert points["loss"].tolist() == [3.9, 3.8] * 2
    size = points["flops"] / (6 * points["tokens"])
    assert size.tolist() == pytest.approx([1e8, 1e8, 1e7, 1e7])

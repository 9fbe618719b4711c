"""Runs of one sweep on data that are not the same: found by their hashes, with reasons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from analysis.io.data_identity import other_data


def write(root: Path, run_id: str, data: dict[str, Any] | None, **settings: Any) -> None:
    (root / run_id).mkdir(parents=True)
    config = {"data": {"corpus": "kjv", "sequence_length": 64} | settings}
    (root / run_id / "config.json").write_text(json.dumps(config))
    if data is not None:
        (root / run_id / "environment.json").write_text(json.dumps({"data": data}))


def marks(corpus: str = "c" * 64, validation: str = "v" * 64) -> dict[str, Any]:
    return {"corpus_sha256": corpus, "validation_sha256": validation, "tokenizer_sha256": "t"}


def reasons(root: Path) -> dict[str, str]:
    return other_data(root, sorted(path.name for path in root.iterdir()))


def test_the_odd_one_is_named_with_what_differs(tmp_path: Path) -> None:
    for run_id in "abc":
        write(tmp_path, run_id, marks())
    write(tmp_path, "d", marks(corpus="d" * 64))
    assert reasons(tmp_path) == {
        "d": "other data than 3 runs with the same settings: corpus dddddddd, not cccccccc"
    }


def test_the_first_counts_where_there_is_no_majority(tmp_path: Path) -> None:
    write(tmp_path, "a", marks())
    write(tmp_path, "b", marks(validation="w" * 64))
    assert reasons(tmp_path) == {
        "b": "other data than the run with the same settings: validation blocks wwwwwwww, "
        "not vvvvvvvv"
    }


def test_other_settings_may_have_other_data(tmp_path: Path) -> None:
    write(tmp_path, "a", marks())
    write(tmp_path, "b", marks(validation="w" * 64), sequence_length=128)
    write(tmp_path, "c", marks(), batch_sequences=4)  # no part of what the data are
    write(tmp_path, "d", None)
    assert reasons(tmp_path) == {}


def test_an_accepted_change_is_named_with_its_steps(tmp_path: Path) -> None:
    write(tmp_path, "a", marks())
    path = tmp_path / "a" / "environment.json"
    changed = {"data_changes": [{"step": 5}, {"step": 9}]}
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    assert reasons(tmp_path) == {
        "a": "its data changed at step 5, 9, which --accept-data-change allowed"
    }


def test_unreadable_records_are_left_to_the_reader(tmp_path: Path) -> None:
    write(tmp_path, "a", marks())
    for run_id, text in (("b", "{"), ("c", "[1]"), ("d", '{"data": 3, "data_changes": 7}')):
        write(tmp_path, run_id, None)
        (tmp_path / run_id / "environment.json").write_text(text)
    assert reasons(tmp_path) == {}

"""Files of a run that hold something else than they should: refused in words, or passed over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from linscale.errors import LinscaleError
from scaling.record.data_identity import check_data
from scaling.record.head import read_head
from scaling.record.record import RunRecord
from scaling.training.guard import find_rewinds

BAD: tuple[Any, ...] = (
    None, True, -1, 1.5, 10**400, "x", "../../etc", [], [1, [2]], {}, {"a": {}}, [None], [{}],
)  # fmt: skip


@pytest.fixture
def record(make_run: Any, tmp_path: Path) -> RunRecord:
    record = RunRecord(make_run(), tmp_path)
    record.create()
    record.write_status("running", tokens=10, loss=1.0)
    return record


@pytest.mark.parametrize("value", BAD, ids=repr)
@pytest.mark.parametrize("name", ["git_revisions", "data_changes", "data"])
def test_environments_of_any_kind(record: RunRecord, name: str, value: Any) -> None:
    (record.path / "environment.json").write_text(json.dumps({name: value}))
    try:
        changed = check_data(record, {"corpus_sha256": "1"}, 0)
    except LinscaleError:
        return  # the former data were others
    record.write_environment({"git_revision": "r", "git_dirty_sha256": None, "data": {}}, changed)
    record.write_environment({"git_revision": "r", "git_dirty_sha256": None, "data": {}})
    written = json.loads((record.path / "environment.json").read_text())
    assert written["git_revisions"][-1] == ["r", None]
    assert written["git_revisions"].count(["r", None]) == 1


@pytest.mark.parametrize("value", BAD, ids=repr)
def test_states_of_any_kind(record: RunRecord, value: Any) -> None:
    (record.path / "status.json").write_text(json.dumps({"tokens": value, "state": value}))
    assert read_head(record.path).tokens >= 0
    assert read_head(record.path).state == "planned"
    record.write_status("failed", reason="because")
    assert record.state == "failed"


@pytest.mark.parametrize("name", ["metrics.jsonl", "milestones.jsonl", "rewinds.jsonl"])
def test_lines_of_any_kind(record: RunRecord, name: str) -> None:
    lines = "".join(json.dumps(value) + "\n" for value in (*BAD, "[" * 5000))
    (record.path / name).write_text(lines)
    record.truncate(0, 0)
    assert find_rewinds(record, 0) == []


@pytest.mark.slow
def test_flipped_bits_of_a_record_are_never_a_traceback(record: RunRecord) -> None:
    """3,000 by seed, over the files that a session reads before it trains."""
    record.write_environment({"git_revision": "r", "git_dirty_sha256": None, "data": {"a": 1}})
    draw = np.random.default_rng(13)
    files = [record.path / name for name in ("config.json", "status.json", "environment.json")]
    for _ in range(3000):
        path = files[draw.integers(len(files))]
        good = path.read_bytes()
        bad = bytearray(good)
        for at in draw.integers(len(bad), size=draw.integers(1, 4)):
            bad[at] ^= 1 << int(draw.integers(8))
        path.write_bytes(bytes(bad))
        try:
            opened = RunRecord(record.config, record.path.parent)
            check_data(opened, {"corpus_sha256": "1"}, 0)
            opened.write_environment({"git_revision": "r", "git_dirty_sha256": None})
            opened.write_status("running")
        except LinscaleError:
            pass
        for each in files:
            if each == path:
                each.write_bytes(good)

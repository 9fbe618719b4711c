"""Temporary files are nobody else's: not a link that waits there, not another process's."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from scaling.system import files
from scaling.system.files import DiskError, remove_leftovers, replacing, write_json


def test_a_link_in_the_way_is_never_written_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who can write in the folder guesses the name of the temporary file."""
    secret = tmp_path / "secret"
    secret.write_text("mine")
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "0" * 2 * n)
    (tmp_path / ".status.json.00000000.tmp").symlink_to(secret)
    with pytest.raises(DiskError, match=r"status.json: cannot be written \(File exists\)"):
        write_json(tmp_path / "status.json", {"state": "done"})
    assert secret.read_text() == "mine"
    assert not (tmp_path / "status.json").exists()


def test_two_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    with replacing(path) as slow:
        slow.write(b"slow ")
        thread = threading.Thread(target=write_json, args=(path, {"quick": 1}))
        thread.start()
        thread.join()
        slow.write(b"slow")
    assert path.read_bytes() == b"slow slow"
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".status.json.0a1b2c3d.tmp").write_text("{")
    (tmp_path / ".mine.tmp").write_text("kept")
    remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".mine.tmp"]

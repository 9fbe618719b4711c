"""What was tokenised is found by content: a touch costs nothing, and no edit goes unnoticed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from scaling.cli.main import app
from scaling.config.run import DataConfig
from scaling.data.corpora import content
from scaling.data.corpora.content import content_hashes
from scaling.data.prepare import prepare


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    monkeypatch.setenv("LINSCALE_CACHE", str(tmp_path / "cache"))
    for number in range(30):
        (tmp_path / f"{number:02}.txt").write_text(f"a text with the number {number} " * 30)
    return DataConfig(corpus=f"text:{tmp_path}/*.txt", sequence_length=32, validation_fraction=0.3)


def test_a_touch_is_no_other_corpus_and_reads_no_file_twice(
    data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepare(data).folder
    os.utime(tmp_path / "03.txt", (1, 1))
    read: list[Path] = []
    plain = content.sha256_of
    monkeypatch.setattr(content, "sha256_of", lambda path: read.append(path) or plain(path))
    assert prepare(data).folder == folder
    assert [path.name for path in read] == ["03.txt"]
    assert prepare(data).folder == folder
    assert len(read) == 1


def test_an_edit_with_size_and_time_kept_is_noticed(data: DataConfig, tmp_path: Path) -> None:
    before = prepare(data)
    path = tmp_path / "03.txt"
    stat = path.stat()
    path.write_text(path.read_text().replace("text", "book"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    after = prepare(data)
    assert after.folder != before.folder
    assert after.index.corpus_sha256 != before.index.corpus_sha256


def test_a_memo_that_cannot_be_trusted_is_made_anew(data: DataConfig, tmp_path: Path) -> None:
    (path,) = [tmp_path / "03.txt"]
    right = content_hashes([path])
    memo = tmp_path / "cache" / content.MEMO
    for bad in ("{", "[]", json.dumps({str(path): [1]}), json.dumps({str(path): "x"})):
        memo.write_text(bad)
        assert content_hashes([path]) == right


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["data", *arguments])
    assert result.exception is None, result.exception
    return result.output


def test_orphans_are_listed_and_pruned(data: DataConfig, tmp_path: Path) -> None:
    old = prepare(data).folder
    (tmp_path / "03.txt").write_text("other " * 100)
    new = prepare(data).folder
    os.utime(old / "index.json", (1, 1))
    for path in old.iterdir():
        os.utime(path, (1, 1))
    found = {one["folder"]: one for one in json.loads(run("list", "--json"))}
    assert found[old.name]["orphan"]
    assert not found[new.name]["orphan"]
    assert found[new.name]["tokens"] == prepare(data).index.train.tokens + (
        prepare(data).index.validation.tokens
    )
    assert f"{old.name}: would be removed" in run("prune", "--dry-run")
    assert old.is_dir()
    run("prune")
    assert not old.exists()
    assert new.is_dir()
    assert "no orphans" in run("prune")
    result = CliRunner().invoke(app, ["data", "prune", "../../etc"])
    assert "leads out of it" in str(result.exception)
    for dry in ([], ["--dry-run"]):  # one wrong name: nothing goes, and a dry run says so too
        result = CliRunner().invoke(app, ["data", "prune", new.name, "nothing", *dry])
        assert "nothing: is no prepared corpus" in str(result.exception)
        assert new.is_dir()
    run("prune", new.name)
    assert not new.exists()

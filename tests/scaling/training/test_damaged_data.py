"""Training data that were damaged on disk do not end up in a model that is kept."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from linscale.errors import LinscaleError
from scaling.config.run import RunConfig
from scaling.data import token_store
from scaling.data.prepare import prepare
from scaling.data.token_store import STAMP, Index
from scaling.record.record import RunRecord
from scaling.training import session
from scaling.training.train import train
from tests.support.results import StopAfter, result


@pytest.fixture
def config(
    make_run: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RunConfig:
    made = make_run()
    monkeypatch.setenv("LINSCALE_CACHE", str(tmp_path / "cache"))  # of this test alone
    return made


def flip(folder: Path) -> bytes:
    """Change 4000 tokens of the training shard; returns what it held."""
    path = folder / Index.load(folder).train.shards[0].file  # type: ignore[union-attr]
    before = path.read_bytes()
    tokens = np.frombuffer(before, "<u2").copy()
    tokens[1000:5000] = tokens[1000:5000] ^ 1
    path.write_bytes(tokens.tobytes())
    return before


def test_flipped_tokens_fail_the_run_and_leave_no_trace(config: RunConfig, tmp_path: Path) -> None:
    assert train(config, tmp_path / "whole") == "done"
    assert train(config, tmp_path / "pieces", stop_event=StopAfter(5)) == "preempted"
    folder = prepare(config.data).folder
    before = flip(folder)
    with pytest.raises(LinscaleError, match=r"train-00000\.bin does not have the content"):
        train(config, tmp_path / "pieces")
    with pytest.raises(LinscaleError, match=r"train-00000\.bin does not have the content"):
        train(config, tmp_path / "pieces")
    (folder / "train-00000.bin").write_bytes(before)
    assert train(config, tmp_path / "pieces") == "done"
    assert result(config, tmp_path / "pieces") == result(config, tmp_path / "whole")


def test_steps_are_made_while_shards_are_read(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a checkpoint waits, and log.txt says so."""
    prepare(config.data)
    waiting = threading.Event()
    hashed, log = token_store.sha256_of, RunRecord.log
    kept: list[list[int]] = []

    def slow(path: Path) -> str:
        assert waiting.wait(60)
        return hashed(path)

    def spy(record: RunRecord, text: str) -> None:
        log(record, text)
        if "read against their hashes" in text:
            manifest = json.loads((record.checkpoints / "manifest.json").read_text())
            kept.append([point["step"] for point in manifest["resume"]])
            waiting.set()

    monkeypatch.setattr(token_store, "sha256_of", slow)
    monkeypatch.setattr(RunRecord, "log", spy)
    monkeypatch.setattr(session, "PATIENCE_SECONDS", 0.0)
    assert train(config, tmp_path) == "done"
    assert kept == [[0]]  # the one that waited was of step 3


def test_what_was_found_right_is_not_read_again(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(config.data)
    prepared.verify_changed()
    stamps = json.loads((prepared.folder / STAMP).read_text())
    assert len(stamps) == 2
    read: list[Path] = []
    hashed = token_store.sha256_of

    def spy(path: Path) -> str:
        read.append(path)
        return hashed(path)

    monkeypatch.setattr(token_store, "sha256_of", spy)
    prepared.verify_changed()
    assert read == []
    shard = prepared.folder / prepared.index.train.shards[0].file
    os.utime(shard, ns=(1, 1))
    prepared.verify_changed()
    assert read == [shard]
    flip(prepared.folder)
    with pytest.raises(LinscaleError, match="does not have the content that was written"):
        prepared.verify_changed()


def test_a_cache_of_somebody_else_is_read_each_time(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(config.data)

    def refuse(path: Path, value: object) -> None:
        raise token_store.DiskError(f"{path}: read-only")

    monkeypatch.setattr(token_store, "write_json", refuse)
    prepared.verify_changed()
    assert not (prepared.folder / STAMP).exists()

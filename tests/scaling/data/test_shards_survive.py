"""Shards come out the same whatever kills, races, disks and numbers of workers do meanwhile."""

from __future__ import annotations

import dataclasses
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from linscale.errors import LinscaleError
from scaling.data.prepare import prepare
from scaling.data.token_store import Index
from tests.support.small_corpora import files, sample_documents, write_corpus


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:360"])
def test_an_interruption_anywhere_ends_with_the_same_bytes(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_corpus(tmp_path, sample_documents())
    data = dataclasses.replace(data, tokenizer=tokenizer)
    undisturbed = prepare(data, tmp_path / "undisturbed")
    expected = files(undisturbed.folder)

    class Killed(BaseException):
        pass

    state = {"calls": 0, "limit": 0, "before": True}
    original = Path.replace

    def replace_or_die(self: Path, target: Path) -> Path:
        """Die before or after the n-th rename: the points where the folder changes."""
        state["calls"] += 1
        if state["calls"] == state["limit"] and state["before"]:
            raise Killed
        result = original(self, target)
        if state["calls"] == state["limit"]:
            raise Killed
        return result

    monkeypatch.setattr(Path, "replace", replace_or_die)
    cache = tmp_path / "cache"
    attempts = 0
    for limit in (1, 2, 3, 4, 5, 7):
        for before in (True, False):
            state |= {"calls": 0, "limit": limit, "before": before}
            try:
                prepare(data, cache)
            except Killed:
                attempts += 1
    assert attempts >= 6
    monkeypatch.setattr(Path, "replace", original)
    finished = prepare(data, cache)
    assert files(finished.folder) == expected
    assert finished.fingerprint() == undisturbed.fingerprint()


CHILD = """
import sys
from pathlib import Path
from scaling.data import tokenise
from scaling.config.run import DataConfig
from scaling.data.prepare import prepare
tokenise.CHUNK_BYTES, tokenise.BATCH_BYTES = 20_000, 2_000
data = DataConfig(corpus=sys.argv[1], sequence_length=32, validation_fraction=0.1)
print(prepare(data, Path(sys.argv[2])).index.corpus_sha256)
"""


def child(corpus: str, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, corpus, str(cache)], stdout=subprocess.PIPE, text=True
    )


def test_sigkill_while_tokenising(tmp_path: Path) -> None:
    # Killed as soon as some shards are there, three times over, and then left alone.
    def shards() -> int:
        return len(list((tmp_path / "cache").glob("*/*.bin")))

    undisturbed = child("kjv", tmp_path / "undisturbed")
    assert undisturbed.communicate(timeout=120)[0].strip()
    for minimum in (1, 20, 60):
        process = child("kjv", tmp_path / "cache")
        while shards() < minimum and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    last = child("kjv", tmp_path / "cache")
    assert last.communicate(timeout=120)[0].strip()
    (killed,) = (tmp_path / "cache").iterdir()
    (whole,) = (tmp_path / "undisturbed").iterdir()
    assert files(killed) == files(whole)
    assert killed.name == whole.name


def test_many_processes_at_once_make_one_result(tmp_path: Path) -> None:
    children = [child("kjv", tmp_path / "cache") for _ in range(3)]
    outputs = [c.communicate(timeout=120)[0].strip() for c in children]
    assert [c.returncode for c in children] == [0, 0, 0]
    assert len(set(outputs)) == 1
    (folder,) = (tmp_path / "cache").iterdir()
    assert not list(folder.glob("*.tmp"))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("limit", [0, 1, 7, 8, 9])
def test_full_disk_keeps_what_is_done_and_goes_on(
    tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_corpus(tmp_path, sample_documents())
    expected = files(prepare(data, tmp_path / "undisturbed").folder)
    original = os.fsync
    calls = 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > limit:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LinscaleError, match=r"full.*(free some space|make room).*again"):
        prepare(data, tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    assert not [p for p in folder.iterdir() if p.name.endswith(".tmp")]
    assert bool(list(folder.glob("*.bin"))) == (limit > 0)
    monkeypatch.setattr(os, "fsync", original)
    assert files(prepare(data, tmp_path / "cache").folder) == expected


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:360"])
def test_workers_write_the_same_bytes(tmp_path: Path, tokenizer: str) -> None:
    documents = ["", *sample_documents(), "\n"]
    data = dataclasses.replace(write_corpus(tmp_path, documents), tokenizer=tokenizer)
    alone = prepare(data, tmp_path / "alone", workers=1)
    shared = prepare(data, tmp_path / "shared", workers=3)
    assert len(alone.index.train.shards) > 4
    assert files(shared.folder) == files(alone.folder)
    assert shared.index == alone.index


@pytest.mark.usefixtures("small_chunks")
def test_a_worker_that_is_killed_costs_a_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_corpus(tmp_path, sample_documents())
    expected = files(prepare(data, tmp_path / "undisturbed").folder)
    save = Index.save

    def save_and_kill(index: Index, folder: Path) -> None:
        save(index, folder)
        for worker in multiprocessing.active_children():
            worker.kill()

    monkeypatch.setattr(Index, "save", save_and_kill)
    with pytest.raises(LinscaleError, match=r"worker process was killed.* run the same command"):
        prepare(data, tmp_path / "cache", workers=2)
    monkeypatch.setattr(Index, "save", save)
    begun = Index.load(next((tmp_path / "cache").iterdir()))
    assert begun is not None
    assert 0 < begun.documents_read < 200
    assert files(prepare(data, tmp_path / "cache", workers=2).folder) == expected


WITH_WORKERS = """
import multiprocessing, sys
from pathlib import Path
from scaling.data import tokenise
from scaling.config.run import DataConfig
from scaling.data.prepare import prepare
from scaling.data.token_store import Index

tokenise.CHUNK_BYTES, tokenise.BATCH_BYTES = 400_000, 20_000
save = Index.save

def save_and_tell(index, folder):
    save(index, folder)
    print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)

Index.save = save_and_tell
data = DataConfig(corpus="kjv", sequence_length=32, validation_fraction=0.1)
prepare(data, Path(sys.argv[1]), workers=2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_workers_end_with_the_one_who_started_them(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITH_WORKERS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = [int(number) for number in process.stdout.readline().split()]
        process.kill()
    assert len(workers) == 2
    deadline = time.monotonic() + 30
    while any(_lives(number) for number in workers):
        assert time.monotonic() < deadline, "workers are left behind"
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"

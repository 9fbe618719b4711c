"""Shards: what was written is what was read, whatever kills, races or disks do meanwhile."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling import tokenise
from scaling.config import DataConfig
from scaling.corpora import open_corpus
from scaling.errors import LinscaleError
from scaling.shards import PreparedData, default_cache, prepare
from scaling.token_store import INDEX, Contents, Shard, Split
from scaling.tokenizers import ByteTokenizer

T = 32


def write_corpus(folder: Path, documents: list[str]) -> DataConfig:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": document}) for document in documents]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    return DataConfig(
        corpus=f"jsonl:{folder}/corpus.jsonl",
        sequence_length=T,
        batch_sequences=4,
        validation_fraction=0.2,
        validation_blocks=5,
    )


def sample_documents(count: int = 200) -> list[str]:
    rng = np.random.default_rng(0)
    words = ["scale", "law", "loss", "token", "compute", "état", "数"]
    return [" ".join(rng.choice(words, size=rng.integers(3, 60))) + f" {i}." for i in range(count)]


def held_out(document: str, fraction: float) -> bool:
    """The rule of the documentation, written out again."""
    digest = hashlib.sha256(document.encode()).hexdigest()
    return int(digest[:16], 16) / 2**64 < fraction


def stream(documents: list[str]) -> list[int]:
    return [token for document in documents for token in (*document.encode(), 0xFF)]


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a prepared folder but the lock."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != "lock"}


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenise, "CHUNK_BYTES", 5000)
    monkeypatch.setattr(tokenise, "BATCH_BYTES", 700)


def all_tokens(prepared: PreparedData, split: str) -> list[int]:
    contents = getattr(prepared.index, split)
    raw = [(prepared.folder / shard.file).read_bytes() for shard in contents.shards]
    return np.frombuffer(b"".join(raw), prepared.index.dtype).tolist()


@pytest.mark.usefixtures("small_chunks")
def test_shards_hold_the_documents_in_order(tmp_path: Path) -> None:
    documents = sample_documents()
    data = write_corpus(tmp_path, documents)
    prepared = prepare(data, tmp_path / "cache")
    train = [d for d in documents if not held_out(d, 0.2)]
    validation = [d for d in documents if held_out(d, 0.2)]
    assert 20 < len(validation) < 60
    assert all_tokens(prepared, "train") == stream(train)
    assert all_tokens(prepared, "validation") == stream(validation)
    assert len(prepared.index.train.shards) > 4
    assert prepared.train_tokens == len(stream(train))
    validation_bytes = sum(len(d.encode()) for d in validation)
    assert prepared.bytes_per_token == validation_bytes / len(stream(validation))
    assert prepared.vocab_size == 256
    prepared.verify()


@pytest.mark.usefixtures("small_chunks")
def test_corpus_hash_is_the_documented_chain(tmp_path: Path) -> None:
    documents = sample_documents(50)
    prepared = prepare(write_corpus(tmp_path, documents), tmp_path / "cache")
    chain = b""
    for document in documents:
        chain = hashlib.sha256(chain + hashlib.sha256(document.encode()).digest()).digest()
    assert prepared.fingerprint()["corpus_sha256"] == chain.hex()


def test_empty_documents_are_skipped_and_counted(tmp_path: Path) -> None:
    documents = sample_documents(60)
    padded = ["", *documents[:30], " \n\t", *documents[30:], "\n"]
    plain = prepare(write_corpus(tmp_path / "a", documents), tmp_path / "cache")
    with_empty = prepare(write_corpus(tmp_path / "b", padded), tmp_path / "cache")
    assert with_empty.fingerprint()["empty_documents"] == 3
    assert all_tokens(with_empty, "train") == all_tokens(plain, "train")
    assert with_empty.index.corpus_sha256 == plain.index.corpus_sha256


def test_split_does_not_move_when_documents_are_added(tmp_path: Path) -> None:
    documents = sample_documents(100)
    before = prepare(write_corpus(tmp_path / "a", documents), tmp_path / "cache")
    more = ["a new one at the front", *documents, "one at the end", documents[3]]
    after = prepare(write_corpus(tmp_path / "b", more), tmp_path / "cache")
    for split in ("train", "validation"):
        old = bytes(all_tokens(before, split)).split(b"\xff")
        new = bytes(all_tokens(after, split)).split(b"\xff")
        assert set(old) <= set(new)
    train = set(bytes(all_tokens(after, "train")).split(b"\xff"))
    validation = set(bytes(all_tokens(after, "validation")).split(b"\xff"))
    assert train & validation == {b""}  # equal documents are on one side


def test_validation_blocks_are_spread_evenly_and_stored(tmp_path: Path) -> None:
    data = write_corpus(tmp_path, sample_documents())
    prepared = prepare(data, tmp_path / "cache")
    split = Split(prepared.folder, prepared.index.validation, "uint16", T)
    stored = json.loads((prepared.folder / f"blocks-{T}-5.json").read_text())["blocks"]
    assert stored == [i * split.n_blocks // 5 for i in range(5)]
    assert np.array_equal(prepared.validation, split.gather(stored))
    # The stored list is what is used.
    (prepared.folder / f"blocks-{T}-5.json").write_text(json.dumps({"blocks": [2, 0]}))
    assert np.array_equal(prepare(data, tmp_path / "cache").validation, split.gather([2, 0]))
    every = dataclasses.replace(data, validation_blocks=10**6)
    assert len(prepare(every, tmp_path / "cache").validation) == split.n_blocks


def test_settings_that_do_not_touch_tokens_share_shards(tmp_path: Path) -> None:
    data = write_corpus(tmp_path, sample_documents())
    folder = prepare(data, tmp_path / "cache").folder
    longer = dataclasses.replace(data, sequence_length=64, batch_sequences=2, validation_blocks=1)
    assert prepare(longer, tmp_path / "cache").folder == folder
    for change in ({"validation_fraction": 0.3}, {"tokenizer": "bpe:300"}):
        assert prepare(dataclasses.replace(data, **change), tmp_path / "cache").folder != folder


def test_second_time_reads_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_corpus(tmp_path, sample_documents())
    first = prepare(data, tmp_path / "cache")

    def refuse(*_: object) -> Iterator[str]:
        raise AssertionError("the corpus is read again")

    monkeypatch.setattr("scaling.corpora._read_jsonl", refuse)
    monkeypatch.setattr("scaling.shards.ShardWriter", refuse)
    second = prepare(data, tmp_path / "cache")
    assert second.fingerprint() == first.fingerprint()


def test_a_changed_corpus_is_made_anew(tmp_path: Path) -> None:
    data = write_corpus(tmp_path, sample_documents(100))
    first = prepare(data, tmp_path / "cache")
    write_corpus(tmp_path, sample_documents(120))
    second = prepare(data, tmp_path / "cache")
    assert second.folder != first.folder
    assert second.train_tokens > first.train_tokens


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
from scaling import tokenise
from scaling.config import DataConfig
from scaling.shards import prepare
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


@pytest.mark.parametrize("how", ["shorter", "longer", "gone", "index", "other", "blocks"])
def test_damaged_folders_are_refused_and_named(tmp_path: Path, how: str) -> None:
    data = write_corpus(tmp_path, sample_documents())
    prepared = prepare(data, tmp_path / "cache")
    shard = prepared.folder / prepared.index.train.shards[0].file
    if how == "shorter":
        shard.write_bytes(shard.read_bytes()[:-2])
    elif how == "longer":
        shard.write_bytes(shard.read_bytes() + b"\0\0")
    elif how == "gone":
        shard.unlink()
    elif how == "index":
        text = (prepared.folder / INDEX).read_text()
        (prepared.folder / INDEX).write_text(text[: len(text) // 2])
    elif how == "other":
        (prepared.folder / INDEX).write_text('{"format": 0}')
    else:
        (prepared.folder / f"blocks-{T}-5.json").write_text('{"blocks": [0, 100000]}')
    with pytest.raises(LinscaleError, match=r"Delete that folder and run the same command again"):
        prepare(data, tmp_path / "cache")
    shutil.rmtree(prepared.folder)
    assert prepare(data, tmp_path / "cache").fingerprint() == prepared.fingerprint()


def test_flipped_bits_are_found_on_demand(tmp_path: Path) -> None:
    prepared = prepare(write_corpus(tmp_path, sample_documents()), tmp_path / "cache")
    shard = prepared.folder / prepared.index.validation.shards[0].file
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(LinscaleError, match=r"validation-00000\.bin does not have the content"):
        prepared.verify()


def test_too_little_text_is_explained(tmp_path: Path) -> None:
    data = write_corpus(tmp_path, sample_documents(40))
    small = dataclasses.replace(data, validation_fraction=1e-6)
    with pytest.raises(LinscaleError, match=r"validation split has 0 tokens .*raise data\.valid"):
        prepare(small, tmp_path / "cache")
    long = dataclasses.replace(data, sequence_length=10**6)
    with pytest.raises(LinscaleError, match=r"training split has \d+ tokens .*shorten data\.seq"):
        prepare(long, tmp_path / "cache")


@pytest.mark.parametrize("documents", [[], ["", " "]])
def test_an_empty_corpus_is_explained(tmp_path: Path, documents: list[str]) -> None:
    with pytest.raises(LinscaleError, match=r"corpus jsonl:.* holds no documents"):
        prepare(write_corpus(tmp_path, documents), tmp_path / "cache")


def test_text_that_is_not_unicode_is_named(tmp_path: Path) -> None:
    data = write_corpus(tmp_path, ["fine", "\ud800"])
    for tokenizer in ("bytes", "bpe:300"):
        with pytest.raises(LinscaleError, match=r"document 1 holds a lone surrogate"):
            prepare(dataclasses.replace(data, tokenizer=tokenizer), tmp_path / "cache")


def test_bpe_sees_training_documents_only(tmp_path: Path) -> None:
    documents = sample_documents(120)
    secret = next(s for s in (f"zyzzyva{i}" for i in range(100)) if held_out(s * 30, 0.2))
    data = write_corpus(tmp_path, [*documents, secret * 30])
    prepared = prepare(dataclasses.replace(data, tokenizer="bpe:360"), tmp_path / "cache")
    tokenizer = prepared.tokenizer()
    assert prepared.vocab_size == tokenizer.vocab_size == 360
    assert prepared.bytes_per_token > 1
    assert "zyz" not in prepared.folder.joinpath("tokenizer.json").read_text()
    text = [d for d in documents if not held_out(d, 0.2)]
    assert tokenizer.decode(np.array(all_tokens(prepared, "train"))) == "".join(text)


def test_a_swapped_tokenizer_is_refused(tmp_path: Path) -> None:
    data = write_corpus(tmp_path, sample_documents(120))
    one = prepare(dataclasses.replace(data, tokenizer="bpe:300"), tmp_path / "cache")
    two = prepare(dataclasses.replace(data, tokenizer="bpe:310"), tmp_path / "cache")
    shutil.copy(two.folder / "tokenizer.json", one.folder / "tokenizer.json")
    with pytest.raises(LinscaleError, match="bpe:300 is not the one it was made with"):
        one.tokenizer()


def test_wide_vocabularies_take_four_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wide(ByteTokenizer):
        vocab_size = 70_000
        eos_id = 69_999

    monkeypatch.setattr(tokenise, "load_tokenizer", lambda name, path: Wide())
    documents = sample_documents(100)
    prepared = prepare(write_corpus(tmp_path, documents), tmp_path / "cache")
    assert prepared.index.dtype == "uint32"
    train = [d for d in documents if not held_out(d, 0.2)]
    expected = [t if t != 0xFF else 69_999 for t in stream(train)]
    assert all_tokens(prepared, "train") == expected
    assert prepared.train.gather([0])[0].tolist() == expected[: T + 1]


def test_cache_is_beside_the_runs_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LINSCALE_CACHE", raising=False)
    assert default_cache() == Path("data_cache")
    monkeypatch.setenv("LINSCALE_CACHE", "/somewhere")
    assert default_cache() == Path("/somewhere")


@given(
    sizes=st.lists(st.integers(1, 70), min_size=1, max_size=6),
    length=st.integers(1, 20),
    data=st.data(),
)
@settings(deadline=None, max_examples=50)
def test_blocks_are_slices_of_shards(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], length: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("split")
    contents, expected, start = Contents(), [], 0
    for number, size in enumerate(sizes):
        tokens = np.arange(start, start + size, dtype="<u2")
        (folder / f"{number}.bin").write_bytes(tokens.tobytes())
        contents.shards.append(Shard(file=f"{number}.bin", tokens=size, sha256=""))
        for first in range(0, size - length, length):
            expected.append(tokens[first : first + length + 1].tolist())
        start += size
    split = Split(folder, contents, "uint16", length)
    assert split.n_blocks == len(expected)
    if expected:
        wanted = data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=12))
        assert split.gather(wanted).tolist() == [expected[i] for i in wanted]
    with pytest.raises(IndexError):
        split.gather([len(expected)])


def test_kjv_gives_the_documented_data(tmp_path: Path) -> None:
    data = DataConfig(corpus="kjv", sequence_length=256)
    prepared = prepare(data, tmp_path)
    corpus = list(open_corpus(data).read(0))
    assert prepared.train_tokens + prepared.validation_tokens == len(stream(corpus))
    assert prepared.train_tokens > 4_000_000
    assert prepared.validation.shape == (64, 257)

"""Shards: what was written is what the documents say, and nothing is written twice."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from linscale.errors import LinscaleError
from scaling.config.run import DataConfig
from scaling.data.corpora.registry import open_corpus
from scaling.data.prepare import default_cache, prepare
from scaling.data.token_store import Split
from scaling.system.files import DiskError
from tests.support.small_corpora import (
    T,
    all_tokens,
    files,
    held_out,
    sample_documents,
    stream,
    write_corpus,
)


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

    monkeypatch.setattr("scaling.data.corpora.jsonl.read_lines", refuse)
    monkeypatch.setattr("scaling.data.tokenised.ShardWriter", refuse)
    second = prepare(data, tmp_path / "cache")
    assert second.fingerprint() == first.fingerprint()


def test_a_changed_corpus_is_made_anew(tmp_path: Path) -> None:
    data = write_corpus(tmp_path, sample_documents(100))
    first = prepare(data, tmp_path / "cache")
    write_corpus(tmp_path, sample_documents(120))
    second = prepare(data, tmp_path / "cache")
    assert second.folder != first.folder
    assert second.train_tokens > first.train_tokens


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


def test_cache_is_beside_the_runs_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LINSCALE_CACHE", raising=False)
    assert default_cache() == Path("data_cache")
    monkeypatch.setenv("LINSCALE_CACHE", "/somewhere")
    assert default_cache() == Path("/somewhere")


def test_kjv_gives_the_documented_data(tmp_path: Path) -> None:
    data = DataConfig(corpus="kjv", sequence_length=256)
    prepared = prepare(data, tmp_path)
    corpus = list(open_corpus(data).read(0))
    assert prepared.train_tokens + prepared.validation_tokens == len(stream(corpus))
    assert prepared.train_tokens > 4_000_000
    assert prepared.validation.shape == (64, 257)


def test_a_cache_that_is_read_only_serves_any_number_of_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_corpus(tmp_path, sample_documents())
    folder = prepare(data, tmp_path / "cache").folder
    before = files(folder)

    def refuse(path: Path, *_: object) -> None:
        raise DiskError(f"{path}: cannot be written (Read-only file system).")

    monkeypatch.setattr("scaling.data.tokenised.exclusive", refuse)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    for change in ({"validation_blocks": 3}, {"sequence_length": 16}):
        other = dataclasses.replace(data, **change)
        found = prepare(other, tmp_path / "cache")
        assert files(folder) == before
        split = Split(folder, found.index.validation, "uint16", other.sequence_length)
        count = min(other.validation_blocks, split.n_blocks)
        spread = [i * split.n_blocks // count for i in range(count)]
        assert np.array_equal(found.validation, split.gather(spread))
    monkeypatch.setattr("os.access", lambda path, mode: True)
    with pytest.raises(DiskError):  # a full disk is no read-only one
        prepare(dataclasses.replace(data, validation_blocks=2), tmp_path / "cache")


def test_a_shard_that_loses_its_end_is_named_with_the_remedy(tmp_path: Path) -> None:
    data = write_corpus(tmp_path, sample_documents())
    prepared = prepare(data, tmp_path / "cache")
    shard = prepared.folder / prepared.index.train.shards[0].file
    last = prepared.train.n_blocks - 1
    os.truncate(shard, 3 * T * 2)
    with pytest.raises(LinscaleError, match=r"train-00000\.bin has become .*linscale data verify"):
        prepared.train.gather([last])

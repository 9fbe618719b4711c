"""Tokenizers: exact round trips, fixed results, and errors that say what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from linscale.errors import LinscaleError
from models.config import ConfigError
from scaling.config.run import DataConfig
from scaling.data.corpora.registry import open_corpus
from scaling.data.tokenizers import (
    END_OF_TEXT,
    ByteTokenizer,
    JsonTokenizer,
    TiktokenTokenizer,
    Tokenizer,
    bpe_vocabulary,
    load_tokenizer,
    signature,
    train_bpe,
)

SAMPLE = [
    "The quick brown fox jumps over the lazy dog.\n",
    "  leading and trailing  \n\n\ttabs\r\n",
    "naïve café, 你好, 🦊, \x00 and " + END_OF_TEXT + " spelt out",
    "",
]


@pytest.fixture(scope="module")
def bpe() -> JsonTokenizer:
    chapters = open_corpus(DataConfig(corpus="kjv")).read(0)
    return train_bpe("bpe:600", [next(chapters) for _ in range(60)])


@pytest.fixture(scope="module")
def tik() -> TiktokenTokenizer:
    """An encoding like the published ones: byte ranks, a few merges, special tokens after a gap."""
    ranks = {bytes([b]): b for b in range(256)} | {b"th": 256, b"the": 257, b" the": 258}
    special = {"<|endoftext|>": 260, "<|fim|>": 263}
    pattern = r"\s?\w+|\s?[^\w\s]+|\s+"
    encoding = tiktoken.Encoding(
        "test", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
    )
    return TiktokenTokenizer("tiktoken:test", encoding)


def each(bpe: JsonTokenizer, tik: TiktokenTokenizer) -> list[Tokenizer]:
    return [ByteTokenizer(), bpe, tik]


def test_round_trips_and_ends_are_never_in_text(bpe: JsonTokenizer, tik: TiktokenTokenizer) -> None:
    for tokenizer in each(bpe, tik):
        for text, tokens in zip(SAMPLE, tokenizer.encode_batch(SAMPLE), strict=True):
            assert tokenizer.decode(tokens) == text, tokenizer.name
            assert tokenizer.eos_id not in tokens, tokenizer.name
            assert np.array_equal(tokenizer.encode(text), tokens)
            assert tokens.dtype == np.int64
            assert all(0 <= t < tokenizer.vocab_size for t in tokens)
        ended = np.append(tokenizer.encode("one"), tokenizer.eos_id)
        assert tokenizer.decode(np.append(ended, tokenizer.encode(" two"))) == "one two"


@given(st.text())
def test_bytes_are_utf8(text: str) -> None:
    tokenizer = ByteTokenizer()
    tokens = tokenizer.encode(text)
    assert tokens.tolist() == list(text.encode())
    assert tokenizer.decode(tokens) == text
    assert tokenizer.eos_id not in tokens


def test_torn_bytes_decode_to_replacement_characters() -> None:
    assert ByteTokenizer().decode([0x61, 0xC3, 0xFF, 0x62]) == "a�b"


def test_vocabulary_sizes(bpe: JsonTokenizer, tik: TiktokenTokenizer) -> None:
    assert [t.vocab_size for t in each(bpe, tik)] == [256, 600, 264]
    assert [t.eos_id for t in each(bpe, tik)] == [255, 0, 260]


def test_bpe_shortens_text_of_its_kind(bpe: JsonTokenizer) -> None:
    text = next(open_corpus(DataConfig(corpus="kjv")).read(200))
    assert len(bpe.encode(text)) < 0.55 * len(text.encode())


def test_bpe_is_the_same_in_every_process(bpe: JsonTokenizer) -> None:
    code = (
        "from scaling.data.tokenizers import train_bpe; "
        "from scaling.data.corpora.registry import open_corpus; "
        "from scaling.config.run import DataConfig; "
        "c = open_corpus(DataConfig(corpus='kjv')).read(0); "
        "print(train_bpe('bpe:600', [next(c) for _ in range(60)]).fingerprint)"
    )
    for threads in ("1", "3"):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        result = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stdout.strip() == bpe.fingerprint


def test_a_saved_tokenizer_loads_from_its_file_or_folder(
    bpe: JsonTokenizer, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_text(bpe.to_json(), encoding="utf-8")
    for name in (f"file:{tmp_path}/tokenizer.json", f"file:{tmp_path}"):
        loaded = load_tokenizer(name)
        assert loaded.fingerprint == bpe.fingerprint
        assert loaded.encode(SAMPLE[0]).tolist() == bpe.encode(SAMPLE[0]).tolist()
        assert len(signature(name)) == 64
    assert signature("bytes") == ""


def test_truncation_and_padding_of_a_file_are_switched_off(tmp_path: Path) -> None:
    import tokenizers

    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "</s>": 5}, unk_token="a"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.add_special_tokens(["</s>"])
    inner.enable_truncation(2)
    inner.enable_padding(length=8)
    inner.save(str(tmp_path / "t.json"))
    loaded = load_tokenizer(f"file:{tmp_path}/t.json")
    assert loaded.encode("a a a a").tolist() == [0, 0, 0, 0]
    assert (loaded.eos_id, loaded.vocab_size) == (5, 6)


def test_fingerprints_differ_with_the_vocabulary(bpe: JsonTokenizer) -> None:
    text = ["one two three four five six seven eight nine ten"] * 3
    small, large = train_bpe("bpe:258", text), train_bpe("bpe:262", text)
    assert len({small.fingerprint, large.fingerprint, bpe.fingerprint}) == 3


def test_bpe_refuses_more_tokens_than_the_text_has() -> None:
    with pytest.raises(LinscaleError, match=r"run out at (\d+); choose data.tokenizer=bpe:\1"):
        train_bpe("bpe:30000", ["one two three"])


@pytest.mark.parametrize("name", ["bpe:256", "bpe:many", "bpe:-5", "bpe:1e4"])
def test_bpe_needs_a_number_that_can_be(name: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.tokenizer='bpe:.*at least 257"):
        bpe_vocabulary(name)


def test_bad_tokenizer_files(tmp_path: Path) -> None:
    with pytest.raises(LinscaleError, match=r"no file .*none\.json"):
        load_tokenizer(f"file:{tmp_path}/none.json")
    (tmp_path / "bad.json").write_text('{"version": 3}')
    with pytest.raises(LinscaleError, match=r"bad\.json is not a tokenizer\.json"):
        load_tokenizer(f"file:{tmp_path}/bad.json")

    import tokenizers

    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    inner.save(str(tmp_path / "endless.json"))
    with pytest.raises(LinscaleError, match=r"no end-of-document token; add one of <\|endoftext"):
        load_tokenizer(f"file:{tmp_path}/endless.json")


def test_tiktoken_names_and_network(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"tiktoken knows .*cl100k_base"):
        load_tokenizer("tiktoken:cl100k")

    def offline(name: str) -> None:
        raise ConnectionError(f"no route for {name}")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    with pytest.raises(LinscaleError, match=r"TIKTOKEN_CACHE_DIR.*data\.tokenizer=bytes"):
        load_tokenizer("tiktoken:cl100k_base")

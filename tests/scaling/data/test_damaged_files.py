"""Damaged files of prepared corpora and tokenizers, by seed: refused in words, or of no effect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from linscale.errors import LinscaleError
from scaling.config.run import DataConfig
from scaling.data.integrity import check
from scaling.data.json_tokenizer import JsonTokenizer, load_json_tokenizer
from scaling.data.prepare import prepare
from tests.support.small_corpora import sample_documents, write_corpus

VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 10**400, 1e308, "", "x", "../../x", "\x1b[2J", [], [[]], {}, {"a": 1},
)  # fmt: skip


def spoil(content: bytes, draw: np.random.Generator) -> bytes:
    """Bits flipped, a piece cut out, doubled or replaced, or another value in a JSON file."""
    bad = bytearray(content)
    kind = int(draw.integers(6))
    at = int(draw.integers(len(bad)))
    size = int(draw.integers(1, 40))
    if kind == 0:
        for place in draw.integers(len(bad), size=draw.integers(1, 4)):
            bad[place] ^= 1 << int(draw.integers(8))
    elif kind == 1:
        del bad[at : at + size]
    elif kind == 2:
        bad[at:at] = bad[at : at + size]
    elif kind == 3:
        bad[at : at + size] = draw.bytes(size)
    elif kind == 4:
        del bad[at:]
    else:
        try:
            value = json.loads(content)
        except ValueError:
            return bytes(bad[at:])
        return json.dumps(_replaced(value, draw)).encode()
    return bytes(bad)


def _replaced(value: Any, draw: np.random.Generator) -> Any:
    """The same with one value, at any depth, replaced or left out."""
    inner = value if isinstance(value, list | dict) else ()
    if not inner or draw.random() < 0.2:
        return VALUES[draw.integers(len(VALUES))]
    keys = list(range(len(value))) if isinstance(value, list) else list(value)
    key = keys[draw.integers(len(keys))]
    copy = value.copy()
    if draw.random() < 0.2:
        del copy[key]
    else:
        copy[key] = _replaced(value[key], draw)
    return copy


def opened(data: DataConfig, cache: Path) -> tuple[Any, ...]:
    """All that a run would read of a prepared corpus, its hashes compared."""
    prepared = prepare(data, cache)
    prepared.verify()
    blocks = prepared.train.gather(list(range(prepared.train.n_blocks)))
    return prepared.fingerprint(), blocks.tolist(), prepared.validation.tolist()


def damage(rounds: int, seed: int, tmp_path: Path) -> int:
    """Spoil a file of a prepared corpus so many times; returns how many were refused."""
    data = write_corpus(tmp_path, sample_documents(60))
    (tmp_path / "t").mkdir()
    right = opened(data, tmp_path / "cache")
    folder = prepare(data, tmp_path / "cache").folder
    files = [p for p in sorted(folder.iterdir()) if p.name not in ("lock", "verified.json")]
    draw = np.random.default_rng(seed)
    refused = 0
    for _ in range(rounds):
        path = files[draw.integers(len(files))]
        good = path.read_bytes()
        bad = spoil(good, draw)
        path.write_bytes(bad)
        try:
            found = opened(data, tmp_path / "cache")
        except LinscaleError:
            refused += 1
        else:
            assert found == right or path.name.startswith("blocks-"), (path.name, bad[:200])
        check(folder, lambda size: None)
        path.write_bytes(good)
    assert opened(data, tmp_path / "cache") == right
    return refused


def tokenizer_file(folder: Path) -> Path:
    """A small byte-level BPE."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(sample_documents(50), trainer)
    path = folder / "tokenizer.json"
    inner.save(str(path))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    return path


def spoil_tokenizers(rounds: int, seed: int, tmp_path: Path) -> int:
    """Spoil a tokenizer's files so many times; returns how many were refused."""
    path = tokenizer_file(tmp_path)
    texts = [*sample_documents(5), "<|endoftext|>", "  a\n\n b", "état 数 \U0001f600", ""]
    plain = load_json_tokenizer("file:x", path)
    right = [tokens.tolist() for tokens in plain.encode_batch(texts)]
    draw = np.random.default_rng(seed)
    refused = 0
    for _ in range(rounds):
        target = path if draw.random() < 0.8 else path.with_name("tokenizer_config.json")
        good = target.read_bytes()
        target.write_bytes(spoil(good, draw))
        try:
            tokenizer = load_json_tokenizer("file:x", path)
            encoded = [tokens.tolist() for tokens in tokenizer.encode_batch(texts)]
        except LinscaleError:
            refused += 1
        else:
            check_tokens(tokenizer, encoded)
            if tokenizer.fingerprint == plain.fingerprint:
                assert encoded == right
        target.write_bytes(good)
    return refused


def check_tokens(tokenizer: JsonTokenizer, encoded: list[list[int]]) -> None:
    """Every token has a row of the embedding, and no text ends a document."""
    for tokens in encoded:
        assert all(0 <= token < tokenizer.vocab_size for token in tokens)
        assert tokenizer.eos_id not in tokens


def test_some_damaged_files(tmp_path: Path) -> None:
    assert damage(60, 0, tmp_path) > 30
    assert spoil_tokenizers(60, 0, tmp_path) > 10


def test_a_token_with_the_number_of_the_end_is_refused(tmp_path: Path) -> None:
    path = tokenizer_file(tmp_path)
    values = json.loads(path.read_text())
    values["model"]["vocab"]["!"] = 0
    path.write_text(json.dumps(values))
    tokenizer = load_json_tokenizer("file:x", path)
    assert tokenizer.encode_batch(["fine"])
    with pytest.raises(LinscaleError, match=r"of ordinary text, here of 'no!'; another token has"):
        tokenizer.encode_batch(["no!"])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(1, 4))
def test_many_damaged_files(tmp_path: Path, seed: int) -> None:
    assert damage(1000, seed, tmp_path) > 500
    assert spoil_tokenizers(1500, seed, tmp_path) > 300

"""Tokenizers from a file: which token ends a document, and that no text can spell it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from linscale.errors import LinscaleError
from scaling.data.json_tokenizer import JsonTokenizer, load_json_tokenizer
from scaling.data.prepare import prepare
from scaling.data.tokenizers import signature
from tests.support.small_corpora import all_tokens, sample_documents, write_corpus

ENDS = {"<|endoftext|>": 300, "</s>": 301}
DEEPSEEK = "<｜end▁of▁sentence｜>"


def unigram() -> tokenizers.Tokenizer:
    """A Unigram model whose vocabulary has `</s>` as a piece, as SentencePiece writes it."""
    letters = sorted({c for text in sample_documents() for c in text} | set("</s>abé "))
    pieces = [("<unk>", 0.0), ("</s>", -1.0), *((letter, -5.0) for letter in letters)]
    return tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0))


def added() -> tokenizers.Tokenizer:
    """Byte-level BPE with `</s>` as an added token that is not special."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.add_tokens(["</s>"])
    return inner


def words(*ends: str) -> tokenizers.Tokenizer:
    vocabulary = {"<unk>": 0, "a": 1} | {end: number for number, end in enumerate(ends, start=2)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(list(ends))
    return inner


@pytest.mark.parametrize("make", [unigram, added])
def test_as_many_ends_as_documents_though_each_spells_one(make: Any, tmp_path: Path) -> None:
    make().save(str(tmp_path / "tokenizer.json"))
    documents = [f"{text} </s> or</s>" for text in sample_documents(400)]
    data = dataclasses.replace(
        write_corpus(tmp_path, documents), tokenizer=f"file:{tmp_path}/tokenizer.json"
    )
    prepared = prepare(data, tmp_path / "cache")
    end = prepared.index.eos_id
    tokens = [*all_tokens(prepared, "train"), *all_tokens(prepared, "validation")]
    assert end == make().token_to_id("</s>")
    assert tokens.count(end) == 400


def test_a_spelling_is_cut_and_nothing_else() -> None:
    tokenizer = JsonTokenizer("test", unigram())
    inner = unigram()
    assert tokenizer.encode("ab").tolist() == inner.encode("ab").ids
    spelt = [inner.token_to_id(c) for c in "a</s>b"]
    assert tokenizer.encode("a</s>b").tolist() == spelt
    # Overlapping: "</" is followed by another.
    assert tokenizer.encode("</</s>").tolist() == [inner.token_to_id(c) for c in "</</s>"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["</s>", "<", "/", "s", ">", "</", "a", "é"]), max_size=12))
def test_no_text_holds_an_end(parts: list[str]) -> None:
    text = "".join(parts)
    bytewise = JsonTokenizer("test", added())
    assert bytewise.decode(bytewise.encode(text)) == text
    for tokenizer in (bytewise, JsonTokenizer("test", unigram())):
        assert tokenizer.eos_id not in tokenizer.encode(text)


def test_a_spelling_through_the_normaliser_is_refused() -> None:
    inner = unigram()
    inner.normalizer = tokenizers.normalizers.NFKC()
    tokenizer = JsonTokenizer("test", inner)
    wide = "a＜/s＞"
    with pytest.raises(LinscaleError, match=r"makes special tokens of ordinary text, here of 'a"):
        tokenizer.encode(wide)


def test_a_character_cannot_end_a_document() -> None:
    with pytest.raises(LinscaleError, match=r"'a', which ends a document, is a character of ord"):
        JsonTokenizer("test", words("</s>"), "a")


def test_the_unknown_token_may_come_from_text() -> None:
    tokenizer = JsonTokenizer("test", unigram())
    assert tokenizer.encode("a\u4e00").tolist()[-1] == 0


def save(folder: Path, inner: tokenizers.Tokenizer, **beside: Any) -> Path:
    inner.save(str(folder / "tokenizer.json"))
    for name, content in beside.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder / "tokenizer.json"


@pytest.mark.parametrize(
    ("beside", "end"),
    [
        ({"tokenizer_config": {"eos_token": "<eos>"}}, 3),
        ({"tokenizer_config": {"eos_token": {"content": "<eos>", "special": True}}}, 3),
        ({"generation_config": {"eos_token_id": 3}}, 3),
        ({"generation_config": {"eos_token_id": [3, 2]}}, 3),
        (
            {
                "tokenizer_config": {"eos_token": "</s>"},
                "generation_config": {"eos_token_id": 3},
            },
            2,
        ),
    ],
)
def test_the_end_is_read_from_the_files_beside(
    tmp_path: Path, beside: dict[str, Any], end: int
) -> None:
    path = save(tmp_path, words("</s>", "<eos>"), **beside)
    assert load_json_tokenizer("file:x", path).eos_id == end
    assert signature(f"file:{path}").split()[1:] != []


def test_two_known_ends_are_refused_and_say_how_to_choose(tmp_path: Path) -> None:
    path = save(tmp_path, words("</s>", "<eos>"))
    with pytest.raises(LinscaleError, match=r"'</s>' and '<eos>' may all end .*\"eos_token\": "):
        load_json_tokenizer("file:x", path)


def test_deepseeks_end_is_known(tmp_path: Path) -> None:
    assert load_json_tokenizer("file:x", save(tmp_path, words(DEEPSEEK))).eos_id == 2


def test_an_end_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, words("</s>"), tokenizer_config={"eos_token": "<none>"})
    with pytest.raises(LinscaleError, match=r"'<none>' ends a text, which is not in its vocabul"):
        load_json_tokenizer("file:x", path)


def test_numbers_that_the_tokenizer_lacks_say_nothing(tmp_path: Path) -> None:
    """A model may have more tokens than its tokenizer."""
    path = save(tmp_path, words("</s>", "<eos>"), generation_config={"eos_token_id": [77, 3]})
    assert load_json_tokenizer("file:x", path).eos_id == 3
    path = save(tmp_path, words("</s>"), generation_config={"eos_token_id": 77})
    assert load_json_tokenizer("file:x", path).eos_id == 2


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_file_beside_is_named(tmp_path: Path, text: str) -> None:
    path = save(tmp_path, words("</s>"))
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(LinscaleError, match=r"tokenizer_config\.json: .*correct or remove it"):
        load_json_tokenizer("file:x", path)


def test_what_is_kept_names_the_same_end(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    path = save(tmp_path, words("</s>", "<eos>"), tokenizer_config={"eos_token": "<eos>"})
    first = load_json_tokenizer("file:x", path)
    (tmp_path / "run" / "tokenizer.json").write_text(first.to_json())
    (tmp_path / "run" / "tokenizer_config.json").write_text(first.to_config())
    kept = load_json_tokenizer("file:x", tmp_path / "run" / "tokenizer.json")
    assert (kept.eos_id, kept.fingerprint) == (3, first.fingerprint)
    other = JsonTokenizer("file:x", words("</s>", "<eos>"), "</s>")
    assert other.fingerprint != first.fingerprint


def test_dropout_is_refused() -> None:
    model = tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], dropout=0.5)
    inner = tokenizers.Tokenizer(model)
    inner.add_special_tokens(["</s>"])
    with pytest.raises(LinscaleError, match=r"dropout=0\.5.*set `dropout` to null"):
        JsonTokenizer("file:x", inner)


def test_fingerprints_of_plain_tokenizers_are_those_of_their_content() -> None:
    """Recorded runs name them so."""
    inner = added()
    inner.add_special_tokens(["</s>"])
    inner.encode_special_tokens = True
    content = json.dumps(json.loads(inner.to_str()), sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()
    assert JsonTokenizer("file:x", inner).fingerprint == digest
    assert JsonTokenizer("file:x", added()).fingerprint != digest

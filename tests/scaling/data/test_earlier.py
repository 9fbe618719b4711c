"""A mended corpus: what has not changed is not tokenised again, and nothing else comes out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers

from scaling.config.run import DataConfig
from scaling.data.json_tokenizer import JsonTokenizer
from scaling.data.prepare import prepare
from tests.support.small_corpora import files, sample_documents


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    """Four files of 50 documents, and a tokenizer that was trained elsewhere."""
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(sample_documents(50), trainer)
    library.save(str(tmp_path / "tokenizer.json"))
    for number in range(4):
        write(tmp_path, number, sample_documents(200)[50 * number : 50 * number + 50])
    return DataConfig(
        corpus=f"jsonl:{tmp_path}/part*.jsonl",
        tokenizer=f"file:{tmp_path}/tokenizer.json",
        sequence_length=32,
        validation_fraction=0.2,
        validation_blocks=5,
    )


def write(folder: Path, number: int, documents: list[str]) -> None:
    lines = [json.dumps({"text": document}) for document in documents]
    (folder / f"part{number}.jsonl").write_text("\n".join(lines))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that is tokenised from here on."""
    texts: list[str] = []
    plain = JsonTokenizer.encode_batch

    def listen(self: JsonTokenizer, batch: Sequence[str]) -> Any:
        texts.extend(batch)
        return plain(self, batch)

    monkeypatch.setattr(JsonTokenizer, "encode_batch", listen)
    return texts


def mend(folder: Path, number: int, line: int) -> str:
    """Another text in one line; returns it."""
    path = folder / f"part{number}.jsonl"
    lines = path.read_text().splitlines()
    lines[line] = json.dumps({"text": "a line that was mended"})
    path.write_text("\n".join(lines))
    return "a line that was mended"


@pytest.mark.usefixtures("small_chunks")
def test_one_line_of_one_file_costs_one_line(
    data: DataConfig, tmp_path: Path, encoded: list[str]
) -> None:
    prepare(data, tmp_path / "cache", workers=1)
    assert len(encoded) == 200
    encoded.clear()
    mended = mend(tmp_path, 1, 7)
    after = prepare(data, tmp_path / "cache", workers=1)
    assert encoded == [mended]
    fresh = prepare(data, tmp_path / "fresh", workers=1)
    assert len(fresh.index.train.shards) > 4
    assert files(after.folder) == files(fresh.folder)


@pytest.mark.usefixtures("small_chunks")
def test_another_file_another_order_and_another_split_cost_what_is_new(
    data: DataConfig, tmp_path: Path, encoded: list[str]
) -> None:
    prepare(data, tmp_path / "cache", workers=1)
    encoded.clear()
    new = [f"{document} anew" for document in sample_documents(30)]
    write(tmp_path, 0, new)
    (tmp_path / "part1.jsonl").rename(tmp_path / "part9.jsonl")
    other = dataclasses.replace(data, validation_fraction=0.5)
    after = prepare(other, tmp_path / "cache", workers=1)
    assert encoded == new
    assert files(after.folder) == files(prepare(other, tmp_path / "fresh", workers=1).folder)


@pytest.mark.usefixtures("small_chunks")
def test_workers_use_what_is_known(data: DataConfig, tmp_path: Path) -> None:
    prepare(data, tmp_path / "cache", workers=1)
    mend(tmp_path, 3, 40)
    after = prepare(data, tmp_path / "cache", workers=2)
    assert files(after.folder) == files(prepare(data, tmp_path / "fresh", workers=1).folder)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("ending", [".bin", ".documents", "other tokenizer"])
def test_what_is_damaged_or_of_another_tokenizer_is_not_used(
    data: DataConfig, tmp_path: Path, encoded: list[str], ending: str
) -> None:
    before = prepare(data, tmp_path / "cache", workers=1)
    for path in before.folder.glob(f"*{ending}"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    if ending == "other tokenizer":
        path = tmp_path / "tokenizer.json"
        values = json.loads(path.read_text())
        values["model"]["merges"].pop()
        path.write_text(json.dumps(values))
    encoded.clear()
    mend(tmp_path, 1, 7)
    after = prepare(data, tmp_path / "cache", workers=1)
    assert len(encoded) == 200
    assert files(after.folder) == files(prepare(data, tmp_path / "fresh", workers=1).folder)

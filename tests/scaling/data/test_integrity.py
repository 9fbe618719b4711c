"""Damage to prepared corpora is found, named, and told from what is merely unfinished."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from linscale.errors import LinscaleError
from models.config import ConfigError
from scaling.cli.main import app
from scaling.data import tokenise
from scaling.data.integrity import check, prepared_folders
from scaling.data.prepare import prepare
from scaling.data.token_store import INDEX, Index
from tests.support.small_corpora import T, sample_documents, write_corpus


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


def test_a_swapped_tokenizer_is_refused(tmp_path: Path) -> None:
    data = write_corpus(tmp_path, sample_documents(120))
    one = prepare(dataclasses.replace(data, tokenizer="bpe:300"), tmp_path / "cache")
    two = prepare(dataclasses.replace(data, tokenizer="bpe:310"), tmp_path / "cache")
    shutil.copy(two.folder / "tokenizer.json", one.folder / "tokenizer.json")
    with pytest.raises(LinscaleError, match="bpe:300 is not the one it was made with"):
        one.tokenizer()


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def rewrite(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped": (lambda f: flip(f / "train-00001.bin"), "train-00001.bin does not have the content"),
    "shorter": (lambda f: os.truncate(f / "train-00000.bin", 100), "is 100 bytes long, the index"),
    "gone": (lambda f: (f / "validation-00000.bin").unlink(), "validation-00000.bin is missing"),
    "no index": (lambda f: (f / INDEX).unlink(), "there is no index.json"),
    "half an index": (lambda f: os.truncate(f / INDEX, 300), "index.json cannot be read"),
    "version": (lambda f: rewrite(f / INDEX, format=0), "has format 0"),
    "width": (
        lambda f: rewrite(f / INDEX, dtype="uint32", sha256=None),
        "says 'uint32'; 360 tokens are",
    ),
    "tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    "other tokenizer": (
        lambda f: rewrite(f / "tokenizer.json", normalizer={"type": "NFC"}),
        "tokenizer.json is another tokenizer",
    ),
    "blocks": (
        lambda f: (f / f"blocks-{T}-5.json").write_text('{"blocks": [100000]}'),
        f"blocks-{T}-5.json names blocks that do not exist",
    ),
    "no blocks": (
        lambda f: (f / f"blocks-{T}-5.json").write_text("[]"),
        f"blocks-{T}-5.json cannot be read",
    ),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus of several shards, to be copied."""
    folder = tmp_path_factory.mktemp("sound")
    data = dataclasses.replace(write_corpus(folder, sample_documents()), tokenizer="bpe:360")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenise, "CHUNK_BYTES", 10_000)
        return prepare(data, folder / "cache").folder


@pytest.mark.parametrize("how", list(DAMAGE))
def test_verify_names_every_damage(
    tmp_path: Path, how: str, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINSCALE_CACHE", str(tmp_path))
    folder = Path(shutil.copytree(sound, tmp_path / sound.name))
    result = CliRunner().invoke(app, ["data", "verify", "--json"])
    assert result.exit_code == 0
    (whole,) = json.loads(result.stdout)
    assert (whole["folder"], whole["state"], whole["problems"]) == (folder.name, "whole", [])
    raw = b"".join(path.read_bytes() for path in folder.glob("*.bin"))
    assert whole["size"] == len(raw) == 2 * whole["tokens"]

    damage, words = DAMAGE[how]
    damage(folder)
    result = CliRunner().invoke(app, ["data", "verify", str(folder), "--json"])
    assert result.exit_code == 1
    (found,) = json.loads(result.stdout)
    assert found["state"] == "damaged"
    assert words in found["problems"][0]
    shown = CliRunner().invoke(app, ["data", "verify", str(folder)])
    assert shown.exit_code == 1
    assert words.split(",")[0] in " ".join(shown.stdout.split())


def test_all_damages_are_told_at_once(tmp_path: Path, sound: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / sound.name))
    for name in ("train-00000.bin", "train-00002.bin", "validation-00001.bin"):
        flip(folder / name)
    problems = check(folder).problems
    assert [what.split()[0] for what in problems] == [
        "train-00000.bin",
        "train-00002.bin",
        "validation-00001.bin",
    ]


@pytest.mark.usefixtures("small_chunks")
def test_what_is_unfinished_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    save = Index.save

    def save_once(index: Index, folder: Path) -> None:
        save(index, folder)
        raise Killed

    monkeypatch.setattr(Index, "save", save_once)
    with pytest.raises(Killed):
        prepare(write_corpus(tmp_path, sample_documents()), tmp_path / "cache")
    (found,) = [check(folder) for folder in prepared_folders(tmp_path / "cache")]
    assert (found.state, found.problems) == ("unfinished", [])
    assert found.tokens > 0


def test_an_empty_cache_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINSCALE_CACHE", str(tmp_path))
    result = CliRunner().invoke(app, ["data", "verify"])
    assert isinstance(result.exception, LinscaleError)
    assert "holds no prepared corpus" in str(result.exception)


EXPERIMENT = """
from models.config import toy_config
from scaling.config.run import BudgetConfig, DataConfig, RunConfig


def runs():
    data = DataConfig(corpus={corpus!r}, sequence_length=32, batch_sequences=4)
    return [
        RunConfig(
            name=f"llama-d{{dim}}",
            model=toy_config("llama", dim, vocab_size=256, head_dim=16),
            data=data,
            budget=BudgetConfig(tokens=4096),
        )
        for dim in (32, 64)
    ]
"""


def test_prepare_tokenises_each_corpus_of_an_experiment_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINSCALE_CACHE", str(tmp_path / "cache"))
    corpus = write_corpus(tmp_path, sample_documents()).corpus
    (tmp_path / "small.py").write_text(EXPERIMENT.format(corpus=corpus))
    arguments = ["data", "prepare", str(tmp_path / "small.py"), "data.validation_fraction=0.2"]
    for workers in ([], ["--workers", "2"]):
        result = CliRunner().invoke(app, [*arguments, *workers])
        assert result.exit_code == 0, result.exception
        (line,) = result.stdout.splitlines()
        (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
        assert line.startswith(f"{corpus}, tokenizer bytes: ")
        assert line.endswith(str(folder))
    assert check(folder).state == "whole"
    refused = CliRunner().invoke(app, [*arguments, "--workers", "0"])
    assert isinstance(refused.exception, ConfigError)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (INDEX, lambda values: values["validation"].update(text_bytes=7)),
        (INDEX, lambda values: values.update(eos_id=3)),
        (f"blocks-{T}-5.json", lambda values: values["blocks"].reverse()),
    ],
)
def test_changed_numbers_are_found(
    tmp_path: Path, sound: Path, name: str, change: Callable[[Any], None]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(sound, folder)
    assert check(folder).state == "whole"
    values = json.loads((folder / name).read_text())
    change(values)
    (folder / name).write_text(json.dumps(values))
    found = check(folder)
    assert found.state == "damaged"
    assert f"{name} does not have the content that was written" in found.problems[0]

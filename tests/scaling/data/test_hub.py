"""Datasets of the hub: their revision is asked for once and kept, and signs what is prepared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scaling.config.run import DataConfig
from scaling.data import hub
from scaling.data.prepare import prepare
from tests.support.small_corpora import sample_documents

FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A hub with one dataset; `commit` is its newest revision, `asked` counts questions."""
    datasets = pytest.importorskip("datasets")
    state: dict[str, Any] = {"commit": FIRST, "asked": 0, "loaded": []}

    def ask(dataset: str, revision: str | None) -> str | None:
        state["asked"] += 1
        assert dataset == "owner/texts"
        return state["commit"]

    def load(source: str, config: str | None, **options: Any) -> Any:
        state["loaded"].append((source, config, options["revision"]))
        extra = ["new text " * 30] if options["revision"] == SECOND else []
        return datasets.Dataset.from_dict({"text": [*sample_documents(60), *extra]})

    monkeypatch.setattr(hub, "ask", ask)
    monkeypatch.setattr(datasets, "load_dataset", load)
    return state


def data(corpus: str) -> DataConfig:
    return DataConfig(corpus=corpus, sequence_length=32, validation_fraction=0.2)


def test_a_cache_keeps_the_revision_that_it_saw_first(
    remote: dict[str, Any], tmp_path: Path
) -> None:
    first = prepare(data("hf:owner/texts:english"), tmp_path)
    assert remote["loaded"] == [("owner/texts", "english", FIRST)]
    assert first.fingerprint()["revision"] == FIRST
    assert first.index.source["signature"] == [{"revision": FIRST}]
    assert json.loads((tmp_path / hub.NOTES).read_text()) == {"owner/texts@main": FIRST}

    remote["commit"] = SECOND  # somebody pushed
    again = prepare(data("hf:owner/texts:english"), tmp_path)
    assert again.fingerprint() == first.fingerprint()
    assert remote["asked"] == len(remote["loaded"]) == 1

    elsewhere = prepare(data("hf:owner/texts:english"), tmp_path / "other")
    assert elsewhere.fingerprint()["revision"] == SECOND
    assert elsewhere.index.corpus_sha256 != first.index.corpus_sha256
    assert elsewhere.folder.name != first.folder.name


def test_a_commit_can_be_named(remote: dict[str, Any], tmp_path: Path) -> None:
    prepared = prepare(data(f"hf:owner/texts@{SECOND}"), tmp_path)
    assert remote["asked"] == 0
    assert remote["loaded"] == [("owner/texts", None, SECOND)]
    assert prepared.fingerprint()["revision"] == SECOND


def test_without_an_answer_the_name_is_all_that_is_known(
    remote: dict[str, Any], tmp_path: Path
) -> None:
    remote["commit"] = None
    prepared = prepare(data("hf:owner/texts"), tmp_path)
    assert "revision" not in prepared.fingerprint()
    assert remote["loaded"] == [("owner/texts", None, None)]
    remote["commit"] = FIRST
    assert prepare(data("hf:owner/texts"), tmp_path).fingerprint()["revision"] == FIRST


def test_a_hub_that_cannot_be_reached_gives_no_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def offline(*_: object, **options: Any) -> None:
        assert options["timeout"] == hub.SECONDS
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", offline)
    assert hub.ask("owner/texts", None) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"owner/texts@main": 3}'])
def test_damaged_notes_are_written_anew(remote: dict[str, Any], tmp_path: Path, text: str) -> None:
    (tmp_path / hub.NOTES).write_text(text)
    assert hub.fix_revision("owner/texts", None, tmp_path) == FIRST
    assert json.loads((tmp_path / hub.NOTES).read_text())["owner/texts@main"] == FIRST

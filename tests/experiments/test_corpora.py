"""Prose from documentation: what is kept of a file, what is a repeat, and leaks by hand."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest

from experiments.corpora import build, fetch, overlap
from experiments.prose import Seen, paragraphs, reads_as_english

ONE = (
    "The harbour of the old town is closed in winter, and the boats that are left lie on the shore "
    "under their covers until the ice is gone from the bay and the first of them can go out again."
)
TWO = (
    "A reader who comes to the library in the morning finds it empty, for the students are at "
    "their courses and the only sound is that of the clock which hangs above the door."
)


def test_a_page_becomes_its_paragraphs_without_code_and_menus(tmp_path: Path) -> None:
    page = (
        f"<html><head><title>x</title></head><nav>Home</nav><p>{ONE}</p><pre>x = 1</pre><li>{TWO}"
    )
    (tmp_path / "a.html").write_text(page)
    (tmp_path / "b.html.gz").write_bytes(gzip.compress(page.encode()))
    for name in ("a.html", "b.html.gz"):
        assert [p for p in paragraphs(tmp_path / name) if p] == [ONE, TWO]
    (tmp_path / "c.rst").write_text(f".. module:: x\n\nSee :func:`open <os.open>`. {ONE}\n")
    assert [p for p in paragraphs(tmp_path / "c.rst") if p] == [f"See open. {ONE}"]
    (tmp_path / "d.txt").write_bytes(b"\0\1binary")
    (tmp_path / "changelog.txt").write_text(ONE)
    (tmp_path / "e.png").write_text(ONE)
    assert not any(paragraphs(tmp_path / name) for name in ("d.txt", "changelog.txt", "e.png"))


def test_what_reads_as_english() -> None:
    assert reads_as_english(ONE)
    assert not reads_as_english(ONE[:60])
    assert not reads_as_english("0x3f 17 == {a: 1}; " * 12)
    assert not reads_as_english("lorem ipsum dolor sit amet consectetur adipiscing elit sed " * 3)


def test_a_repeat_is_left_out_whatever_its_marks() -> None:
    seen = Seen()
    assert seen.is_new(ONE)
    assert not seen.is_new(ONE.upper().replace(",", ";"))
    assert seen.is_new(TWO)
    assert not seen.is_new(ONE + " And so on.")


def test_kinds_stay_apart_and_weigh_by_their_bytes(tmp_path: Path) -> None:
    texts = {"left": 3, "right": 2}
    for seed, (name, count) in enumerate(texts.items()):
        draw = random.Random(seed)
        (tmp_path / name).mkdir()
        nouns = ["".join(draw.choices("aeioulmnrst", k=6)) for _ in range(count * 90)]
        parts = ["the " + " and the ".join(nouns[i * 90 : i * 90 + 90]) for i in range(count)]
        (tmp_path / name / "text.txt").write_text("\n\n".join(parts))
    sources = {name: {name: tmp_path / name} for name in texts}
    corpus = build(tmp_path / "out", sources, {"left": {"version": "1"}})
    record = json.loads((tmp_path / "out" / "sources.json").read_text())
    lines = {
        kind: [json.loads(s) for s in (tmp_path / "out" / f"{kind}.jsonl").read_text().splitlines()]
        for kind in texts
    }
    assert {line["source"] for line in lines["left"]} == {"left"}
    sizes = {kind: sum(len(d["text"].encode()) for d in docs) for kind, docs in lines.items()}
    assert record["left"]["bytes"] == sizes["left"]
    share = sizes["left"] / sum(sizes.values())
    assert corpus.startswith(f"mix:{share:.3f} jsonl:")


def test_overlap_by_hand() -> None:
    """Of the six 3-grams of 1..8, the first three stand in training."""
    validation = [np.arange(1, 9)]
    train = [np.array([9, 1, 2, 3, 4, 5, 9]), np.array([7, 8])]
    assert overlap(validation, iter(train), 3) == pytest.approx(3 / 6)
    assert overlap([np.arange(2)], iter(train), 3) == 0


def test_without_apt_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="--folder NAME=DIR"):
        fetch(["bash-doc"], tmp_path / "packages")

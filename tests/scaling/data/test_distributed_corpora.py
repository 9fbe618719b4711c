"""Corpora as they are distributed: compressed, in Parquet, in folders, with bad records."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from linscale.errors import LinscaleError
from scaling.config.run import DataConfig
from scaling.data.corpora.registry import open_corpus
from scaling.data.prepare import prepare
from tests.support.small_corpora import all_tokens, sample_documents, write_corpus

pyarrow = pytest.importorskip("pyarrow")


def zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACK: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstd}


def documents(corpus: str, **options: object) -> list[str]:
    return list(open_corpus(DataConfig(corpus=corpus, **options)).read(0))  # type: ignore[arg-type]


@pytest.mark.parametrize("packed", [".gz", ".zst"])
def test_compressed_files_are_read(tmp_path: Path, packed: str) -> None:
    texts = [f"état {i}\r\nsecond line\n" for i in range(50)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    (tmp_path / f"a.jsonl{packed}").write_bytes(PACK[packed](lines))
    (tmp_path / f"b.txt{packed}").write_bytes(PACK[packed](texts[0].encode()))
    assert documents(f"jsonl:{tmp_path}/a.jsonl{packed}") == texts
    assert documents(f"text:{tmp_path}/b.txt{packed}") == [texts[0]]
    (tmp_path / "no-ending").write_bytes(PACK[packed](texts[0].encode()))
    assert documents(f"text:{tmp_path}/no-ending") == [texts[0]]


@pytest.mark.parametrize("packed", [".gz", ".zst"])
def test_several_parts_in_one_file_are_one_text(tmp_path: Path, packed: str) -> None:
    (tmp_path / "a").write_bytes(PACK[packed](b"one\n") + PACK[packed](b"two\n"))
    assert documents(f"text:{tmp_path}/a") == ["one\ntwo\n"]


def test_a_folder_is_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "sub" / "a.txt.gz").write_bytes(gzip.compress(b"a"))
    (tmp_path / "readme.md").write_text("not this one")
    assert documents(f"text:{tmp_path}") == ["b", "a"]


def test_parquet_files_and_folders(tmp_path: Path) -> None:
    from pyarrow import parquet

    (tmp_path / "data").mkdir()
    texts = [f"row {i}" for i in range(2500)]
    for part in range(2):
        table = pyarrow.table({"body": texts[part * 1250 : (part + 1) * 1250], "n": [1] * 1250})
        parquet.write_table(table, tmp_path / "data" / f"{part}.parquet", row_group_size=700)
    for corpus in (f"parquet:{tmp_path}/data", f"parquet:{tmp_path}/data/*.parquet"):
        assert documents(corpus, text_field="body") == texts
    with pytest.raises(LinscaleError, match=r"0\.parquet: no column 'text'; it has 'body', 'n'"):
        documents(f"parquet:{tmp_path}/data")
    broken = (tmp_path / "data" / "1.parquet").read_bytes()[:-9]
    (tmp_path / "data" / "1.parquet").write_bytes(broken)
    with pytest.raises(LinscaleError, match=r"1\.parquet: cannot be read as a Parquet file"):
        documents(f"parquet:{tmp_path}/data", text_field="body")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"text " * 999)[:-12], r"a\.txt: its compression is damaged, or ends too e"),
        (
            zstd(os.urandom(9999).hex().encode())[:-99],
            r"a\.txt: its compression is damaged, or ends too early",
        ),
        (gzip.compress("Müller".encode("latin1")), r"a\.txt: not UTF-8 text \(byte 0xfc"),
        (b"PK\x03\x04rest", r"a\.txt: is a zip archive; unpack it"),
        (b"\xfd7zXZ\x00rest", r"a\.txt: is compressed with xz"),
        (b"PAR1rest", r"a\.txt: is a Parquet file; read it with data\.corpus=parquet:PATH"),
        ("text".encode("utf-16"), r"a\.txt: is UTF-16 text; convert it"),
    ],
    # Named: gzip notes the time, and workers of one test run must collect the same names.
    ids=["cut gzip", "cut zstd", "Latin-1", "zip", "xz", "Parquet", "UTF-16"],
)
@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_errors_are_those_of_the_right_layer(
    tmp_path: Path, kind: str, content: bytes, message: str
) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(LinscaleError, match=message):
        documents(f"{kind}:{tmp_path}/a.txt", max_bad_records=0)


def test_a_name_that_promises_compression_is_held_to_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_text("plain")
    with pytest.raises(LinscaleError, match=r"is not compressed, as its name says; take \.gz off"):
        documents(f"text:{tmp_path}/a.txt.gz")


BAD = [b'{"text": 7}', b'{"text": "caf\xe9"}', b"{", b'{"other": "x"}', b"[" * 100_000]


def test_bad_records_are_passed_over_up_to_a_number(tmp_path: Path) -> None:
    good = sample_documents(60)
    lines = [json.dumps({"text": text}).encode() for text in good]
    mixed = [*lines[:20], *BAD, *lines[20:]]
    write_corpus(tmp_path, [])
    (tmp_path / "corpus.jsonl").write_bytes(b"\n".join(mixed))
    corpus = f"jsonl:{tmp_path}/corpus.jsonl"
    assert documents(corpus, max_bad_records=5) == good
    with pytest.raises(LinscaleError, match=r"corpus\.jsonl:21: the field 'text' holds int"):
        documents(corpus)
    with pytest.raises(LinscaleError, match=r"\.jsonl:24: .* 3 bad records before it were passed"):
        documents(corpus, max_bad_records=3)

    def data(**options: object) -> DataConfig:
        values = {"corpus": corpus, "sequence_length": 32, "validation_fraction": 0.2} | options
        return DataConfig(**values)  # type: ignore[arg-type]

    prepared = prepare(data(max_bad_records=9), tmp_path / "cache")
    assert prepared.fingerprint()["bad_records"] == prepared.index.bad_records == 5
    clean = prepare(write_corpus(tmp_path / "clean", good), tmp_path / "cache")
    assert "bad_records" not in clean.fingerprint()
    assert all_tokens(prepared, "train") == all_tokens(clean, "train")
    with pytest.raises(LinscaleError, match=r"5 of its records cannot be read .*=0 allows fewer"):
        prepare(data(), tmp_path / "cache")


def test_trained_on_twice_a_bad_record_counts_once(tmp_path: Path) -> None:
    """A tokenizer that is trained reads the corpus first, and tokenising reads it again."""
    data = write_corpus(tmp_path, sample_documents(120))
    with (tmp_path / "corpus.jsonl").open("a") as file:
        file.write("{\n")
    trained = dataclasses.replace(data, tokenizer="bpe:300", max_bad_records=1)
    assert prepare(trained, tmp_path / "cache").index.bad_records == 1


INTERRUPTED = """
import random, sys, time
from scaling.data.tokenizers import train_bpe
draw = random.Random(0)
letters = "abcdefghijklmnopqrstuvwxyz"
def texts():
    for _ in range(200):
        yield " ".join("".join(draw.choices(letters, k=12)) for _ in range(1500))
def read():
    print("read", flush=True)
try:
    train_bpe("bpe:60000", texts(), read)
    print("finished", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
"""


def test_training_a_tokenizer_answers_an_interrupt() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "read\n"
        time.sleep(0.3)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        seconds = time.monotonic() - start
        assert process.wait(timeout=30) == 130
    assert seconds < 3  # 0.6 s on a quiet machine

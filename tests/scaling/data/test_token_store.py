"""Blocks of tokens: slices of the shards, read ahead, with few files open."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.data import token_store, tokenise
from scaling.data.prepare import prepare
from scaling.data.token_store import Contents, Shard, Split
from scaling.data.tokenizers import ByteTokenizer
from tests.support.small_corpora import (
    T,
    all_tokens,
    held_out,
    sample_documents,
    stream,
    write_corpus,
)


def test_wide_vocabularies_take_four_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wide(ByteTokenizer):
        vocab_size = 70_000
        eos_id = 69_999

    monkeypatch.setattr(tokenise, "load_tokenizer", lambda name, path: Wide())
    documents = sample_documents(100)
    prepared = prepare(write_corpus(tmp_path, documents), tmp_path / "cache")
    assert prepared.index.dtype == "uint32"
    train = [d for d in documents if not held_out(d, 0.2)]
    expected = [t if t != 0xFF else 69_999 for t in stream(train)]
    assert all_tokens(prepared, "train") == expected
    assert prepared.train.gather([0])[0].tolist() == expected[: T + 1]


@given(
    sizes=st.lists(st.integers(1, 70), min_size=1, max_size=6),
    length=st.integers(1, 20),
    data=st.data(),
)
@settings(deadline=None, max_examples=50)
def test_blocks_are_slices_of_shards(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], length: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("split")
    contents, expected, start = Contents(), [], 0
    for number, size in enumerate(sizes):
        tokens = np.arange(start, start + size, dtype="<u2")
        (folder / f"{number}.bin").write_bytes(tokens.tobytes())
        contents.shards.append(Shard(file=f"{number}.bin", tokens=size, sha256=""))
        for first in range(0, size - length, length):
            expected.append(tokens[first : first + length + 1].tolist())
        start += size
    split = Split(folder, contents, "uint16", length)
    assert split.n_blocks == len(expected)
    if expected:
        wanted = data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=12))
        assert split.gather(wanted).tolist() == [expected[i] for i in wanted]
    with pytest.raises(IndexError):
        split.gather([len(expected)])


def some_shards(folder: Path, count: int, tokens: int) -> Contents:
    contents = Contents()
    for number in range(count):
        values = np.random.default_rng(number).integers(0, 2**16, tokens).astype("<u2")
        (folder / f"{number}.bin").write_bytes(values.tobytes())
        contents.shards.append(Shard(file=f"{number}.bin", tokens=tokens, sha256=""))
    return contents


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_few_files_are_open_however_many_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened() -> int:
        links = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        return sum(link.startswith(str(tmp_path.resolve())) for link in links)

    monkeypatch.setattr(token_store, "OPEN_SHARDS", 3)
    split = Split(tmp_path, some_shards(tmp_path, 9, 101), "uint16", 10)
    every = list(range(split.n_blocks))
    split.will_need(every)
    backwards = split.gather(every[::-1])
    assert 0 < opened() <= 3
    raw = [np.fromfile(tmp_path / f"{n}.bin", dtype="<u2") for n in range(9)]
    expected = [r[i : i + 11] for r in raw for i in range(0, 100, 10)]
    assert np.array_equal(backwards[::-1], expected)


def resident(path: Path) -> np.ndarray:
    """Which pages of a file are in memory, by the kernel's word."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        flat = np.frombuffer(mapped, dtype=np.uint8)
        pages = np.zeros(-(-len(flat) // mmap.PAGESIZE), dtype=np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        address, size = ctypes.c_void_p(flat.ctypes.data), ctypes.c_size_t(len(flat))
        assert libc.mincore(address, size, ctypes.c_void_p(pages.ctypes.data)) == 0
        del flat
    return (pages & 1).astype(bool)


@pytest.mark.skipif(sys.platform != "linux", reason="mincore")
def test_announced_blocks_come_into_memory_and_others_do_not(tmp_path: Path) -> None:
    length = 4096
    split = Split(tmp_path, some_shards(tmp_path, 1, 16 * 2**20), "uint16", length)
    path = tmp_path / "0.bin"
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident(path).any():
        pytest.skip("this file system keeps all files in memory")
    blocks = [5, 900, 901, split.n_blocks - 1]
    split.will_need(blocks)
    pages = {
        page
        for block in blocks
        for page in range(
            2 * block * length // mmap.PAGESIZE,
            (2 * (block + 1) * length + 1) // mmap.PAGESIZE + 1,
        )
    }
    deadline = time.monotonic() + 30
    while not resident(path)[sorted(pages)].all():
        assert time.monotonic() < deadline, "announced and not read"
        time.sleep(0.01)
    assert resident(path).sum() < 4 * len(pages)

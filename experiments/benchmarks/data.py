"""What data cost: tokens read from a disk while training goes on, and text made into tokens.

    python -m experiments.benchmarks.data [--write]

Question: does training wait for the disk when the shards are not in memory, and how fast is a
corpus tokenised?
Method, reading: a shard of 1 GiB; a loop that takes a micro-batch of random blocks and then sleeps
20 ms, as a host does whose device is at work. Before each way the file is dropped from the page
cache (`POSIX_FADV_DONTNEED`); `cached` is read once before. Waiting is the wall time from asking
for a batch to having it.
Method, tokenising: `scaling.data.prepare.prepare` of the King James Bible, eight times over (34
MB), with its tokenizer given, into a new cache, by one process and by one worker a core. Wall
time, start of the workers included.
Expected: announced blocks are as good as cached ones; without, batches wait for the disk. Workers
gain nothing on two cores, where one process encodes with two threads as well, and more the more
cores there are.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.tables import DOCS, put_table
from scaling.config.run import DataConfig
from scaling.data.corpora.registry import open_corpus
from scaling.data.loader import Blocks, ReadAhead
from scaling.data.prepare import prepare
from scaling.data.sampler import BlockOrder, StepSampler
from scaling.data.token_store import Contents, Shard, Split
from scaling.record.environment import cpu_name
from scaling.system.devices import cores

RESULTS = Path(__file__).parents[1] / "results" / "data.csv"
SHARD_BYTES = 2**30
STEP_SECONDS = 0.02
BATCHES = 150


def make_shard(folder: Path) -> Contents:
    """A shard of random tokens, on the disk."""
    draw = np.random.default_rng(0)
    with (folder / "train-00000.bin").open("wb") as file:
        for _ in range(SHARD_BYTES // 2**24):
            file.write(draw.bytes(2**24))
        file.flush()
        os.fsync(file.fileno())
    return Contents(shards=[Shard(file="train-00000.bin", tokens=SHARD_BYTES // 2, sha256="")])


def drop(path: Path) -> None:
    """Take a file out of the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def waits(split: Split, micro: int, *, ahead: bool, seed: int) -> list[float]:
    """Seconds of waiting for each micro-batch, as a loader without workers takes it."""
    sampler: Iterable[list[int]] = StepSampler(
        order=BlockOrder(n_blocks=split.n_blocks, seed=seed),
        start_samples=0,
        batch_sequences=micro,
        micro_batch_sequences=micro,
    )
    batches, blocks = iter(ReadAhead(sampler, split) if ahead else sampler), Blocks(split)
    taken: list[float] = []
    for _ in range(BATCHES):
        start = time.perf_counter()
        blocks.__getitems__(next(batches))
        taken.append(time.perf_counter() - start)
        time.sleep(STEP_SECONDS)
    return taken


def reading(folder: Path) -> list[dict[str, Any]]:
    """Waiting at two sequence lengths: cached, from the disk, and from the disk read ahead."""
    contents, rows = make_shard(folder), []
    path = folder / "train-00000.bin"
    warm: Callable[[Path], object] = Path.read_bytes
    ways = {"cached": (warm, True), "disk": (drop, False), "disk, read ahead": (drop, True)}
    for length, micro in ((8192, 8), (256, 8)):
        for seed, (way, (before, ahead)) in enumerate(ways.items()):
            before(path)
            split = Split(folder, contents, "uint16", length)
            taken = sorted(1000 * t for t in waits(split, micro, ahead=ahead, seed=seed))
            rows.append(
                {
                    "what": f"{micro} blocks of {length} tokens: {way}",
                    "mean": round(statistics.fmean(taken), 3),
                    "p99": round(taken[int(0.99 * len(taken))], 3),
                    "unit": "ms",
                }
            )
            print(rows[-1], flush=True)
    return rows


PREPARE = """
import sys, time
from pathlib import Path
from scaling.config.run import DataConfig
from scaling.data.prepare import prepare

corpus, tokenizer, cache, workers = sys.argv[1:]
data = DataConfig(corpus=f"jsonl:{corpus}", tokenizer=f"file:{tokenizer}", sequence_length=256)
start = time.perf_counter()
prepare(data, Path(cache), workers=int(workers))
print(time.perf_counter() - start)
"""
"""A process of its own: workers import what its main module imports, as with `linscale`."""


def write_bibles(folder: Path) -> tuple[Path, Path, int]:
    """The King James Bible eight times over as JSON lines, and a tokenizer for it.

    Returns:
        Corpus, tokenizer, bytes of text.
    """
    bible = list(open_corpus(DataConfig(corpus="kjv")).read(0))
    with (folder / "bibles.jsonl").open("w") as file:
        for number in range(8):
            file.writelines(json.dumps({"text": f"{number} {text}"}) + "\n" for text in bible)
    small = DataConfig(corpus="kjv", tokenizer="bpe:8192", sequence_length=256)
    tokenizer = prepare(small, folder / "cache").folder / "tokenizer.json"
    return folder / "bibles.jsonl", tokenizer, 8 * sum(len(text.encode()) for text in bible)


def tokenising(folder: Path) -> list[dict[str, Any]]:
    """Speed over workers, of byte-level BPE."""
    corpus, tokenizer, size = write_bibles(folder)
    rows: list[dict[str, Any]] = []
    for workers in dict.fromkeys((1, cores())):
        arguments = [str(corpus), str(tokenizer), str(folder / f"cache-{workers}"), str(workers)]
        done = subprocess.run(
            [sys.executable, "-c", PREPARE, *arguments], check=True, capture_output=True, text=True
        )
        seconds = float(done.stdout)
        rows.append(
            {
                "what": f"tokenising, {workers} process{'es' if workers > 1 else ''}",
                "mean": round(size / seconds / 1e6, 2),
                "p99": None,
                "unit": "MB/s",
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Print a line for each measurement; `--write` keeps them as the dated result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--folder", type=Path, help="On the disk that is asked about.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        rows = [*reading(Path(name)), *tokenising(Path(name))]
    machine = {"date": date.today().isoformat(), "cores": cores(), "machine": cpu_name()}
    rows = [row | machine for row in rows]
    if arguments.write:
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        shown = [
            {
                "": row["what"],
                "mean": f"{row['mean']} {row['unit']}",
                "99th percentile": "" if row["p99"] is None else f"{row['p99']} {row['unit']}",
            }
            for row in rows
        ]
        title = f"{machine['machine']}, {machine['cores']} cores, {machine['date']}:"
        put_table(DOCS / "tutorial_corpus.md", "data", title, shown)


if __name__ == "__main__":
    main()

"""Tokenising by `Dataset.map` instead: speed, and what a kill leaves behind, side by side.

    python -m experiments.benchmarks.tokenising [--turns 3] [--write]    (about three minutes)

Question: `Dataset.map(num_proc=...)` tokenises on every core too. What would it cost to let it, in
the place of `scaling.data.token_workers`?
Method: the King James Bible eight times over (34 MB of JSON lines) with a given BPE vocabulary, by
two processes, in turns:

    linscale data prepare    in chunks of 4 MB, as large corpora are in chunks of 256 MiB
    Dataset.map              `load_dataset("json")`, `map(num_proc=2)`, then the tokens to one file

1. left alone: wall time from a new interpreter and an empty cache, and bytes on disk at the end;
2. SIGKILL to all processes when half of that time is over, as when a machine dies: time that the
   same command then needs;
3. SIGKILL to the process that started it alone: five seconds later, its processes that still live,
   and whether the lock that it held is free (without one, two commands would write the same files).
Expected: the shards go on from the last chunk, and workers and lock are gone with the parent. `map`
keeps the part of a process only when all of that part is done, so that it starts from nothing; its
queue is served by a process that outlives the parent and has inherited the lock.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from experiments.benchmarks.data import write_bibles
from experiments.benchmarks.tables import DOCS, put_table
from scaling.record.environment import cpu_name
from scaling.system.devices import cores

RESULTS = Path(__file__).parents[1] / "results" / "tokenising.csv"
WORKERS = 2

SHARDS = """
import sys
from pathlib import Path
from scaling.data import tokenise
from scaling.config.run import DataConfig
from scaling.data.prepare import prepare

tokenise.CHUNK_BYTES, tokenise.BATCH_BYTES = 4 * 2**20, 2**19
corpus, tokenizer, folder, workers = sys.argv[1:]
data = DataConfig(corpus=f"jsonl:{corpus}", tokenizer=f"file:{tokenizer}", sequence_length=256)
prepare(data, Path(folder), workers=int(workers))
"""

DATASETS = """
import sys
from pathlib import Path
import numpy as np
from datasets import load_dataset
from scaling.system.claims import exclusive
from scaling.data.tokenizers import load_tokenizer

corpus, tokenizer, folder, workers = sys.argv[1:]
tokenizer = load_tokenizer(f"file:{tokenizer}")

def encode(batch):
    pieces = tokenizer.encode_batch(batch["text"])
    return {"tokens": [np.append(p, tokenizer.eos_id).astype(np.uint16).tobytes() for p in pieces]}

with exclusive(Path(folder) / "lock"):
    texts = load_dataset("json", data_files=corpus, split="train", cache_dir=folder)
    tokens = texts.map(encode, batched=True, num_proc=int(workers), remove_columns=["text"])
    with (Path(folder) / "tokens.bin").open("wb") as file:
        for batch in tokens.iter(batch_size=1000):
            file.writelines(batch["tokens"])
"""


class Command:
    """One way of tokenising into a folder, in a session of its own."""

    def __init__(self, code: str, corpus: Path, tokenizer: Path, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.start = folder, time.perf_counter()
        arguments = [str(corpus), str(tokenizer), str(folder), str(WORKERS)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def finish(self) -> float:
        """Seconds until its end."""
        if self.process.wait():
            sys.exit(f"error: tokenising into {self.folder} failed.")
        return time.perf_counter() - self.start

    def kill(self, after: float, *, parent_only: bool) -> None:
        """SIGKILL so many seconds after the start."""
        time.sleep(max(0.0, self.start + after - time.perf_counter()))
        if parent_only:
            self.process.kill()
        else:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def left(self) -> list[int]:
        """Living processes of its session."""
        found = subprocess.run(["pgrep", "-s", str(self.process.pid)], stdout=subprocess.PIPE)
        return [int(number) for number in found.stdout.split()]


def is_free(lock: Path) -> bool:
    """Whether another process could take a lock file."""
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def measure(way: str, code: str, corpus: Path, tokenizer: Path, folder: Path) -> dict[str, Any]:
    """Left alone, killed and told again, and orphaned, once."""
    alone = Command(code, corpus, tokenizer, folder / "alone")
    seconds = alone.finish()
    size = sum(path.stat().st_size for path in alone.folder.rglob("*") if path.is_file())
    hurt = Command(code, corpus, tokenizer, folder / "hurt")
    hurt.kill(seconds / 2, parent_only=False)
    again = Command(code, corpus, tokenizer, hurt.folder).finish()
    orphaned = Command(code, corpus, tokenizer, folder / "orphaned")
    orphaned.kill(seconds / 2, parent_only=True)
    time.sleep(5)
    left = orphaned.left()
    free = all(is_free(lock) for lock in orphaned.folder.rglob("lock"))
    for number in left:
        os.kill(number, signal.SIGKILL)
    return {
        "way": way,
        "seconds": seconds,
        "megabytes": size / 1e6,
        "again": again,
        "left": len(left),
        "free": free,
    }


def summary(rows: list[dict[str, Any]], size: int) -> dict[str, Any]:
    """One line of the table: medians over turns, and the worst of what was left behind."""
    seconds, written, again = (
        statistics.median(row[key] for row in rows) for key in ("seconds", "megabytes", "again")
    )
    return {
        "way": rows[0]["way"],
        "text per second": f"{size / seconds / 1e6:.1f} MB",
        "on disk": f"{written:.0f} MB",
        "left alone": f"{seconds:.1f} s",
        "again after a kill halfway": f"{again:.1f} s",
        "processes left": max(row["left"] for row in rows),
        "lock": "free" if all(row["free"] for row in rows) else "held",
    }


def main() -> None:
    """Print a line for each measurement; `--write` keeps the medians as the dated result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    ways = {"`linscale data prepare`": SHARDS, "`Dataset.map`": DATASETS}
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as name:
        corpus, tokenizer, size = write_bibles(Path(name))
        for turn in range(arguments.turns):
            for number, (way, code) in enumerate(ways.items()):
                folder = Path(name) / f"{number}-{turn}"
                found[way].append(measure(way, code, corpus, tokenizer, folder))
                print(found[way][-1], flush=True)
    rows = [summary(turns, size) for turns in found.values()]
    machine = {"date": date.today().isoformat(), "cores": cores(), "machine": cpu_name()}
    if arguments.write:
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0], *machine], lineterminator="\n")
            writer.writeheader()
            writer.writerows(row | machine for row in rows)
        title = f"{machine['machine']}, {machine['cores']} cores, {machine['date']}:"
        put_table(DOCS / "tutorial_corpus.md", "tokenising", title, rows)


if __name__ == "__main__":
    main()

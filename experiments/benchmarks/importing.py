"""Import of a Llama of a billion parameters against safetensors reading the same file.

    python -m experiments.benchmarks.importing [--write] [--layers N]

Question: does `models.interop.import_model` cost more than reading the weights?
Method: a random Llama of the paper's 1B shape in bfloat16 (2 GB) is written once and read once, so
that the file is in the page cache. Then they take turns: `safetensors.torch.load_file`, which only
maps the file; the same with every tensor copied into memory; and the import. Mapping alone reads no
weight, so that file and import are also timed until every page of the weights has been touched.
Wall time and CPU time; the median over rounds.
Expected: the import takes less than 1.3 times what safetensors takes until the weights are in
memory. It maps as well, and copies only the rows of fused projections: a quarter of the bytes.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from experiments.benchmarks.tables import DOCS, put_table
from models.config import paper_config
from models.interop import export_model, import_model
from models.language_model import build
from scaling.record.environment import cpu_name

RESULTS = Path(__file__).parents[1] / "results" / "importing.csv"
VOCAB = 32_000


def write(folder: Path, layers: int) -> int:
    """A random checkpoint; returns its parameters."""
    config = replace(paper_config("llama", "1B"), vocab_size=VOCAB, layers=layers)
    model = build(config, device="meta", dtype=torch.bfloat16).to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -0.02, 0.02)
    export_model(model, folder, context=2048, eos_id=0, shard_bytes=2**40)
    return sum(parameter.numel() for parameter in model.parameters())


def touch(tensors: Iterable[torch.Tensor]) -> int:
    """Read a byte of every page."""
    return sum(int(t.detach().view(torch.uint8).flatten()[::4096].sum()) for t in tensors)


def clocked(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds; what the work makes is freed after the clock has stopped."""
    wall, cpu = time.perf_counter(), time.process_time()
    made = work()
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    del made
    return seconds


def main() -> None:
    """Print a line for each way; `--write` keeps them as the dated result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=paper_config("llama", "1B").layers)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "llama"
        parameters = write(folder, arguments.layers)
        (weights,) = folder.glob("*.safetensors")
        weights.read_bytes()
        ways: dict[str, Callable[[], Any]] = {
            "safetensors, mapped only": lambda: load_file(weights),
            "safetensors, in memory": lambda: {n: t.clone() for n, t in load_file(weights).items()},
            "import": lambda: import_model(folder),
            "safetensors, touched": lambda: touch(load_file(weights).values()),
            "import, touched": lambda: touch(import_model(folder)[0].parameters()),
        }
        times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for number in range(arguments.rounds + 1):
            for way, work in ways.items():
                seconds = clocked(work)
                if number:  # the first round warms up
                    times[way].append(seconds)
        size = weights.stat().st_size
    base = statistics.median(wall for wall, _ in times["safetensors, in memory"])
    rows: list[dict[str, Any]] = []
    for way, seconds in times.items():
        wall = statistics.median(wall for wall, _ in seconds)
        rows.append(
            {
                "date": date.today().isoformat(),
                "way": way,
                "wall_seconds": round(wall, 4),
                "cpu_seconds": round(statistics.median(cpu for _, cpu in seconds), 4),
                "relative_to_in_memory": round(wall / base, 3),
                "parameters": parameters,
                "bytes": size,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "machine": cpu_name(),
            }
        )
        print(f"{way:26} {wall:8.4f} s, {wall / base:6.3f} of in memory", flush=True)
    if arguments.write:
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        columns = {"way": "", "wall_seconds": "seconds", "cpu_seconds": "CPU seconds",
                   "relative_to_in_memory": "of safetensors, in memory"}  # fmt: skip
        shown = [{columns[name]: row[name] for name in columns} for row in rows]
        first = rows[0]
        title = (
            f"{first['parameters'] / 1e9:.2f} billion parameters in bfloat16, {first['machine']}, "
            f"{first['date']}:"
        )
        put_table(DOCS / "interop.md", "importing", title, shown)


if __name__ == "__main__":
    main()

"""How long it takes to read a large sweep: 1,400 run records with a million lines of metrics.

    python -m experiments.benchmarks.records [--runs 1400] [--lines 715] [-o FILE.json]

The records are made in a temporary directory, with the fields that training writes. Three times
are taken: the first reading, which parses every line and leaves a cache; a second reading; and a
reading after one run has logged a line more, which parses that run alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from analysis.io.records import load_sweep
from analysis.io.sweep import Sweep

TOKENS, WIDTH, LAYERS = 16384, 256, 8


def write_records(root: Path, runs: int, lines: int) -> None:
    """`runs` finished runs with `lines` lines of metrics and four milestones each."""
    rng = np.random.default_rng(0)
    names: list[str] = []
    for index in range(runs):
        arch = ("llama", "tnl", "hgrn2", "cosformer2")[index % 4]
        name = f"{arch}-d{WIDTH}-{index:08x}"
        names.append(name)
        path = root / name
        path.mkdir(parents=True)
        _write(path, arch, name, index, lines, rng)
    (root / "sweep.json").write_text(json.dumps({"schema": 1, "sweep": root.name, "runs": names}))


def _write(
    path: Path, arch: str, name: str, seed: int, lines: int, rng: np.random.Generator
) -> None:
    n = 12.0 * LAYERS * WIDTH**2 * (1 + seed % 7)
    flops = {"total": 6.5 * n}
    records: dict[str, Any] = {
        "config": {
            "schema": 1, "run_id": name, "sweep": "bench", "name": name, "size": f"d{WIDTH}",
            "seed": seed, "model": {"arch": arch, "dim": WIDTH, "layers": LAYERS},
            "data": {"corpus": "kjv", "tokenizer": "bytes", "sequence_length": 512,
                     "batch_sequences": TOKENS // 512},
            "optim": {"lr": 3e-3}, "schedule": {"kind": "wsd"},
            "budget": {"tokens": lines * TOKENS},
        },
        "accounting": {
            "n_total": n * 1.1, "n_non_embedding": n, "n_paper": n,
            "flops_per_token": {"paper": flops, "exact": flops},
        },
        "environment": {"git_revision": "0" * 40, "device": "cpu", "hostname": "bench"},
        "status": {"state": "done", "reason": "", "updated": "2026-11-21T08:00:00+00:00"},
    }  # fmt: skip
    for key, record in records.items():
        (path / f"{key}.json").write_text(json.dumps(record))
    tokens = TOKENS * np.arange(1, lines + 1)
    loss = 1.1 + 400 / n**0.34 + 300 / tokens**0.31
    noise = rng.standard_normal((2, lines))
    (path / "metrics.jsonl").write_text("".join(
        json.dumps({
            "segment": "trunk", "step": i + 1, "tokens": int(t), "flops": t * flops["total"],
            "wall": 0.31 * i, "split": "validation" if i % 10 == 9 else "train",
            "loss": loss[i] * (1 + 0.005 * noise[0, i]), "bpb": loss[i] / np.log(2), "lr": 3e-3,
            "grad_norm": 0.5 + 0.05 * noise[1, i], "tokens_per_second": 5.2e4, "mfu": 0.31,
        }) + "\n"
        for i, t in enumerate(tokens.tolist())
    ))  # fmt: skip
    (path / "milestones.jsonl").write_text("".join(
        json.dumps({
            "tokens": int(tokens[at]), "step": at + 1, "flops": tokens[at] * flops["total"],
            "train_loss": loss[at], "val_loss": loss[at] * 1.01, "val_loss_std": 0.1,
            "val_blocks": 64, "val_bpb": loss[at], "decayed": True, "checkpoint": f"c{at}",
        }) + "\n"
        for at in (lines // 8, lines // 4, lines // 2, lines - 1)
    ))  # fmt: skip


def _timed(root: Path) -> tuple[dict[str, float], Sweep]:
    wall, spent = time.perf_counter(), time.process_time()
    sweep = load_sweep(root)
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - spent}, sweep


def measure(runs: int, lines: int) -> dict[str, Any]:
    """All three readings."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "sweep"
        write_records(root, runs, lines)
        first, sweep = _timed(root)
        again, cached = _timed(root)
        with (root / sweep.runs["run_id"].iloc[0] / "metrics.jsonl").open("a") as log:
            log.write(json.dumps({"segment": "trunk", "split": "train", "tokens": 1}) + "\n")
        changed, longer = _timed(root)
    if not (len(cached.curves) == len(sweep.curves) == len(longer.curves) - 1 == runs * lines):
        raise RuntimeError("the cache lost or invented lines")
    return {"runs": runs, "lines": runs * lines, "points": len(sweep.points), "first": first,
            "cached": again, "one_run_changed": changed}  # fmt: skip


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=1400)
    parser.add_argument("--lines", type=int, default=715, help="of metrics for each run")
    parser.add_argument("-o", "--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    record = {
        "date": date.today().isoformat(),
        "command": "python -m experiments.benchmarks.records",
        "machine": {"system": platform.system(), "cores": os.cpu_count(),
                    "python": platform.python_version(), "load": os.getloadavg()[0]},
        "results": measure(options.runs, options.lines),
    }  # fmt: skip
    text = json.dumps(record, indent=2)
    print(text)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()

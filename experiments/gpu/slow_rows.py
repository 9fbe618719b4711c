"""Tune the launch constants of what the speed part shows to be slow.

    python -m experiments.gpu.slow_rows OUT

Slow is a form that takes more than `MOST` times the byte floor, forward and backward, or that is
less than `LEAST` times as fast as flash-linear-attention, at any shape. The tables are written to
OUT/tuning, not over the checked-in ones; OUT/tuned.txt names what is done.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from models.kernels.tools import tune
from models.kernels.tools.rows import DIMS

MOST, LEAST = 2.5, 2.3
FAMILIES = {
    "none": "scalar", "head": "scalar", "learned head": "scalar", "cosine": "phase",
    "channel": "vector", "hgrn2": "vector", "delta": "delta", "delta head": "delta",
    "delta channel": "delta",
}  # fmt: skip
"""Form of the benchmark -> family of the tuning tables."""


def slow(records: Iterable[dict[str, Any]]) -> list[tuple[str, int]]:
    """(family, head dimension) of the slow rows of kernels_gpu's records, the slowest first."""
    rows = list(records)
    bandwidth = next((r["bandwidth"] for r in reversed(rows) if r["part"] == "run"), None)
    timed = [r for r in rows if "both" in r]
    found: dict[tuple[str, int], float] = {}
    for row in timed:
        if row["name"] != "linscale" or row["mode"] not in FAMILIES:
            continue
        peers = [
            r["both"]
            for r in timed
            if r["name"].startswith("fla") and all(r[k] == row[k] for k in ("shape", "mode"))
        ]
        floor = row["floor_bytes"][1] / bandwidth * 1e3 if bandwidth else 0.0
        lag = max(
            [row["both"] / floor / MOST if floor else 0.0]
            + [LEAST * row["both"] / peer for peer in peers]
        )
        if lag > 1:
            key = FAMILIES[row["mode"]], int(row["shape"].rsplit("D", 1)[1])
            found[key] = max(found.get(key, 0.0), lag)
    return sorted(found, key=lambda key: -found[key])


def main(out: Path) -> int:
    """Tune what is slow and not done yet; 1 where the speed part has not run."""
    path = out / "kernels.jsonl"
    if not path.exists():
        print("no kernels.jsonl: run the part speed first", file=sys.stderr)
        return 1
    done = out / "tuned.txt"
    finished = set(done.read_text().splitlines()) if done.exists() else set()
    folder = out / "tuning"
    folder.mkdir(exist_ok=True)
    for family, dim in slow(json.loads(line) for line in path.read_text().splitlines()):
        name = f"{family} {dim}"
        if name in finished:
            continue
        dims = [min((d for d in DIMS if d >= dim), default=max(DIMS))]
        tune.tune(families=(family,), dims=dims, output=folder, jobs=os.cpu_count() or 1)
        print(json.dumps({"part": "tune", "family": family, "dim": dim}), flush=True)
        with done.open("a") as file:
            file.write(name + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

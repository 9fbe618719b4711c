"""How long `linscale fit` takes on small, large and awkward tables, and how much memory.

    python -m experiments.benchmarks.table_sizes [--only NAME] [--repeats 3] [-o FILE.json]

Each case is a process of its own, with one thread, run several times: the fewest CPU seconds are
kept, since other programs on the processor can only add to them, and the largest memory. Of
commands CPU seconds are those of the whole process, start included; of calls of the library those
of the call. Peak memory is the process's.
The tables are made up, from the law of 2203.15556 with noise that the rows of a run share. `limit`
is what the project promises; ratios to it are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.fit.fitting import fit_law
from analysis.io.tables import load_table
from analysis.judge.sensitivity import sensitivity

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Case:
    """One command, or one call of the library, on one table."""

    name: str
    table: str
    """Key of `TABLES`."""
    options: tuple[str, ...]
    """Of the command; empty where `call` is measured."""
    seconds: float
    """CPU seconds promised."""
    mebibytes: float = 2048.0
    """Peak memory promised."""
    call: str = ""
    """Key of `CALLS`: what takes its time after the table has been read."""


CASES = (
    Case("40 runs, 1000 refits", "runs_40", ("--bootstrap", "1000"), 3.0),
    Case("62 runs with repeated data, 1000 refits", "repeated_62",
         ("--form", "data_constrained", "--bootstrap", "1000"), 3.0),
    Case("10k one-row runs, 200 refits", "runs_10k", ("--bootstrap", "200"), 3.0),
    Case("30k one-row runs, other choices", "runs_30k", (), 2.0, call="choices"),
    Case("1M rows of 200 runs, 1000 refits", "log_1m",
         ("--runs", "run", "--bootstrap", "1000"), 30.0),
)  # fmt: skip


def _loss(n: np.ndarray, d: np.ndarray) -> np.ndarray:
    return 1.69 + 406.4 / n**0.34 + 410.7 / d**0.28


def one_row_runs(count: int) -> pd.DataFrame:
    """Runs spread over two decades of N and of D / N."""
    rng = np.random.default_rng(count)
    n = np.exp(rng.uniform(np.log(2e7), np.log(2e9), count)).round()
    d = (n * np.exp(rng.uniform(np.log(5), np.log(80), count))).round()
    loss = _loss(n, d) * np.exp(0.005 * rng.standard_normal(count))
    return pd.DataFrame({"params": n, "tokens": d, "loss": loss.round(5)})


def log_of_runs(runs: int, rows: int) -> pd.DataFrame:
    """Checkpoints, with most of their noise in common within a run."""
    rng = np.random.default_rng(0)
    few = one_row_runs(runs)
    run = np.repeat(np.arange(runs), rows)
    n = few["params"].to_numpy()[run]
    d = (few["tokens"].to_numpy()[run] * np.tile(np.linspace(0.02, 1, rows), runs)).round()
    noise = 0.004 * rng.standard_normal(runs)[run] + 0.003 * rng.standard_normal(len(run))
    return pd.DataFrame({"run": [f"r{i}" for i in run], "params": n, "tokens": d,
                         "loss": (_loss(n, d) * np.exp(noise)).round(5)})  # fmt: skip


def repeated(count: int = 62) -> pd.DataFrame:
    """Runs that read their data half to 64 times."""
    rng = np.random.default_rng(1)
    n = np.repeat(np.geomspace(2e7, 2e9, 8), 8)[:count]
    passes = np.tile([0.5, 1, 2, 4, 8, 16, 32, 64], 8)[:count]
    unique, d = 5 * n, 5 * n * passes
    worth = np.where(passes > 1, unique * (1 + 15 * (1 - np.exp(-(passes - 1) / 15))), d)
    loss = _loss(n, worth) * np.exp(0.004 * rng.standard_normal(count))
    return pd.DataFrame({"params": n, "tokens": d, "unique_tokens": np.minimum(unique, d),
                         "loss": loss})  # fmt: skip


TABLES = {
    "runs_40": lambda: one_row_runs(40),
    "runs_10k": lambda: one_row_runs(10_000),
    "runs_30k": lambda: one_row_runs(30_000),
    "repeated_62": repeated,
    "log_1m": lambda: log_of_runs(200, 5_000),
}


def _choices(points: pd.DataFrame) -> float:
    fit = fit_law("chinchilla", points)
    return _seconds(lambda: sensitivity("chinchilla", points, reference=fit))


CALLS = {"choices": _choices}


def _seconds(call: Callable[[], object]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


def measure(case: Case, folder: Path, repeats: int) -> dict[str, Any]:
    """CPU seconds and peak mebibytes of one command, with their ratios to the limits."""
    runs = [_once(case, folder) for _ in range(repeats)]
    seconds = [r["cpu_s"] for r in runs]
    peak = max(r["peak_mib"] for r in runs)
    return {
        "name": case.name, "cpu_s": min(seconds), "all_cpu_s": seconds, "peak_mib": peak,
        "limit_s": case.seconds, "limit_mib": case.mebibytes,
        "ratio_s": min(seconds) / case.seconds, "ratio_mib": peak / case.mebibytes,
    }  # fmt: skip


def _once(case: Case, folder: Path) -> dict[str, float]:
    """CPU seconds and peak mebibytes of one process."""
    path = folder / f"{case.table}.csv"
    if not path.exists():
        TABLES[case.table]().to_csv(path, index=False)
    command = [sys.executable, "-m", "analysis", "fit", str(path), *case.options]
    if case.call:
        command = [sys.executable, "-m", "experiments.benchmarks.table_sizes", "--call",
                   case.call, "--table", str(path)]  # fmt: skip
    child = subprocess.run(
        [sys.executable, "-c", _PEAK, *command], cwd=ROOT, capture_output=True, text=True,
        check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    used = json.loads(child.stdout.splitlines()[-1])
    if case.call:
        used["cpu_s"] = float(child.stdout.splitlines()[0])
    return used


_PEAK = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, text=True, check=True)
if "--call" in sys.argv:
    print(done.stdout.strip())
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"cpu_s": used.ru_utime + used.ru_stime, "peak_mib": used.ru_maxrss / 1024}))
"""
"""A parent of one command alone, whose children's usage is that of the command."""


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("-o", "--output", type=Path, help="JSON file to write")
    parser.add_argument("--call", choices=list(CALLS), help="print the seconds of one call alone")
    parser.add_argument("--table", type=Path, help="its table")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each case")
    options = parser.parse_args()
    if options.call:
        print(CALLS[options.call](load_table(options.table).points))
        return
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            if options.only in case.name:
                results.append(measure(case, Path(folder), options.repeats))
                row = results[-1]
                print(f"{row['name']}: {row['cpu_s']:.1f} s of {row['limit_s']:g}, "
                      f"{row['peak_mib']:.0f} MiB", flush=True)  # fmt: skip
    record = {
        "date": date.today().isoformat(),
        "command": "python -m experiments.benchmarks.table_sizes",
        "machine": {"cpu": platform.processor() or platform.machine(),
                    "python": platform.python_version(), "numpy": np.__version__,
                    "pandas": pd.__version__, "load": os.getloadavg()[0],
                    "cores": os.cpu_count()},
        "results": results,
    }  # fmt: skip
    if options.output:
        options.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

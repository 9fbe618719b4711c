"""What a run costs besides its training steps: data, record, resuming, planning.

    python experiments/benchmarks/overheads.py [--arch tnl] [--write]

| quantity | limit | method |
|---|---|---|
| data | 2 % of a step | seconds that training waits in its loader (`data_wait` of the record) |
| recorder | 1 % of a step | seconds in `Norms` and `Recorder`, every step of theirs |
| resume | 10 s | `linscale run` of an interrupted run, from the command to its first step |
| plan | 5 s | `rung` for 500 different rungs of the paper's architectures |

Data, record and step are measured in one run, at the largest quickstart rung with one thread, so
that a busy machine slows all of them: their ratio is the result, of CPU time for the recorder and
of wall time for data. The recorder has a line every `steps / 500` steps as in the quickstart
itself. Resuming is a process of its own, imports included.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from experiments.quickstart import runs
from models.config import ARCHS, Arch, paper_config
from scaling.config.run import RunConfig
from scaling.plan.plan import rung
from scaling.record.environment import cpu_name
from scaling.system.devices import DEVICES
from scaling.training.callbacks import Recorder, StepCallback
from scaling.training.norms import Norms
from scaling.training.train import train

RESULTS = Path(__file__).parents[1] / "results" / "overheads.csv"
STEPS = 100
LIMITS = {"data": 0.02, "recorder": 0.01, "resume": 10.0, "plan": 5.0}


class StopAfter:
    """A stop event that is set after so many steps, and keeps the CPU time between two of them."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.taken = 0
        self.marks: list[float] = []

    def is_set(self) -> bool:
        """Called by the runtime after each optimizer step."""
        self.taken += 1
        self.marks.append(time.thread_time())
        return self.taken >= self.steps


def largest(arch: Arch) -> RunConfig:
    """The largest quickstart rung of an architecture, with one thread."""
    rungs = [r for r in runs() if r.model.arch == arch]
    return max(rungs, key=lambda r: r.model.dim).override(["parallel.threads=1"])


def timed(owner: type[Any], name: str, spent: list[float]) -> Callable[[], None]:
    """Add up the CPU time of a method; returns what undoes it."""
    plain = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        start = time.thread_time()
        try:
            return plain(*args, **kwargs)
        finally:
            spent.append(time.thread_time() - start)

    setattr(owner, name, wrapped)
    return lambda: setattr(owner, name, plain)


def shares(run: RunConfig, sweep: Path) -> tuple[float, float]:
    """Data's share of the wall time and the recorder's of the CPU time of the first steps."""
    spent: list[float] = []
    places: list[tuple[type[StepCallback], str]] = [
        (Recorder, "on_step_end"),
        (Norms, "on_step_end"),
        (Norms, "on_before_optimizer_step"),
    ]
    undo = [timed(owner, name, spent) for owner, name in places]
    stop = StopAfter(STEPS)
    try:
        train(run, sweep, stop_event=stop)
    finally:
        for function in undo:
            function()
    recorder = sum(spent) / STEPS / ((stop.marks[-1] - stop.marks[0]) / (STEPS - 1))
    text = (sweep / run.run_id / "metrics.jsonl").read_text()
    waits = [line["data_wait"] for line in map(json.loads, text.splitlines())]
    return sum(waits) / len(waits), recorder


RESUME = """
import json, sys
from scaling.config.run import RunConfig
from scaling.training.train import train

class FirstStep:
    def is_set(self):
        return True

train(RunConfig.from_json(json.loads(sys.argv[1])), sys.argv[2], stop_event=FirstStep())
"""


def resume(run: RunConfig, sweep: Path) -> float:
    """Seconds of a new process that goes on with the run, takes one step, saves and ends."""
    command = [sys.executable, "-c", RESUME, json.dumps(run.to_json()), str(sweep)]
    before = _step(sweep / run.run_id)
    start = time.perf_counter()
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - start
    assert _step(sweep / run.run_id) == before + 1, "it took another number of steps"
    return seconds


def _step(folder: Path) -> int:
    manifest = json.loads((folder / "checkpoints" / "manifest.json").read_text())
    return manifest["resume"][-1]["step"]


def plan(rungs: int) -> float:
    """Seconds to plan so many different rungs."""
    base = largest("tnl")
    models = [paper_config(arch, size) for arch in ARCHS for size in ("70M", "410M", "1B", "7B")]
    configs = [
        replace(
            base,
            name=f"rung-{i}",
            model=replace(models[i % len(models)], layers=4 + i // len(models)),
            parallel=replace(base.parallel, micro_batch_sequences=1),
        )
        for i in range(rungs)
    ]
    start = time.perf_counter()
    for config in configs:
        rung(config, DEVICES["h200"])
    return time.perf_counter() - start


def main() -> None:
    """Print each quantity beside its limit; `--write` keeps them as the dated result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--arch", choices=ARCHS, nargs="*", default=["llama", "tnl"])
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: list[tuple[str, str, float]] = [("plan", "all", plan(500))]
    for arch in arguments.arch:
        with tempfile.TemporaryDirectory() as folder:
            run, sweep = largest(arch), Path(folder)
            data, recorder = shares(run, sweep)
            found += [("data", arch, data), ("recorder", arch, recorder)]
            found.append(("resume", arch, min(resume(run, sweep) for _ in range(3))))
    rows: list[dict[str, Any]] = []
    for quantity, arch, value in found:
        limit = LIMITS[quantity]
        shown = (
            f"{value:.2%}, limit {limit:.0%}" if limit < 1 else f"{value:.2f} s, limit {limit} s"
        )
        print(f"{quantity:9} {arch:10} {shown}{'' if value < limit else '  TOO MUCH'}", flush=True)
        rows.append(
            {
                "date": date.today().isoformat(),
                "quantity": quantity,
                "arch": arch,
                "value": round(value, 5),
                "limit": limit,
                "unit": "share" if limit < 1 else "s",
                "torch": torch.__version__,
                "load_average": round(os.getloadavg()[0], 1),
                "cpu": cpu_name(),
            }
        )
    if arguments.write:
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()

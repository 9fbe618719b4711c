"""Seconds a token of every model of a finished sweep, measured side by side on this machine.

    python -m experiments.benchmarks.step_times SWEEP -o steps.csv [--repeats 7] [--threads 1]

Question: how long does each architecture train a token at each size? The speeds in a sweep's own
records were met by whatever else ran on the machine on that day.
Method: every model trains steps of its own batch, length and precision, and all take turns within
a repeat; the result is the median over repeats. With one thread seconds are those of the processor,
which a busy machine disturbs least.

Writes arch, n_params, seconds_per_token, lo and hi (quartiles), and what they were measured on:
what `linscale clocks SWEEP --steps steps.csv` reads.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from analysis.io.records import load_sweep
from models.kernels.native import library
from models.language_model import build
from scaling.cli.sweep_models import runs_of
from scaling.config.run import RunConfig
from scaling.record.environment import cpu_name

STEP_TOKENS = 4096
"""Tokens of a step at most: a batch of many is measured by fewer sequences."""


@dataclass(frozen=True, kw_only=True)
class Trainee:
    """A model in training."""

    arch: str
    n: int
    run: RunConfig
    model: nn.Module
    optimizer: torch.optim.Optimizer


def trainee(arch: str, n: int, run: RunConfig) -> Trainee:
    torch.manual_seed(0)
    model = build(run.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    return Trainee(arch=arch, n=n, run=run, model=model, optimizer=optimizer)


def seconds_per_token(one: Trainee) -> float:
    """Of one step of forward, loss, backward and AdamW."""
    length = one.run.data.sequence_length
    rows = max(1, min(one.run.data.batch_sequences, STEP_TOKENS // length))
    tokens = torch.randint(0, one.run.model.vocab_size, (rows, length + 1))
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    with torch.autocast("cpu", torch.bfloat16, enabled=one.run.parallel.precision == "bf16"):
        loss = one.model.loss(tokens[:, :-1], tokens[:, 1:]).mean()  # pyright: ignore
    loss.backward()
    one.optimizer.step()
    one.optimizer.zero_grad()
    return (clock() - start) / (rows * length)


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds a token of every model of a sweep.")
    parser.add_argument("sweep", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    runs = runs_of(args.sweep, load_sweep(args.sweep))
    trainees = [
        trainee(arch, n, run) for arch, sizes in runs.items() for n, run in sorted(sizes.items())
    ]
    taken: list[list[float]] = [[] for _ in trainees]
    for repeat in range(args.repeats + 1):  # the first warms up
        for one, times in zip(trainees, taken, strict=True):
            found = seconds_per_token(one)
            if repeat:
                times.append(found)
        print(f"repeat {repeat} of {args.repeats}", flush=True)
    with args.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["arch", "n_params", "seconds_per_token", "lo", "hi", "precision", "repeats", "threads",
             "cpu", "kernels", "torch", "date"]
        )  # fmt: skip
        for one, times in zip(trainees, taken, strict=True):
            ordered = sorted(times)
            quarter = len(ordered) // 4
            writer.writerow(
                [one.arch, one.n, f"{statistics.median(times):.4g}", f"{ordered[quarter]:.4g}",
                 f"{ordered[-1 - quarter]:.4g}", one.run.parallel.precision, args.repeats,
                 args.threads, cpu_name(), library.describe(), torch.__version__,
                 datetime.date.today().isoformat()]
            )  # fmt: skip
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()

"""What the Lightning path costs over a bare PyTorch loop of the same model.

    python experiments/benchmarks/lightning_overhead.py [--arch tnl] [--write]

Question: how much longer does a step take through `TrainingModule`, the Trainer and our callbacks
(recorder, guard, checkpoints, status) than a loop of forward, backward, clip and AdamW?
Method: both train the largest quickstart rung with one thread on the same batches. They run in
turn, a block of steps each, and each block goes on where the last one stopped; the ratio of a pair
is one sample, the median over pairs is the result. Two clocks are read: wall time, and the CPU time
of the one thread that trains, which a busy machine disturbs less but which does not see waits for
the disk. The Lightning side writes a run record to a temporary directory, as `linscale run` does;
what `Trainer.fit` does before the first step is left out, since it comes once a segment.
Expected: at most 1.05.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import torch

from experiments.quickstart import runs
from models.config import ARCHS, Arch
from models.language_model import LanguageModel, build
from scaling.config.run import RunConfig
from scaling.config.schedule import learning_rate, segments
from scaling.data.loader import Batch, DataModule
from scaling.data.prepare import prepare
from scaling.record.environment import cpu_name
from scaling.training.optim import adamw
from scaling.training.train import train

RESULTS = Path(__file__).parents[1] / "results" / "lightning_overhead.csv"
STEPS = 5
"""Optimizer steps of a block."""


def config_of(arch: Arch, steps: int) -> RunConfig:
    """The largest quickstart rung, as one constant-rate segment without an end in sight."""
    rung = max((r for r in runs() if r.model.arch == arch), key=lambda r: r.model.dim)
    return rung.override(
        [
            "schedule.kind=constant",
            "schedule.warmup_tokens=0",
            "budget.horizons=()",
            f"budget.tokens={steps * rung.tokens_per_step}",
            "parallel.threads=1",
        ]
    )


Times = tuple[float, float]
"""Wall and CPU seconds."""


def now() -> Times:
    """Wall clock and CPU time of this thread."""
    return time.perf_counter(), time.thread_time()


def since(start: Times) -> Times:
    """Seconds since `start` on both clocks."""
    wall, cpu = now()
    return wall - start[0], cpu - start[1]


class Turns:
    """Lets two threads train in turn; a stop event, so that it is asked after every step."""

    def __init__(self) -> None:
        self.steps = 0
        self.started = (0.0, 0.0)
        self.finished = False
        self.samples: list[Times] = []
        self.mine, self.theirs = threading.Event(), threading.Event()

    def is_set(self) -> bool:
        """Called by the runtime after each optimizer step."""
        if self.steps and self.steps % STEPS == 0:
            if self.started[0]:
                self.samples.append(since(self.started))
            self.theirs.set()
            self.mine.wait()
            self.mine.clear()
            self.started = now()
        self.steps += 1
        return self.finished


def bare_block(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Batch],
    config: RunConfig,
    first: int,
) -> Times:
    """Seconds of one block of a plain loop."""
    segment = segments(config)[0]
    start = now()
    for step in range(first, first + STEPS):
        tokens, targets = next(batches)
        optimizer.zero_grad()
        loss = model.loss(tokens, targets).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, segment, step)
        loss.item()  # a plain loop prints its loss as well
        optimizer.step()
    return since(start)


def measure(arch: Arch, pairs: int) -> tuple[list[Times], list[Times]]:
    """Seconds of blocks through Lightning and of bare blocks, in pairs."""
    torch.set_num_threads(1)
    config = config_of(arch, STEPS * (pairs + 4))
    turns = Turns()
    with tempfile.TemporaryDirectory() as folder:
        runner = threading.Thread(
            target=train, args=(config, folder), kwargs={"stop_event": turns}, daemon=True
        )
        runner.start()
        turns.theirs.wait()
        turns.theirs.clear()
        torch.manual_seed(0)
        model = build(config.model)
        optimizer = adamw(model, config.optim)
        batches = iter(DataModule(config, prepare(config.data)).train_dataloader())
        bare_block(model, optimizer, batches, config, 0)
        bare: list[Times] = []
        for block in range(1, pairs + 1):
            turns.mine.set()
            turns.theirs.wait()
            turns.theirs.clear()
            bare.append(bare_block(model, optimizer, batches, config, block * STEPS))
        turns.finished = True
        turns.mine.set()
        runner.join()
    return turns.samples, bare


def main() -> None:
    """Print the ratios; `--write` keeps them as the dated result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--arch", choices=ARCHS, nargs="*", default=["llama", "tnl"])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for arch in arguments.arch:
        lightning, bare = measure(arch, arguments.pairs)
        for index, clock in enumerate(("wall", "cpu")):
            pair = [[times[index] / STEPS for times in side] for side in (lightning, bare)]
            ratios = sorted(a / b for a, b in zip(*pair, strict=True))
            ratio = statistics.median(ratios)
            low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
            ms = [1000 * statistics.median(side) for side in pair]
            print(
                f"{arch}, {clock} time: {ms[0]:.1f} ms a step through Lightning, {ms[1]:.1f} ms "
                f"bare, ratio {ratio:.3f} (quartiles {low:.3f} to {high:.3f}, {len(ratios)} pairs)",
                flush=True,
            )
            rows.append(
                {
                    "date": date.today().isoformat(),
                    "arch": arch,
                    "clock": clock,
                    "lightning_ms": round(ms[0], 2),
                    "bare_ms": round(ms[1], 2),
                    "ratio": round(ratio, 4),
                    "ratio_q1": round(low, 4),
                    "ratio_q3": round(high, 4),
                    "pairs": len(ratios),
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

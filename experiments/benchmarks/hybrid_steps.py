"""Does a hybrid's training step cost what its layers cost?

    python -m experiments.benchmarks.hybrid_steps [--repeats 9] [--width 128]

Question: is a step of a hybrid at most 3 % dearer than the mean of its pure stacks' steps, weighted
by the layers that it has of each? Norms, channel mixers and stem are the base's in all stacks.
Method: one step of forward, loss, backward and fused AdamW of each stack, in turns, one thread,
seconds of the processor; a repeat gives one ratio a pattern, the result is the median.

Prints the table and writes results/DATE-hybrid-steps.md beside this file.
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from models.config import Arch, toy_config
from models.language_model import build
from scaling.record.environment import cpu_name

RESULTS = Path(__file__).parent / "results"
LAYERS, BATCH, LENGTH = 8, 8, 256
PATTERNS: tuple[tuple[Arch, str, dict[str, float]], ...] = (
    ("hgrn2", "hgrn2*3+llama", {"hgrn2": 0.75, "llama": 0.25}),
    ("hgrn2", "hgrn2*7+llama", {"hgrn2": 0.875, "llama": 0.125}),
    ("gated_deltanet", "gated_deltanet*3+llama", {"gated_deltanet": 0.75, "llama": 0.25}),
    ("tnl", "tnl+llama", {"tnl": 0.5, "llama": 0.5}),
)
"""Base, pattern and the share of layers of each kind."""


def stack(base: Arch, mixers: str, width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model of a pattern, and its optimizer."""
    torch.manual_seed(0)
    config = toy_config(base, width, vocab_size=257, layers=LAYERS)
    model = build(config if mixers == base else config.replace(mixers=mixers))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


def seconds(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """Of one step."""
    tokens = torch.randint(0, 257, (BATCH, LENGTH + 1))
    start = time.process_time()
    model.loss(tokens[:, :-1], tokens[:, 1:]).mean().backward()  # pyright: ignore
    optimizer.step()
    optimizer.zero_grad()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--width", type=int, default=128)
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = dict.fromkeys(
        (base, mixers) for base, pattern, shares in PATTERNS for mixers in (pattern, *shares)
    )
    stacks = {name: stack(*name, args.width) for name in names}
    taken: dict[tuple[str, str], list[float]] = {name: [] for name in stacks}
    for repeat in range(args.repeats + 1):  # the first warms up
        for name, (model, optimizer) in stacks.items():
            found = seconds(model, optimizer)
            if repeat:
                taken[name].append(found)
    rows: list[str] = []
    for base, pattern, shares in PATTERNS:
        means = [
            sum(share * taken[base, kind][i] for kind, share in shares.items())
            for i in range(args.repeats)
        ]
        ratios = sorted(a / b for a, b in zip(taken[base, pattern], means, strict=True))
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        pure = ", ".join(
            f"{kind} {1e3 * statistics.median(taken[base, kind]):.0f}" for kind in shares
        )
        rows.append(
            f"| {pattern} | {1e3 * statistics.median(taken[base, pattern]):.0f} | {pure} | "
            f"{statistics.median(ratios):.3f} ({low:.3f}-{high:.3f}) |"
        )
    today = datetime.date.today().isoformat()
    lines = [
        f"# Training steps of hybrids on the CPU, {today}",
        "",
        f"- machine: {cpu_name()}, 1 thread, torch {torch.__version__}",
        f"- {LAYERS} layers of width {args.width}, {BATCH} sequences of {LENGTH} tokens, float32; "
        f"{args.repeats} repeats, medians and quartiles; load {os.getloadavg()[0]:.1f} at the end",
        "",
        "| pattern | ms a step | pure stacks, ms | over the weighted mean |",
        "| --- | --- | --- | --- |",
        *rows,
    ]
    print("\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{today}-hybrid-steps.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()

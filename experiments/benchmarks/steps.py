"""Training steps on the CPU: by width, dtype and architecture, beside transformers' LLaMA.

    python -m experiments.benchmarks.steps [--threads 1] [--repeats 7] [--widths 64,128,256]

Question: how many tokens a second does each architecture train, what do the compiled kernels and
bfloat16 save, and is the softmax baseline at least as fast as the library's model of the same
configuration? A slow baseline would flatter every other architecture.
Method: toy models of 2048 tokens a step in sequences of 256; a block is forward, loss, backward and
fused AdamW for a few steps. Blocks of all contenders alternate, and the ratio within a repeat is
one sample, so that other work on the machine meets all of them. With one thread seconds are those
of the processor, which a busy machine disturbs least. The last model is wider and has a vocabulary
of 8192 words.
"before" is float32 with the kernels in PyTorch (`LINSCALE_CPU_KERNELS=torch`).

Prints the table and writes results/DATE-steps-N-threads.md beside this file.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from experiments.benchmarks.mixers import KINDS, running
from experiments.benchmarks.model_peers import llama_of_transformers
from models.config import ARCHS, ModelConfig, toy_config
from models.language_model import build
from scaling.record.environment import cpu_name

RESULTS = Path(__file__).parent / "results"
BATCH, LENGTH = 8, 256
PEER = "transformers"
Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model in training, and how its steps run."""

    kind: str
    """Kernels (`KINDS`), or the library."""
    bf16: bool
    model: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer


def contenders(config: ModelConfig) -> list[Contender]:
    """Ours with both kinds of kernels, and for LLaMA the library's, each in float32 and bf16."""
    torch.manual_seed(0)
    ours = build(config)
    made: list[tuple[str, nn.Module, Loss]] = [
        (kind, ours, lambda x: ours.loss(x[:, :-1], x[:, 1:]).mean()) for kind in KINDS
    ]
    if config.arch == "llama":
        peer = llama_of_transformers(config)
        counts = [sum(p.numel() for p in model.parameters()) for model in (ours, peer)]
        assert counts[0] == counts[1], f"the models differ: {counts[0]} and {counts[1]} parameters"

        def loss(x: Tensor) -> Tensor:
            # The labels are shifted already, as in every loop that prepares its targets.
            labels = x[:, 1:].contiguous()
            return peer(x[:, :-1], shift_labels=labels, labels=labels).loss

        made.append((PEER, peer, loss))
    return [
        Contender(
            kind=kind,
            bf16=bf16,
            model=model,
            loss=loss,
            optimizer=torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True),
        )
        for kind, model, loss in made
        for bf16 in (False, True)
    ]


def seconds(one: Contender, tokens: Tensor) -> float:
    """Of one optimizer step for each of `tokens` (steps, B, T + 1)."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    with running(one.kind if one.kind in KINDS else "auto"):
        for batch in tokens:
            with torch.autocast("cpu", torch.bfloat16, enabled=one.bf16):
                value = one.loss(batch)
            value.backward()
            one.optimizer.step()
            one.optimizer.zero_grad()
    return clock() - start


Times = dict[tuple[str, bool], list[float]]


def measure(config: ModelConfig, batch: int, length: int, repeats: int, steps: int) -> Times:
    """Seconds of blocks by (kind, bf16), one a repeat."""
    times: Times = {}
    rivals = contenders(config)
    for repeat in range(repeats + 1):  # the first warms up
        g = torch.Generator().manual_seed(repeat)
        shape = (steps, batch, length + 1)
        tokens = torch.randint(0, config.vocab_size, shape, generator=g)
        for one in rivals:
            taken = seconds(one, tokens)
            if repeat:
                times.setdefault((one.kind, one.bf16), []).append(taken)
    return times


def ratio(above: list[float], below: list[float]) -> str:
    """Median over repeats, with the quartiles."""
    ratios = sorted(a / b for a, b in zip(above, below, strict=True))
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    return f"{statistics.median(ratios):.2f} ({low:.2f}-{high:.2f})"


COLUMNS = (
    "width", "model", "before tok/s", "compiled tok/s", "compiled bf16 tok/s", "compiled / before",
    "compiled bf16 / before", "fp32 / transformers", "bf16 / transformers",
)  # fmt: skip


def row(config: ModelConfig, times: Times, tokens: int) -> list[str]:
    """A line of the table."""
    before, plain, bf16 = times["torch", False], times["native", False], times["native", True]
    peers = ["", ""]
    if (PEER, False) in times:
        peers = [ratio(times[PEER, False], plain), ratio(times[PEER, True], bf16)]
    speeds = [f"{tokens / statistics.median(x):.0f}" for x in (before, plain, bf16)]
    return [
        str(config.dim), config.arch, *speeds, ratio(before, plain), ratio(before, bf16), *peers
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Training steps on the CPU.")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch (1)")
    parser.add_argument("--repeats", type=int, default=7, help="repeats (7)")
    parser.add_argument("--steps", type=int, default=2, help="steps of a block (2)")
    parser.add_argument("--widths", default="64,128,256", help="widths of the toy models")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cases = [
        (toy_config(arch, int(width), vocab_size=257), BATCH, LENGTH)
        for width in args.widths.split(",")
        for arch in ARCHS
    ]
    cases.append((toy_config("llama", 384, vocab_size=8192, layers=4, head_dim=64), 1, 512))
    rows: list[list[str]] = []
    for config, batch, length in cases:
        times = measure(config, batch, length, args.repeats, args.steps)
        rows.append(row(config, times, args.steps * batch * length))
        print("  ".join(rows[-1]), flush=True)
    table = Table(*COLUMNS)
    for line in rows:
        table.add_row(*line)
    Console().print(table)
    today = datetime.date.today().isoformat()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    lines = [
        f"# Training steps on the CPU, {today}",
        "",
        f"- machine: {cpu_name()}, {torch.get_num_threads()} threads",
        f"- versions: {versions}, Python {platform.python_version()}",
        f"- command: `python -m experiments.benchmarks.steps {' '.join(sys.argv[1:])}`",
        f"- load when it ended: {os.getloadavg()[0]:.1f} processes; ratios are medians over "
        "repeats, with the quartiles",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + " --- |" * len(COLUMNS),
        *("| " + " | ".join(line) + " |" for line in rows),
    ]
    path = RESULTS / f"{today}-steps-{args.threads}-threads.md"
    RESULTS.mkdir(exist_ok=True)
    path.write_text("\n".join([*lines, ""]))
    print(f"written: {path}")


if __name__ == "__main__":
    main()

"""Linearizing on the CPU: the cost of attention transfer, and of the hybrid attention.

    python -m experiments.benchmarks.linearize [--threads 2] [--repeats 7]

Questions: 1. How long does a step of LoLCATs' first stage take against a forward pass of the
teacher plus forward and backward pass of the student, which it does in one? 2. How many times
faster than softmax attention is the hybrid attention, forward and backward, at T = 1024 to 8192?
3. What is the peak of memory: all layers' graphs at once, layer by layer, and in groups?
Method: 1 and 2 take turns within a repeat, and a repeat gives one ratio each, so that other work on
the machine meets all of them; numbers are medians over repeats. In 1 the student's backward pass is
for the parameters that stage 1 trains, or for all. In 2 both are on the same q, k, v, (1, T, 8, 64)
in float32, with gradients of q, k, v and of what the hybrid learns; window 64, terraced. 3 counts
the bytes of live tensors exactly (`scaling.system.live_memory`).
Expected: 1. at most 1.5; 2. at least 2 at T = 4096; 3. the weights and one layer's activations.

Prints the tables and writes results/DATE-linearize-N-threads.md beside this file.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from models.architectures.lolcats import LoLCATs
from models.config import ModelConfig
from models.language_model import LanguageModel, build
from models.layers import Span, make_span
from models.linearize.lolcats import HybridAttention
from models.linearize.surgery import linearize
from models.linearize.transfer import (
    attention_transfer_loss,
    freeze_for_transfer,
    layer_losses,
    let_learn,
)
from scaling.record.environment import cpu_name
from scaling.system.live_memory import LiveBytes

RESULTS = Path(__file__).parent / "results"
LENGTHS = (1024, 2048, 4096, 8192)
CONFIG = ModelConfig(arch="llama", vocab_size=256, dim=512, layers=4, heads=8, glu_dim=1376)


def student() -> LanguageModel:
    """Fresh weights: costs do not depend on them."""
    torch.manual_seed(0)
    return linearize(build(CONFIG), LoLCATs())


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def turns(work: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each contender in every repeat; they take turns, and the first repeat warms up."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(repeats + 1):
        for name, function in work.items():
            taken = seconds(function)
            if repeat:
                times[name].append(taken)
    return times


def ratio(above: list[float], *below: list[float]) -> float:
    """Median over repeats of a time against the sum of others."""
    return statistics.median(a / sum(rest) for a, *rest in zip(above, *below, strict=True))


def stage_one(repeats: int) -> list[list[str]]:
    """Times of a step of 1024 tokens."""
    model = student()
    tokens = torch.randint(0, 256, (1, 1025))

    def transfer() -> None:
        freeze_for_transfer(model)
        for _, loss in layer_losses(model, tokens[:, :-1]):
            loss.backward()

    def forward_and_backward() -> None:
        model.loss(tokens[:, :-1], tokens[:, 1:]).mean().backward()

    def of_maps() -> None:
        freeze_for_transfer(model)
        forward_and_backward()

    def of_all() -> None:
        model.requires_grad_(True)
        forward_and_backward()

    teacher = build(CONFIG)

    @torch.no_grad()
    def ahead() -> None:
        teacher(tokens[:, :-1])

    times = turns({"transfer": transfer, "teacher": ahead, "maps": of_maps, "all": of_all}, repeats)
    rows = {
        "attention transfer": times["transfer"],
        "teacher, forward": times["teacher"],
        "student, forward and backward for what stage 1 trains": times["maps"],
        "student, forward and backward for all parameters": times["all"],
    }
    shown = [[name, f"{statistics.median(t) * 1e3:.0f} ms"] for name, t in rows.items()]
    for name, part in (("what stage 1 trains", "maps"), ("all parameters", "all")):
        value = ratio(times["transfer"], times["teacher"], times[part])
        shown.append([f"transfer / (teacher + student for {name})", f"{value:.2f}"])
    return shown


def mixers(repeats: int) -> list[list[str]]:
    """Hybrid attention against softmax attention, by length."""
    mixer = cast(HybridAttention, student().blocks[0].mixer)
    rows = []
    for length in LENGTHS:
        q, k, v = (torch.randn(1, length, 8, 64).requires_grad_() for _ in range(3))
        grad = torch.randn(1, length, 8, 64)
        span = make_span(torch.zeros(1, length), None, None, False)

        work = {
            "hybrid": _hybrid(mixer, (q, k, v), span, grad),
            "softmax": _softmax(mixer, (q, k, v), grad),
        }
        count = max(3, repeats * 4096 // max(length, 4096))
        times = turns(work, count)
        rows.append(
            [
                f"{length}",
                *(f"{statistics.median(times[n]) * 1e3:.0f}" for n in ("softmax", "hybrid")),
                f"{ratio(times['softmax'], times['hybrid']):.2f}x",
            ]
        )
    return rows


Inputs = tuple[Tensor, Tensor, Tensor]


def _hybrid(mixer: HybridAttention, qkv: Inputs, span: Span, grad: Tensor) -> Callable[[], object]:
    wanted = [*qkv, *let_learn(mixer)]
    return lambda: torch.autograd.grad(mixer.attend(*qkv, span)[0], wanted, grad)


def _softmax(mixer: HybridAttention, qkv: Inputs, grad: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(mixer._softmax(*qkv, None), qkv, grad)


def peaks() -> list[list[str]]:
    """Peak of live tensors in one step of 1024 tokens, MiB."""
    rows = []

    def measure(name: str, work: Callable[[LanguageModel, Tensor], object]) -> None:
        model = student()
        learning = freeze_for_transfer(model)
        for parameter in learning:
            parameter.grad = torch.zeros_like(parameter)
        tokens = torch.randint(0, 256, (1, 1024))
        weights = [*model.parameters(), *(cast(Tensor, p.grad) for p in learning)]
        with LiveBytes(*weights) as live:
            before = live.live
            work(model, tokens)
        beside = (live.peak - before) / 2**20
        rows.append([name, f"{before / 2**20:.0f}", f"{beside:.0f}", f"{live.peak / 2**20:.0f}"])

    def one_by_one(model: LanguageModel, tokens: Tensor) -> None:
        for _, loss in layer_losses(model, tokens):
            loss.backward()

    def at_once(model: LanguageModel, tokens: Tensor) -> None:
        attention_transfer_loss(model, tokens).sum().backward()

    def first_alone(model: LanguageModel, tokens: Tensor) -> None:
        _, loss = next(layer_losses(model, tokens))
        loss.backward()

    @torch.no_grad()
    def teacher(model: LanguageModel, tokens: Tensor) -> None:
        attention_transfer_loss(model, tokens)

    measure("losses without gradients", teacher)
    measure("one layer alone", first_alone)
    measure("layer by layer", one_by_one)
    measure("all layers' graphs at once", at_once)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Linearizing on the CPU.")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (2)")
    parser.add_argument("--repeats", type=int, default=7, help="repeats (7)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shape = f"d={CONFIG.dim}, {CONFIG.layers} layers, float32, {args.threads} threads"
    tables = [
        (f"A step of 1024 tokens, {shape}", ["work", "median"], stage_one(args.repeats)),
        (
            f"Attention alone, forward and backward, B=1, H=8, d=64, window 64, float32, "
            f"{args.threads} threads",
            ["T", "softmax ms", "hybrid ms", "speed"],
            mixers(args.repeats),
        ),
        (
            f"Peak of live tensors, a step of 1024 tokens, {shape}",
            ["work", "weights and gradients MiB", "beside them MiB", "peak MiB"],
            peaks(),
        ),
    ]
    console = Console()
    for title, columns, rows in tables:
        table = Table(*columns, title=title)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    today = datetime.date.today().isoformat()
    lines = [
        f"# Linearizing on the CPU, {today}",
        "",
        f"- machine: {cpu_name()}, {torch.get_num_threads()} threads",
        f"- versions: torch {torch.__version__}, Python {platform.python_version()}",
        f"- command: `python -m experiments.benchmarks.linearize {' '.join(sys.argv[1:])}`",
    ]
    for title, columns, rows in tables:
        lines += ["", f"## {title}", "", "| " + " | ".join(columns) + " |"]
        lines += ["|" + " --- |" * len(columns)]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
    path = RESULTS / f"{today}-linearize-{args.threads}-threads.md"
    RESULTS.mkdir(exist_ok=True)
    path.write_text("\n".join([*lines, ""]))
    console.print(f"written: {path}")


if __name__ == "__main__":
    main()

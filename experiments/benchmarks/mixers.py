"""Token mixers alone on the CPU: linear attention against causal softmax attention.

    python -m experiments.benchmarks.mixers [--threads 2] [--batch 1] [--repeats 9]

Question: how many times faster than PyTorch's causal `scaled_dot_product_attention` is each form
of `models.kernels` at T = 2048, H = 8, d = 64 in float32, forward and backward, and how does that
grow with T?
Method: inputs are (B, T, H, d) as a model has them, and all gradients are taken (for a decay a head
those of q, k and v: slopes are constants in TNL). The contenders take turns within a repeat, and a
repeat gives one ratio each, so that other work on the machine meets all of them; times and ratios
are medians over repeats. The floor is the matrix products of the chunked form at the rate of
`torch.bmm` on as many matrices of the same size, measured in the same run.
Expected: at least 3 for no decay and per-head decay and at least 2 for per-channel decay at
T = 2048, and two to four times that at T = 8192.

Prints the tables and writes results/DATE-mixers-N-threads.md beside this file.
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

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from models.kernels import cosine_attention, hgrn2_attention, linear_attention
from models.kernels.chunked import CHUNK
from scaling.record.environment import cpu_name

RESULTS = Path(__file__).parent / "results"
HEADS, DIM = 8, 64
LENGTHS = (2048, 4096, 8192)

Contender = tuple[Callable[..., Tensor], list[Tensor]]
"""A function to o, (B, T, H, d), and its arguments, leaves where gradients are wanted."""


def softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention in the layout that a model's projections give."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def contenders(batch: int, length: int) -> dict[str, Contender]:
    g = torch.Generator().manual_seed(0)

    def leaf() -> Tensor:
        return torch.randn(batch, length, HEADS, DIM, generator=g).requires_grad_()

    qkv = [leaf(), leaf(), leaf()]
    slopes = -(2.0 ** -torch.arange(1, HEADS + 1))
    decay_t = F.logsigmoid(torch.randn(batch, length, HEADS, generator=g)).requires_grad_()
    channel = F.logsigmoid(leaf().detach()).requires_grad_()
    vector = torch.full((HEADS, DIM), 0.3).requires_grad_()

    def linear(*inputs: Tensor) -> Tensor:
        return linear_attention(*inputs)[0]

    return {
        "softmax (SDPA)": (softmax, qkv),
        "no decay": (linear, qkv),
        "decay per head": (linear, [*qkv, slopes]),
        "decay per token and head": (linear, [*qkv, decay_t]),
        "decay per channel": (linear, [*qkv, channel]),
        "HGRN2 from gate logits": (lambda *x: hgrn2_attention(*x)[0], [*qkv, vector]),
        "cosine re-weighting (key dim 2 d)": (lambda *x: cosine_attention(*x)[0], [*qkv, vector]),
    }


def milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def measure(batch: int, length: int, repeats: int) -> dict[str, tuple[float, float, float]]:
    """Median forward time, forward + backward time, and ratio of softmax's to the latter."""
    named = contenders(batch, length)
    do = torch.randn(batch, length, HEADS, DIM)
    forward: dict[str, list[float]] = {name: [] for name in named}
    both: dict[str, list[float]] = {name: [] for name in named}
    for repeat in range(repeats + 1):  # the first warms up
        for name, (function, inputs) in named.items():
            leaves = [x for x in inputs if x.requires_grad]

            def train(
                function: Callable[..., Tensor] = function,
                inputs: list[Tensor] = inputs,
                leaves: list[Tensor] = leaves,
            ) -> object:
                return torch.autograd.grad(function(*inputs), leaves, do)

            with torch.no_grad():
                ahead = milliseconds(lambda f=function, x=inputs: f(*x))
            total = milliseconds(train)
            if repeat:
                forward[name].append(ahead)
                both[name].append(total)
    base = both["softmax (SDPA)"]
    return {
        name: (
            statistics.median(forward[name]),
            statistics.median(both[name]),
            statistics.median(a / b for a, b in zip(base, both[name], strict=True)),
        )
        for name in named
    }


def floors(batch: int, length: int) -> dict[str, float]:
    """Milliseconds of the matrix products of forward and backward alone."""
    count = batch * HEADS * length // CHUNK
    a, b = torch.randn(2, count, CHUNK, DIM)
    product = statistics.median(milliseconds(lambda: torch.bmm(a, b.mT)) for _ in range(15))
    flops = 2 * count * CHUNK * CHUNK * DIM / product  # per millisecond
    tokens = batch * HEADS * length
    state = (4 + 8) * DIM * DIM * tokens
    whole = (2 + 5) * 2 * CHUNK * DIM * tokens  # all pairs of a chunk
    levels = (2 + 5) * (CHUNK - 1) * DIM * tokens  # pairs s < t alone
    return {"pairs by chunks": (state + whole) / flops, "pairs by levels": (state + levels) / flops}


def main() -> None:
    parser = argparse.ArgumentParser(description="Token mixers alone on the CPU.")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (2)")
    parser.add_argument("--batch", type=int, default=1, help="sequences (1)")
    parser.add_argument("--repeats", type=int, default=9, help="repeats at T = 2048 (9)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    results = {
        length: measure(args.batch, length, max(3, args.repeats * LENGTHS[0] // length))
        for length in LENGTHS
    }
    floor = floors(args.batch, LENGTHS[0])
    speed = [
        [name, f"{ahead:.1f}", f"{total:.1f}", f"{ratio:.1f}x"]
        for name, (ahead, total, ratio) in results[LENGTHS[0]].items()
    ]
    trend = [
        [name, *(f"{results[length][name][2]:.1f}x" for length in LENGTHS)]
        for name in results[LENGTHS[0]]
    ]
    shape = f"B={args.batch}, H={HEADS}, d={DIM}, float32, {args.threads} threads"
    tables = [
        (
            f"T={LENGTHS[0]}, {shape}",
            ["mixer", "forward ms", "forward + backward ms", "speed"],
            speed,
        ),
        (
            f"Speed against softmax, forward and backward, {shape}",
            ["mixer", *(f"T={length}" for length in LENGTHS)],
            trend,
        ),
    ]
    notes = (
        f"Matrix products alone, forward and backward at T={LENGTHS[0]}: "
        + ", ".join(f"{value:.1f} ms ({name})" for name, value in floor.items())
        + "."
    )
    console = Console()
    for title, columns, rows in tables:
        table = Table(*columns, title=title)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print(notes)

    today = datetime.date.today().isoformat()
    lines = [
        f"# Token mixers on the CPU, {today}",
        "",
        f"- machine: {cpu_name()}, {torch.get_num_threads()} threads",
        f"- versions: torch {torch.__version__}, Python {platform.python_version()}",
        f"- command: `python -m experiments.benchmarks.mixers {' '.join(sys.argv[1:])}`",
    ]
    for title, columns, rows in tables:
        lines += ["", f"## {title}", "", "| " + " | ".join(columns) + " |"]
        lines += ["|" + " --- |" * len(columns)]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
    path = RESULTS / f"{today}-mixers-{args.threads}-threads.md"
    RESULTS.mkdir(exist_ok=True)
    path.write_text("\n".join([*lines, "", notes, ""]))
    console.print(
        f"written: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}"
    )


if __name__ == "__main__":
    main()

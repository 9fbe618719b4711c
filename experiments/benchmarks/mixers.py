"""Token mixers alone on the CPU: linear attention and the delta rule against softmax attention.

    python -m experiments.benchmarks.mixers [--threads 1] [--batch 1] [--repeats 9]

Question: how many times faster than causal softmax attention is each form of `models.kernels` at
T = 2048, H = 8, d = 64 in float32, forward and backward, how does that grow with T, and what do the
compiled kernels save over PyTorch's forms?
Method: inputs are (B, T, H, d) as a model has them, and all gradients are taken (for a decay a head
those of q, k and v: slopes are constants in TNL). Every form runs compiled and in PyTorch
(`LINSCALE_CPU_KERNELS`), softmax attention too: there PyTorch's is `scaled_dot_product_attention`.
All take turns within a repeat, and a repeat gives one ratio each, so that other work on the machine
meets all of them; times and ratios are medians over repeats. Ratios are to the compiled softmax
attention, the faster of the two.
Floor: the multiplications and additions of the recurrence, 12 K V a token and head, at the rate
of a product of two matrices of 1024 x 1024, measured in the same run.

Prints the tables and writes results/DATE-mixers-N-threads.md beside this file.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from models.kernels import cosine_attention, delta_attention, hgrn2_attention, linear_attention
from models.kernels.attention import causal_attention
from models.kernels.native.library import VARIABLE
from scaling.record.environment import cpu_name

RESULTS = Path(__file__).parent / "results"
HEADS, DIM = 8, 64
LENGTHS = (2048, 4096, 8192)
SMALL_DIMS = (8, 16, 32, 64)
KINDS = ("native", "torch")
BASE = "softmax attention"

Contender = tuple[Callable[..., Tensor], list[Tensor]]
"""A function to o, (B, T, H, d), and its arguments, leaves where gradients are wanted."""


def contenders(batch: int, length: int) -> dict[str, Contender]:
    g = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(batch, length, HEADS, *shape, generator=g).requires_grad_()

    def decay(*shape: int) -> Tensor:
        return F.logsigmoid(leaf(*shape).detach()).requires_grad_()

    qkv = [leaf(DIM), leaf(DIM), leaf(DIM)]
    keys = F.normalize(qkv[1].detach(), dim=-1).requires_grad_()
    share = torch.rand(batch, length, HEADS, generator=g).requires_grad_()
    delta = [qkv[0], keys, qkv[2], share]
    slopes = -(2.0 ** -torch.arange(1, HEADS + 1))
    vector = torch.full((HEADS, DIM), 0.3).requires_grad_()

    def first(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
        return lambda *inputs: function(*inputs)[0]

    linear, rule = first(linear_attention), first(delta_attention)
    return {
        BASE: (causal_attention, qkv),
        "no decay": (linear, qkv),
        "decay per head": (linear, [*qkv, slopes]),
        "decay per token and head": (linear, [*qkv, decay()]),
        "decay per channel": (linear, [*qkv, decay(DIM)]),
        "HGRN2 from gate logits": (first(hgrn2_attention), [*qkv, vector]),
        "cosine form (key dim 2 d)": (first(cosine_attention), [*qkv, vector]),
        "DeltaNet": (rule, delta),
        "Gated DeltaNet": (rule, [*delta, decay()]),
        "Kimi Delta Attention": (rule, [*delta, decay(DIM)]),
    }


@contextmanager
def running(kind: str) -> Iterator[None]:
    """Within it the CPU's kernels are of a kind, `native` or `torch`."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = kind
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def measure(batch: int, length: int, repeats: int) -> dict[tuple[str, str], list[float]]:
    """Times of forward and backward by (form, kind), one a repeat."""
    named = contenders(batch, length)
    do = torch.randn(batch, length, HEADS, DIM)
    times: dict[tuple[str, str], list[float]] = {}
    for repeat in range(repeats + 1):  # the first warms up
        for name, (function, inputs) in named.items():
            leaves = [x for x in inputs if x.requires_grad]
            for kind in KINDS:

                def train(
                    function: Callable[..., Tensor] = function,
                    inputs: list[Tensor] = inputs,
                    leaves: list[Tensor] = leaves,
                ) -> object:
                    return torch.autograd.grad(function(*inputs), leaves, do)

                with running(kind):
                    taken = milliseconds(train)
                if repeat:
                    times.setdefault((name, kind), []).append(taken)
    return times


def ratio(above: list[float], below: list[float]) -> str:
    """Median over repeats, with the extremes."""
    ratios = sorted(a / b for a, b in zip(above, below, strict=True))
    return f"{statistics.median(ratios):.1f}x ({ratios[0]:.1f}-{ratios[-1]:.1f})"


def by_head_dim(repeats: int) -> list[list[str]]:
    """Softmax attention of small models, 8 sequences of 256 tokens and 4 heads: compiled over
    PyTorch's by head dimension, in float32 and in bf16."""
    rows: list[list[str]] = []
    for dim in SMALL_DIMS:
        cells = [str(dim)]
        for dtype in (torch.float32, torch.bfloat16):
            q, k, v, do = (x.to(dtype) for x in torch.randn(4, 8, 256, 4, dim))
            leaves = [x.requires_grad_() for x in (q, k, v)]
            times: dict[str, list[float]] = {kind: [] for kind in KINDS}
            for repeat in range(repeats + 1):
                for kind in KINDS:
                    with running(kind):
                        taken = milliseconds(
                            lambda x=leaves, d=do: torch.autograd.grad(causal_attention(*x), x, d)
                        )
                    if repeat:
                        times[kind].append(taken)
            cells.append(ratio(times["torch"], times["native"]))
        rows.append(cells)
    return rows


def floor(batch: int, length: int) -> tuple[float, float]:
    """GFLOP/s of a large product, and milliseconds of the recurrence's FLOPs at that rate."""
    a, b = torch.randn(2, 1024, 1024)
    taken = statistics.median(milliseconds(lambda: torch.mm(a, b)) for _ in range(9))
    rate = 2 * 1024**3 / taken / 1e6  # GFLOP/s
    return rate, 12 * DIM * DIM * batch * length * HEADS / rate / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description="Token mixers alone on the CPU.")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch (1)")
    parser.add_argument("--batch", type=int, default=1, help="sequences (1)")
    parser.add_argument("--repeats", type=int, default=9, help="repeats at T = 2048 (9)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    results = {
        length: measure(args.batch, length, max(3, args.repeats * LENGTHS[0] // length))
        for length in LENGTHS
    }
    names = list(dict.fromkeys(name for name, _ in results[LENGTHS[0]]))
    near = results[LENGTHS[0]]
    speed = [
        [
            name,
            *(f"{statistics.median(near[name, kind]):.1f}" for kind in KINDS),
            ratio(near[name, "torch"], near[name, "native"]),
            ratio(near[BASE, "native"], near[name, "native"]),
        ]
        for name in names
    ]
    trend = [
        [name, *(ratio(results[t][BASE, "native"], results[t][name, "native"]) for t in LENGTHS)]
        for name in names
    ]
    shape = f"B={args.batch}, H={HEADS}, d={DIM}, float32, {args.threads} threads"
    tables = [
        (
            f"Forward and backward, T={LENGTHS[0]}, {shape}",
            ["mixer", "compiled ms", "PyTorch ms", "compiled is faster by", "than softmax by"],
            speed,
        ),
        (
            f"Compiled, against compiled softmax attention, {shape}",
            ["mixer", *(f"T={length}" for length in LENGTHS)],
            trend,
        ),
        (
            "Softmax attention, B=8, T=256, H=4: compiled is faster than PyTorch by",
            ["head dimension", "float32", "bf16"],
            by_head_dim(args.repeats),
        ),
    ]
    rate, least = floor(args.batch, LENGTHS[0])
    notes = (
        f"Floor: 12 K V FLOPs a token and head at {rate:.0f} GFLOP/s (a product of 1024 x 1024 "
        f"matrices) take {least:.1f} ms at T={LENGTHS[0]}. Ratios are medians over repeats, "
        "with the extremes."
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
        f"- load when it ended: {os.getloadavg()[0]:.1f} processes",
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

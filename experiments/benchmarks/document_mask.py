"""What `data.document_mask` costs a training step: documents that do not see each other.

    python -m experiments.benchmarks.document_mask [--length 1024] [--mean 256] [--repeats 5]

Question: how much longer or shorter do forward and backward pass take where the documents of a
sequence do not see each other, for each architecture on the CPU?
Method: one small model of each architecture, the same tokens with and without boundaries. Documents
have lengths drawn from an exponential distribution. Both take turns; a repeat gives one ratio, the
result is their median. The clock is the CPU time of the one thread that works, which other work on
the machine disturbs least.
Expected: linear models within a quarter. Softmax attention has a mask in the place of the kernel's
plain causal path, and leaves out the keys of earlier documents: about as long at these lengths.

Prints the table and writes results/DATE-document-mask.md beside this file.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from models.config import ARCHS, toy_config
from models.language_model import LanguageModel, build
from scaling.data.loader import Batch, to_batch
from scaling.record.environment import cpu_name
from scaling.training.loss import mean_loss

RESULTS = Path(__file__).parent / "results"
ROWS, END = 2, 0


def rows(length: int, mean: float) -> np.ndarray:
    """Tokens of `ROWS` sequences, of which `END` begins each document: (ROWS, length + 1)."""
    draw = np.random.default_rng(0)
    tokens = draw.integers(1, 256, size=(ROWS, length + 1))
    tokens[draw.random(tokens.shape) < 1 / mean] = END
    return tokens.astype(np.int64)


def seconds(model: LanguageModel, batch: Batch) -> float:
    """CPU time of a forward and backward pass."""
    start = time.thread_time()
    mean_loss(model, batch).backward()
    return time.thread_time() - start


def measure(arch: str, length: int, mean: float, repeats: int) -> tuple[float, float, float]:
    """Milliseconds without and with boundaries, and the median ratio of pairs."""
    torch.manual_seed(0)
    model = build(toy_config(arch, 128, vocab_size=256, layers=2, head_dim=64))
    tokens = rows(length, mean)
    plain, cut = to_batch(tokens), to_batch(tokens, END)
    pairs = [(seconds(model, plain), seconds(model, cut)) for _ in range(repeats + 1)][1:]
    return (
        1e3 * statistics.median(a for a, _ in pairs),
        1e3 * statistics.median(b for _, b in pairs),
        statistics.median(b / a for a, b in pairs),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="What data.document_mask costs a step.")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a sequence (1024)")
    parser.add_argument("--mean", type=float, default=256, help="tokens of a document (256)")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of passes (5)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    command = " ".join(["python -m experiments.benchmarks.document_mask", *sys.argv[1:]])
    shape = f"{ROWS} x {args.length} tokens, documents of {args.mean:g} on average"
    lines = [
        f"# data.document_mask on the CPU, {datetime.date.today().isoformat()}",
        "",
        f"- machine: {cpu_name()}, 1 thread; CPU time of that thread",
        f"- versions: torch {torch.__version__}, Python {platform.python_version()}",
        f"- command: `{command}`",
        f"- d = 128, 2 layers, {shape}",
        "",
        "| architecture | one sequence, ms | documents apart, ms | ratio |",
        "| --- | --- | --- | --- |",
    ]
    for arch in ARCHS:
        plain, cut, ratio = measure(arch, args.length, args.mean, args.repeats)
        lines.append(f"| {arch} | {plain:.0f} | {cut:.0f} | {ratio:.2f} |")
        print(lines[-1], flush=True)
    path = RESULTS / f"{datetime.date.today().isoformat()}-document-mask.md"
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    print(f"written: {path}")


if __name__ == "__main__":
    main()

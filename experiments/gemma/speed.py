"""Time and memory of linearizing a real model, as ratios, and how fast it decodes.

    python -m experiments.gemma.speed data/prose/essays.jsonl --model FILE.gguf

Seconds are of this process's CPU on one thread, so that a busy machine changes them little. One
block each, after a shorter one that warms up:

    transfer   a step of attention transfer of the student whose global layers alone are linear
    forward    the teacher's forward pass with its loss
    training   the student's forward and backward pass with low-rank additions, and its loss
    decoding   a token after a block, from the states of one and of eight sequences, with weights of
               16 bits and the additions merged, as a model is served; the fastest of several steps

Peak memory is of the whole process until then, the interpreter and weights of 32 bits among it,
beside the weights in 16 bits.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from experiments.gemma.rows import models
from experiments.gemma.text import Text
from models.language_model import LanguageModel
from models.linearize.lora import add_lora, merge_lora
from models.linearize.surgery import linearize
from models.linearize.transfer import freeze_for_transfer, layer_losses
from scaling.record.pretrained import load_pretrained

STEPS = 16
"""Tokens that are decoded; the first does not count."""
SEQUENCES = (1, 8)
"""That are decoded side by side."""


def seconds(run: Callable[[Tensor], object], block: Tensor) -> float:
    """CPU seconds of one call, after one on the block's beginning."""
    run(block[: max(len(block) // 8, 2)])
    start = time.process_time()
    run(block)
    return time.process_time() - start


def measure(teacher: LanguageModel, text: Text) -> dict[str, float]:
    """Seconds of each part, and ratios."""
    block = text.scoring(0)
    made = models(teacher.config, text.length, text.length, text.length)["globals"]
    student = linearize(teacher, made.options)
    found: dict[str, float] = {}
    weights = 2 * sum(p.numel() for p in teacher.parameters())

    def transfer(block: Tensor) -> None:
        for _, loss in layer_losses(student, block[None, :-1], at="residual"):
            loss.backward()

    @torch.no_grad()
    def forward(block: Tensor) -> None:
        teacher.loss(block[None, :-1], block[None, 1:])

    def training(block: Tensor) -> None:
        student.loss(block[None, :-1], block[None, 1:]).mean().backward()

    @torch.no_grad()
    def decode(model: LanguageModel, sequences: int) -> float:
        _, state = model.hidden(block[None, :-1], keep_state=True)
        state = pytree.tree_map_only(Tensor, lambda x: _repeat(x, sequences), state)
        state = model.reserve(state, STEPS)
        token, taken = block[-1:].repeat(sequences), list[float]()
        for _ in range(STEPS):
            start = time.process_time()
            _, state = model.step(token, state)
            taken.append(time.process_time() - start)
        return min(taken[1:])

    with torch.autocast("cpu", torch.bfloat16):
        freeze_for_transfer(student.train())
        found["transfer"] = seconds(transfer, block)
        found["transfer memory over weights"] = _peak() / weights
        found["forward"] = seconds(forward, block)
        add_lora(student)
        found["training"] = seconds(training, block)
        found["training memory over weights"] = _peak() / weights
    merge_lora(student)
    pair = {
        name: model.to(torch.bfloat16).eval()
        for name, model in (("teacher", teacher), ("student", student))
    }
    for n in SEQUENCES:
        both = {name: decode(model, n) for name, model in pair.items()}
        found |= {f"decoding {n}, {name}": value for name, value in both.items()}
        found[f"decoding {n}, teacher over student"] = both["teacher"] / both["student"]
    found["transfer over forward and training"] = found["transfer"] / (
        found["forward"] + found["training"]
    )
    return found


def _repeat(x: Tensor, times: int) -> Tensor:
    return x.repeat_interleave(times, 0) if x.dim() else x


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(given: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("text", type=Path, nargs="+", help="JSON-lines files of documents")
    parser.add_argument("--model", type=Path, required=True, help="GGUF file or folder")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a block")
    arguments = parser.parse_args(given)
    torch.set_num_threads(1)
    loaded = load_pretrained(arguments.model, dtype=torch.float32)
    text = Text(arguments.text, loaded.tokenizer, arguments.length)
    found = measure(loaded.model, text)
    print(json.dumps({name: round(value, 4) for name, value in found.items()}, indent=2))


if __name__ == "__main__":
    main()

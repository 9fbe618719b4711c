"""Prefill by length and a decoding step, plain and in a CUDA graph, of the four architectures.

python -m experiments.gpu.serving SIZE
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from experiments.benchmarks import kernels_gpu
from models import config as model_config
from models.config import ARCHS
from models.language_model import LanguageModel, State, build

LENGTHS = (128, 2048, 8192)
BATCH = 8


def prefill(model: LanguageModel, size: str, arch: str) -> Iterator[dict[str, Any]]:
    """Milliseconds to read a prompt."""
    for length in LENGTHS:
        tokens = torch.randint(model.config.vocab_size, (1, length), device=kernels_gpu.DEVICE)

        def read(tokens: Tensor = tokens) -> None:
            state = model.initial_state(1, device=tokens.device)
            model(tokens, state=state, return_state=True)

        low, middle, high = kernels_gpu.quantiles(read)
        yield {"part": "prefill", "size": size, "arch": arch, "tokens": length, "ms": middle,
               "p10": low, "p90": high}  # fmt: skip


def step(model: LanguageModel, size: str, arch: str) -> Iterator[dict[str, Any]]:
    """Milliseconds of one token of each of `BATCH` sequences."""
    device = torch.device(kernels_gpu.DEVICE)
    tokens = torch.randint(model.config.vocab_size, (BATCH,), device=device)
    state = model.initial_state(BATCH, device=device)
    _, state = model.step(tokens, state)
    row = {"part": "step", "size": size, "arch": arch, "batch": BATCH}
    low, middle, high = kernels_gpu.quantiles(lambda: model.step(tokens, state))
    yield row | {"graph": False, "ms": middle, "p10": low, "p90": high}
    if device.type == "cuda" and arch != "llama":  # whose state grows
        expected = model.step(tokens, state)[0]
        replay, logits = captured(model, tokens, state)
        replay()
        torch.cuda.synchronize()
        low, middle, high = kernels_gpu.quantiles(replay)
        equal = torch.equal(logits, expected)
        yield row | {"graph": True, "ms": middle, "p10": low, "p90": high, "right": equal}


def captured(
    model: LanguageModel, tokens: Tensor, state: State
) -> tuple[Callable[[], object], Tensor]:
    """A step in a CUDA graph, and the logits that a replay writes."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        model.step(tokens, state)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits, _ = model.step(tokens, state)
    return graph.replay, logits


@torch.no_grad()
def main(size: str) -> int:
    """Print a line of JSON for each result; 1 if one is wrong."""
    wrong = 0
    for arch in ARCHS:
        config = model_config.paper_config(arch, size)
        dtype = torch.bfloat16 if kernels_gpu.DEVICE == "cuda" else torch.float32
        model = build(config, device=torch.device(kernels_gpu.DEVICE), dtype=dtype)
        for part in (prefill, step):
            for row in part(model, size, arch):
                print(json.dumps(row), flush=True)
                wrong += not row.get("right", True)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

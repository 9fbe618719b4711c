"""The first minutes on a GPU: versions, and every operation against float64, repeated, poisoned.

python -m experiments.gpu.first versions | operations | repeats | small
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from models.kernels import launch, selfcheck
from models.kernels.tools.measuring import sample

DEVICE = "cuda"
REPEATS = 20
SHAPE = (2, 700, 4, 128)
"""Sequences, tokens, heads and head dimension of the repeats."""


def versions() -> Iterator[dict[str, Any]]:
    """Device, PyTorch, Triton, assembler, and what is known of them."""
    found = selfcheck.versions(torch.device(DEVICE, 0))
    notes = [f"{one.what}: {one.remedy}" for one in selfcheck.known(found["arch"], found)]
    yield {"part": "versions", **found, "known": notes}


def operations(
    tokens: int = selfcheck.TOKENS, dim: int = selfcheck.DIM
) -> Iterator[dict[str, Any]]:
    """Every mode, forward and backward in bfloat16, against float64."""
    errors = selfcheck.errors(torch.device(DEVICE), tokens, dim)
    for mode, error in errors.items():
        right = error <= selfcheck.LIMIT
        yield {"part": "operations", "mode": mode, "error": error, "right": right}


@contextmanager
def poisoned() -> Iterator[None]:
    """Fresh memory of `torch.empty` is NaN: what is left unwritten shows."""
    empty = torch.empty

    def filled(*args: Any, **kwargs: Any) -> Tensor:
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    torch.empty = filled
    try:
        yield
    finally:
        torch.empty = empty


def once(mode: str, packed: bool, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    """Outputs and gradients of one mode."""
    batch, tokens, heads, dim = SHAPE
    call, do, dstate = sample(mode, dtype, dim, dim, DEVICE, tokens, packed, batch, heads)
    kernels = launch.choose(call, "cuda")
    with poisoned():
        o, final, kept = kernels.forward(call)
        gradients = kernels.backward(call, kept, do, dstate, True)
    return [x for x in (o, final, *gradients) if x is not None]


def repeats() -> Iterator[dict[str, Any]]:
    """Twenty times the same bits, with nothing left unwritten."""
    for mode in launch.KERNELS:
        for packed in (False, True):
            expected = once(mode, packed)
            finite = all(bool(x.isfinite().all()) for x in expected)
            equal = all(
                torch.equal(x, y)
                for _ in range(REPEATS - 1)
                for x, y in zip(expected, once(mode, packed), strict=True)
            )
            yield {
                "part": "repeats", "mode": mode, "packed": packed, "finite": finite,
                "equal": equal, "right": finite and equal,
            }  # fmt: skip


def small() -> Iterator[dict[str, Any]]:
    """Small shapes, for compute-sanitizer, under which everything is slow."""
    yield from operations(tokens=150, dim=64)


PARTS = {"versions": versions, "operations": operations, "repeats": repeats, "small": small}


def main(part: str) -> int:
    """Print a line of JSON for each result; 1 if one is wrong."""
    wrong = 0
    for row in PARTS[part]():
        print(json.dumps(row), flush=True)
        wrong += not row.get("right", True)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

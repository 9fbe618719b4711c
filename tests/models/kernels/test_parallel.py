"""A sequence split over processes against the same sequence on one, in float64."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from models.kernels.api import cosine_attention, hgrn2_attention, linear_attention
from models.kernels.parallel import cosine_attention_parallel, linear_attention_parallel
from models.kernels.sequence import split_over
from tests.support.ranks import start

MODES = ("none", "head", "head_t", "channel", "gate", "cosine")
BATCH, LENGTH, HEADS, KEY, VALUE = 2, 24, 2, 3, 4


def arguments(mode: str, strong: float) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    shapes = {"head": (HEADS,), "head_t": (BATCH, LENGTH, HEADS)}
    key = 2 * KEY if mode == "cosine" else KEY
    named = {
        "q": normal(BATCH, LENGTH, HEADS, KEY),
        "k": normal(BATCH, LENGTH, HEADS, KEY),
        "v": normal(BATCH, LENGTH, HEADS, VALUE),
        "initial_state": normal(BATCH, HEADS, key, VALUE),
    }
    if mode == "cosine":
        named["theta"] = normal(HEADS, KEY)
    elif mode == "gate":  # strong: open or closed down to the lower bound
        named["gate_logits"] = named.pop("k") * (1 if strong == -0.1 else 30)
        named["lower_bound"] = 0.05 + 0.9 * torch.rand(HEADS, KEY, generator=g, dtype=torch.float64)
    elif mode != "none":
        shape = shapes.get(mode, (BATCH, LENGTH, HEADS, KEY))
        decay = -0.3 * torch.rand(shape, generator=g, dtype=torch.float64)
        named["decay"] = decay.masked_fill(torch.rand(shape, generator=g) < 0.1, strong)
    return {name: x.requires_grad_() for name, x in named.items()}


def weights() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return (
        torch.randn(BATCH, LENGTH, HEADS, VALUE, generator=g, dtype=torch.float64),
        torch.randn(VALUE, generator=g, dtype=torch.float64),
    )


def whole(mode: str, strong: float) -> dict[str, Tensor]:
    """Outputs and gradients on one process."""
    inputs = arguments(mode, strong)
    if mode == "cosine":
        o, state = cosine_attention(**inputs, position_offset=5)
    elif mode == "gate":
        o, state = hgrn2_attention(**inputs)
    else:
        o, state = linear_attention(**inputs)
    do, dstate = weights()
    loss = (o * do).sum() + (state * dstate).sum()
    grads = torch.autograd.grad(loss, list(inputs.values()))
    return {"o": o, "state": state, **dict(zip(inputs, grads, strict=True))}


def check(rank: int, ranks: int, mode: str, strong: float) -> None:
    """Rank's share of outputs and gradients equals the one process's."""
    bounds = [LENGTH * r // ranks for r in range(ranks + 1)]
    if mode != "cosine":  # unequal shares
        bounds[1:-1] = [b + 1 for b in bounds[1:-1]]
    rows = slice(bounds[rank], bounds[rank + 1])
    inputs = arguments(mode, strong)
    split: dict[str, Any] = {
        name: x[:, rows] if x.ndim >= 3 and name != "initial_state" else x
        for name, x in inputs.items()
    }
    if mode == "cosine":
        o, state = cosine_attention_parallel(**split, position_offset=5)
    elif mode == "gate":
        with split_over(dist.group.WORLD):  # as models call it
            o, state = hgrn2_attention(**split)
    else:
        o, state = linear_attention_parallel(**split)
    do, dstate = weights()
    loss = (o * do[:, rows]).sum()
    if rank == ranks - 1:
        loss = loss + (state * dstate).sum()
    grads = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
    expected = whole(mode, strong)
    torch.testing.assert_close(o, expected["o"][:, rows], rtol=1e-11, atol=1e-11)
    if rank == ranks - 1:
        torch.testing.assert_close(state, expected["state"], rtol=1e-11, atol=1e-11)
    for name, grad in zip(inputs, grads, strict=True):
        # Each rank has the gradient of its own tokens, or its tokens' part of a shared one.
        total = torch.zeros_like(inputs[name]) if grad is None else grad.clone()
        dist.all_reduce(total)
        torch.testing.assert_close(total, expected[name], rtol=1e-11, atol=1e-11, msg=name)


def worker(rank: int, ranks: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=ranks
    )
    try:
        for mode in MODES:
            for strong in (-0.1, -30.0, -torch.inf):
                check(rank, ranks, mode, strong)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, 4])
def test_split_over_processes(zygote: None, ranks: int, tmp_path: Path) -> None:
    """This file is the program of each process."""
    assert start("tests.models.kernels.test_parallel", [str(tmp_path)], ranks) == 0


def main() -> None:
    """Be one of the processes."""
    worker(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), Path(sys.argv[1]))


def test_needs_a_process_group() -> None:
    q = torch.zeros(1, 2, 1, 2)
    with pytest.raises(RuntimeError, match="init_process_group"):
        linear_attention_parallel(q, q, q)

"""The Triton kernels under DDP, FSDP2 and activation checkpointing: two gloo ranks are one process.

Each rank runs half a batch through the kernels in the interpreter. Losses and gradients, averaged
over the ranks, are compared with those of the whole batch on one process without either, and these
with the PyTorch kernels' in float64.
"""

from __future__ import annotations

import os
import runpy
import sys
from functools import cache
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock, patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from models import cosformer2
from models.checkpointing import Mode, checkpoint_blocks
from models.config import Arch, ModelConfig
from models.kernels import launch, operators
from models.kernels.triton.common import interpreted
from models.language_model import LanguageModel, build
from scaling.training import fsdp
from tests.support.ranks import start

pytestmark = pytest.mark.skipif(not interpreted(), reason="needs TRITON_INTERPRET=1")

RANKS = 2
TOKENS = 40
"""More than the recurrent kernel takes, so that models run the chunked ones."""
BACKEND, COSINE = launch.backend, cosformer2.cosine_attention
CASES: tuple[tuple[Arch, str, Mode], ...] = (
    ("tnl", "ddp", "block"),
    ("tnl", "fsdp", "selective"),
    ("hgrn2", "ddp", "selective"),
    ("hgrn2", "fsdp", "block"),
    ("cosformer2", "ddp", "selective"),
    ("cosformer2", "fsdp", "block"),
)


def cosine_operator(
    q: Tensor, k: Tensor, v: Tensor, theta: Tensor, state: None, cu_seqlens: None, offset: int
) -> tuple[Tensor, Tensor]:
    """`cosine_attention` as on a CUDA device: one operator, not the CPU's composition."""
    return operators.cosine_attention(
        q, k, v, theta, state, cu_seqlens, torch.full((1,), offset, device=q.device)
    )[:2]


class MeanLoss(nn.Module):
    """Mean loss of a model as a forward pass, which is what DDP wraps."""

    def __init__(self, net: LanguageModel) -> None:
        super().__init__()
        self.net = net

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net.loss(tokens[:, :-1], tokens[:, 1:]).mean()


def gradients(model: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    """Gradients of the mean loss of this process's rows after backward, whole and by name, and
    under "loss" the loss."""
    loss = model(tokens)
    loss.backward()
    found = {"loss": loss.detach().clone()}
    for name, parameter in model.named_parameters():
        gradient = cast(Tensor, parameter.grad)
        whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
        found[name.removeprefix("module.")] = whole
    return found


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], limit: float) -> None:
    """Equal names, and every tensor to an RMS ratio."""
    assert found.keys() == expected.keys()
    errors = {n: float((found[n] - x).norm() / x.norm()) for n, x in expected.items()}
    assert max(errors.values()) < limit, errors


def new(arch: Arch, **options: Any) -> LanguageModel:
    """The model of all cases of an architecture."""
    torch.manual_seed(0)
    config = ModelConfig(arch=arch, vocab_size=64, dim=32, layers=2, heads=2, glu_dim=48)
    return build(config, **options)


@cache
def whole(arch: Arch) -> tuple[Tensor, dict[str, Tensor]]:
    """All tokens, and the loss and gradients of one process, close to those in float64."""
    plain, exact = new(arch), new(arch, dtype=torch.float64)
    exact.load_state_dict(plain.state_dict())
    tokens = torch.randint(64, (RANKS, TOKENS + 1), generator=torch.Generator().manual_seed(1))
    found = gradients(MeanLoss(plain), tokens)
    with (
        patch.object(launch, "backend", BACKEND),
        patch.object(cosformer2, "cosine_attention", COSINE),
    ):
        expected = gradients(MeanLoss(exact), tokens)
    assert_close(found, expected, 1e-4)
    return tokens, found


def check(arch: Arch, strategy: str, mode: Mode) -> None:
    """The mean of the ranks' losses, and all gradients, are those of one process."""
    tokens, expected = whole(arch)
    net = new(arch, device=torch.device("meta" if strategy == "fsdp" else "cpu"))
    checkpoint_blocks(net.blocks, mode)
    model: nn.Module = MeanLoss(net)
    if strategy == "fsdp":
        fsdp.shard(net, init_device_mesh("cpu", (RANKS,), mesh_dim_names=("shard",)), bf16=False)
        torch.manual_seed(0)
        fsdp.init_weights(net)
    else:
        model = nn.parallel.DistributedDataParallel(model)
    found = gradients(model, tokens[dist.get_rank()][None])
    dist.all_reduce(found["loss"])
    found["loss"] /= RANKS
    assert_close(found, expected, 1e-5)


def worker(rank: int, folder: Path) -> None:
    """One rank: all cases, with Triton's kernels in the place of the CPU's."""
    torch.set_num_threads(1)
    runpy.run_path(str(Path(__file__).parent / "conftest.py"))  # mends the interpreter
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=RANKS
    )
    launched = Mock(return_value="cuda")
    try:
        with (
            patch.object(launch, "backend", launched),
            patch.object(cosformer2, "cosine_attention", cosine_operator),
        ):
            for case in CASES:
                before = launched.call_count
                check(*case)
                assert launched.call_count > before
    finally:
        dist.destroy_process_group()


def test_two_ranks_are_one_process(zygote: None, tmp_path: Path) -> None:
    """This file is the program of each rank."""
    assert start("tests.models.kernels.test_triton_ranks", [str(tmp_path)], RANKS) == 0


def main() -> None:
    """Be a rank."""
    worker(int(os.environ["RANK"]), Path(sys.argv[1]))

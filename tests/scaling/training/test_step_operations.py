"""What a whole training step does, operation by operation: autocast, clipping, fused AdamW.

Nothing is read back on the host, and what several products follow is cast once. Kernels of CUDA
devices have such a test of their own (`tests/models/kernels/test_triton_launches.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from models.config import ARCHS, Arch, toy_config
from models.language_model import build
from scaling.config.parts import OptimConfig
from scaling.training.captured import CapturedStep
from scaling.training.loss import mean_loss
from scaling.training.module import TrainingModule
from scaling.training.optim import adamw, set_rate

ROWS, LENGTH, DIM = 2, 64, 64
READS = {"_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero"}
"""For which the host waits."""
CASTS = {"tnl": 3, "hgrn2": 3, "cosformer2": 3, "llama": 2}
"""Of the numbers (B, T, d), a layer and forward pass: what enters the mixer, the channel mixer and,
but for attention, which gives bfloat16, the last product of the mixer."""


class Operations(TorchDispatchMode):
    """Counts operations, and casts of activations to bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.casts = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.names[func.overloadpacket.__name__] += 1
        if func.overloadpacket.__name__ == "_to_copy" and found.shape == (ROWS, LENGTH, DIM):
            self.casts += args[0].dtype == torch.float32 and found.dtype == torch.bfloat16
        return found


def step_of(arch: Arch) -> Callable[[], None]:
    """What makes a step of a small model."""
    net = build(toy_config(arch, DIM, vocab_size=256))
    optimizer = adamw(net, OptimConfig())
    module = SimpleNamespace(
        net=net, device=torch.device("cpu"), loss_sum=torch.zeros(()), weigh=lambda: None,
        config=SimpleNamespace(divergence=SimpleNamespace(policy="skip")),
        objective=SimpleNamespace(optim=OptimConfig()),
        set_rate=lambda optimizer: set_rate(optimizer, 1e-3),
    )  # fmt: skip

    def loss_of(batch: Any) -> Tensor:
        loss = mean_loss(net, batch)
        module.loss_sum += loss.detach()
        return loss

    module.loss_of = loss_of
    module.clip = lambda optimizer: TrainingModule.clip(cast("Any", module), optimizer)
    step = CapturedStep(
        cast("Any", module), optimizer, 1, lambda: torch.autocast("cpu", torch.bfloat16)
    )
    tokens = torch.randint(256, (ROWS, LENGTH + 1))

    def make() -> None:
        step.take((tokens[:, :-1], tokens[:, 1:]))
        step.run()

    return make


@pytest.mark.parametrize("arch", ARCHS)
def test_a_step(arch: Arch) -> None:
    make = step_of(arch)
    make()  # makes the optimizer's state
    with Operations() as seen:
        make()
    assert not READS & set(seen.names), seen.names
    assert seen.names["_fused_adamw_"] in (1, 2)  # matrices, and vectors where there are some
    assert seen.names["_foreach_norm"] == 1


@pytest.mark.parametrize("arch", ARCHS)
def test_what_products_follow_is_cast_once(arch: Arch) -> None:
    net = build(toy_config(arch, DIM, vocab_size=256))
    batch = torch.randint(256, (2, ROWS, LENGTH))
    with Operations() as seen, torch.autocast("cpu", torch.bfloat16):
        net.loss(*batch)
    # The head's product, and cosFormer2's stem, take one more each.
    assert seen.casts <= CASTS[arch] * len(net.blocks) + 2, seen.casts


@pytest.mark.parametrize("arch", ARCHS)
def test_blocks_add_to_float32_within_autocast(arch: Arch) -> None:
    """A residual stream in bfloat16 would lose what late blocks add to it."""
    net = build(toy_config(arch, DIM, vocab_size=256))
    seen: list[torch.dtype] = []
    for block in net.blocks:
        block.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        net.loss(*torch.randint(256, (2, ROWS, LENGTH)))
    assert seen == [torch.float32] * len(net.blocks)

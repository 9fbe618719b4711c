"""Random arguments of the delta rule."""

from __future__ import annotations

from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.recurrences import Inputs

MODES = ("none", "head", "channel")


def make(
    mode: str,
    *,
    lengths: tuple[int, ...] = (),
    batch: int = 2,
    length: int = 20,
    heads: int = 2,
    key_dim: int = 4,
    value_dim: int = 6,
    strong: float = 0.0,
    share: float = 0.2,
    state: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Inputs:
    """Keys of length 1, beta in [0, 2] and sometimes 0; `lengths` packs sequences, `share` of the
    decays are `strong` nats."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    cu_seqlens = None
    if lengths:
        batch, length = 1, sum(lengths)
        cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    shapes = {"head": (batch, length, heads), "channel": (batch, length, heads, key_dim)}
    decay = None
    if mode in shapes:
        decay = -0.3 * torch.rand(shapes[mode], generator=g, dtype=torch.float64)
        if strong:
            decay = decay.masked_fill(torch.rand(shapes[mode], generator=g) < share, strong)
        decay = decay.to(dtype)
    beta = 2 * torch.rand((batch, length, heads), generator=g, dtype=torch.float64)
    beta = beta.masked_fill(torch.rand(beta.shape, generator=g) < 0.1, 0.0)
    wide = torch.promote_types(dtype, torch.float32)
    sequences = len(lengths) or batch
    return {
        "q": normal(batch, length, heads, key_dim).to(dtype),
        "k": F.normalize(normal(batch, length, heads, key_dim), dim=-1).to(dtype),
        "v": normal(batch, length, heads, value_dim).to(dtype),
        "beta": beta.to(dtype),
        "decay": decay,
        "initial_state": normal(sequences, heads, key_dim, value_dim).to(wide) if state else None,
        "cu_seqlens": cu_seqlens,
    }

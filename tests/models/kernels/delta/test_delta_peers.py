"""The delta rule against flash-linear-attention's naive references, gradients included.

They run in float32, scale q by K^(-1/2) and take keys that are normalised already.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.kernels import delta_attention

Rule = Callable[..., tuple[Tensor, Tensor]]


def peers() -> dict[str, Rule]:
    """Their recurrences, with our order of arguments and layouts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library warns that this machine has no GPU
        delta = pytest.importorskip("fla.ops.delta_rule.naive").delta_rule_recurrence
        gated = pytest.importorskip("fla.ops.gated_delta_rule.naive")
        kimi = pytest.importorskip("fla.ops.kda.naive").naive_recurrent_kda

    def deltanet(
        q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        flat = (x.transpose(1, 2) for x in (q, k, v, beta))  # (B, H, T, .)
        o, final = delta(*flat, initial_state=state, output_final_state=True)
        return o.transpose(1, 2), final

    def gated_deltanet(
        q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        run = gated.naive_recurrent_gated_delta_rule
        return run(q, k, v, beta, g, initial_state=state, output_final_state=True)

    def kda(
        q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        return kimi(q, k, v, g, beta, initial_state=state, output_final_state=True)

    return {"none": deltanet, "head": gated_deltanet, "channel": kda}


@pytest.mark.parametrize("mode", ["none", "head", "channel"])
def test_equals_flash_linear_attention(mode: str) -> None:
    g = torch.Generator().manual_seed(5)
    batch, length, heads, key_dim, value_dim = 2, 150, 3, 16, 24
    shape = (batch, length, heads)
    q = torch.randn(*shape, key_dim, generator=g)
    k = F.normalize(torch.randn(*shape, key_dim, generator=g), dim=-1)
    v = torch.randn(*shape, value_dim, generator=g)
    beta = torch.rand(*shape, generator=g) * (1 if mode == "none" else 2)
    state = torch.randn(batch, heads, key_dim, value_dim, generator=g)
    rows = (
        [] if mode == "none" else [-torch.rand(shape if mode == "head" else k.shape, generator=g)]
    )
    inputs = [x.requires_grad_() for x in (q, k, v, beta, *rows, state)]

    def ours(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        decay = rest[0] if len(rest) == 2 else None
        return delta_attention(q * key_dim**-0.5, k, v, beta, decay, rest[-1])

    do, dstate = torch.randn(v.shape, generator=g), torch.randn(state.shape, generator=g)
    results: list[tuple[Tensor, ...]] = []
    for run in (ours, peers()[mode]):
        o, final = run(*inputs)
        loss = (o * do).sum() + (final * dstate).sum()
        results.append((o, final, *torch.autograd.grad(loss, inputs)))
    for actual, expected in zip(*results, strict=True):
        # float32 twice over 150 steps.
        assert (actual - expected).norm() <= 2e-5 * expected.norm()

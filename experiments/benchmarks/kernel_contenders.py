"""What `kernels_gpu` times: the forms of linear attention, ours and the peers' counterparts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, int, int, int]
"""B, T, H and D of q, k and v."""

UNITS = {
    "none": (4, 11),
    "head": (4, 11),
    "learned head": (4, 11),
    "cosine": (4, 11),
    "hgrn2": (4, 11),
    "channel": (5, 14),
    "delta": (4, 11),
    "delta head": (4, 11),
    "delta channel": (5, 14),
}
"""Tensors of q's size moved at least, forward and forward + backward: q, k (or x), v, o and their
gradients, and for decays per channel those and their gradients."""
Extra = Tensor | tuple[Tensor, Tensor | None] | None
"""What a form takes beside q, k and v: log decays (H,) or (B, T, H, D); angles (H, D); for "hgrn2",
where k holds the logits, lower bounds (H, D); for the delta rule beta (B, T, H) and log decays."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One implementation of one form."""

    name: str
    mode: str
    function: Callable[..., Tensor]
    """(q, k, v, extra) -> o, with an `Extra`."""


def contenders() -> Iterator[Contender]:
    """Ours and every installed peer."""
    from models.kernels import (
        cosine_attention,
        delta_attention,
        hgrn2_attention,
        linear_attention,
    )
    from models.kernels.api import hgrn2_gate
    from models.kernels.lrpe import lrpe

    for mode in ("none", "head", "learned head", "channel"):
        yield Contender(
            name="linscale", mode=mode, function=lambda q, k, v, g: linear_attention(q, k, v, g)[0]
        )

    def gated(q: Tensor, x: Tensor, v: Tensor, bound: Tensor | None) -> Tensor:
        assert bound is not None
        return hgrn2_attention(q, x, v, bound)[0]

    def turned(q: Tensor, k: Tensor, v: Tensor, theta: Tensor | None) -> Tensor:
        assert theta is not None
        return cosine_attention(q, k, v, theta)[0]

    yield Contender(name="linscale", mode="hgrn2", function=gated)
    yield Contender(name="linscale", mode="cosine", function=turned)

    def corrected(q: Tensor, k: Tensor, v: Tensor, extra: tuple[Tensor, Tensor | None]) -> Tensor:
        return delta_attention(q, k, v, *extra)[0]

    for mode in ("delta", "delta head", "delta channel"):
        yield Contender(name="linscale", mode=mode, function=corrected)

    def sdpa(q: Tensor, k: Tensor, v: Tensor, _: Tensor | None) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    yield Contender(name="SDPA causal", mode="softmax", function=sdpa)
    try:
        from fla.ops.delta_rule import chunk_delta_rule
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule
        from fla.ops.gla import chunk_gla
        from fla.ops.kda import chunk_kda
        from fla.ops.linear_attn import chunk_linear_attn
        from fla.ops.simple_gla import chunk_simple_gla
    except ImportError:
        return
    # Its functions are decorated, and type checkers do not see through that.
    gla: Any = chunk_gla
    linear: Any = chunk_linear_attn
    simple: Any = chunk_simple_gla
    plain: Any = chunk_delta_rule
    gated_delta: Any = chunk_gated_delta_rule
    kda: Any = chunk_kda

    def fla_gated(q: Tensor, x: Tensor, v: Tensor, bound: Tensor | None) -> Tensor:
        """As its HGRN2 layer: keys and decays in PyTorch, then the kernel."""
        assert bound is not None
        k, decay = hgrn2_gate(x, bound)
        return gla(q, k.to(q.dtype), v, decay.to(q.dtype))[0]

    def fla_turned(q: Tensor, k: Tensor, v: Tensor, theta: Tensor | None) -> Tensor:
        assert theta is not None
        positions = torch.arange(q.shape[1], device=q.device)
        q, k = lrpe(q, theta, positions), lrpe(k, theta, positions)
        return linear(q, k, v, normalize=False)[0]

    for name, mode, function in (
        ("fla linear_attn", "none", lambda q, k, v, _: linear(q, k, v, normalize=False)[0]),
        ("fla retention", "head", lambda q, k, v, g: simple(q, k, v, g_gamma=g)[0]),
        ("fla gla", "channel", lambda q, k, v, g: gla(q, k, v, g)[0]),
        ("fla HGRN2", "hgrn2", fla_gated),
        ("fla linear_attn, rotated", "cosine", fla_turned),
        ("fla delta_rule", "delta", lambda q, k, v, x: plain(q, k, v, beta=x[0], scale=1.0)[0]),
        (
            "fla gated_delta_rule",
            "delta head",
            lambda q, k, v, x: gated_delta(q, k, v, g=x[1], beta=x[0], scale=1.0)[0],
        ),
        (
            "fla kda",
            "delta channel",
            lambda q, k, v, x: kda(q, k, v, g=x[1], beta=x[0], scale=1.0)[0],
        ),
    ):
        yield Contender(name=name, mode=mode, function=function)


def inputs(
    mode: str, shape: Shape, device: str
) -> tuple[tuple[Tensor, Tensor, Tensor, Extra], list[Tensor]]:
    """Arguments of a contender, and those of them that want gradients."""
    _, _, heads, dim = shape
    torch.manual_seed(0)

    def new() -> Tensor:
        return torch.randn(shape, device=device, dtype=torch.bfloat16)

    q, k, v = (x.requires_grad_() for x in (new() * dim**-0.5, new(), new()))
    if mode.startswith("delta"):
        k = torch.nn.functional.normalize(k.detach(), dim=-1).requires_grad_()
        beta = torch.sigmoid(new()[..., 0]).requires_grad_()
        decay = None
        if mode != "delta":
            logits = new() if mode == "delta channel" else new()[..., 0]
            decay = torch.nn.functional.logsigmoid(logits.float()).requires_grad_()
        return (q, k, v, (beta, decay)), [x for x in (q, k, v, beta, decay) if x is not None]
    slopes = -torch.logspace(0, -8, heads, base=2.0, device=device)
    match mode:
        case "head":
            return (q, k, v, slopes), [q, k, v]
        case "learned head":
            extra = slopes.requires_grad_()
        case "channel":
            extra = torch.nn.functional.logsigmoid(new()).requires_grad_()
        case "hgrn2":
            extra = torch.rand(heads, dim, device=device).mul_(0.9).requires_grad_()
        case "cosine":
            extra = torch.rand(heads, dim, device=device).requires_grad_()
        case _:
            return (q, k, v, None), [q, k, v]
    return (q, k, v, extra), [q, k, v, extra]

"""The recurrence of the exported linear models, in plain PyTorch.

    S_t = diag(exp(decay_t)) S_{t-1} + k_t v_t^T,   o_t = S_t^T q_t        per head

in chunks, with the delta rule's correction where it is asked for; the decays that TNL and SUPRA
fix for each head; and the norm without weights.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

CHUNK = 16
"""Tokens whose pairs are worked out at once."""


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    state: Tensor | None,
    beta: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence above in chunks, float32 inside.

    By the delta rule a token writes e_t = beta_t (v_t - S^T k_t), with S the state that has decayed
    to it, in the place of v_t. Within a chunk the e of all tokens solve one triangular system.

    Args:
        q, k: (B, T, H, K).
        v: (B, T, H, V).
        decay: (B, T, H, K), or (B, T, H, 1) for one per head; at most 0. None: no decay.
        state: (B, H, K, V); None: zeros.
        beta: (B, T, H, 1), of the delta rule; None: without it.

    Returns:
        o (B, T, H, V) in v's dtype, and the state after the last token.
    """
    dtype = v.dtype
    wide = torch.promote_types(dtype, torch.float32)
    q, k, v = q.to(wide), k.to(wide), v.to(wide)
    if decay is None:
        decay = q.new_zeros(*q.shape[:3], 1)
    if state is None:
        state = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    outputs = []
    for at in range(0, q.shape[1], CHUNK):
        part = slice(at, at + CHUNK)
        qc, kc, vc = q[:, part], k[:, part], v[:, part]
        since = decay[:, part].to(wide).cumsum(1)  # (B, C, H, K or 1)
        gap = since[:, :, None] - since[:, None]  # (B, C, C, H, .): from key s to query t
        index = torch.arange(gap.shape[1], device=q.device)
        later = (index > index[:, None])[..., None, None]
        gap = gap.masked_fill(later, -torch.inf).exp()
        if beta is not None:
            overlap = pairs(kc, kc, gap).permute(0, 3, 1, 2).tril(-1)  # (B, H, C, C)
            held = torch.einsum("bthk,bhkv->bthv", kc * since.exp(), state)
            share = beta[:, part].to(wide)
            system = share.transpose(1, 2) * overlap  # beside the identity, which is left out
            missing = (share * (vc - held)).transpose(1, 2)
            vc = torch.linalg.solve_triangular(
                system, missing, upper=False, unitriangular=True
            ).transpose(1, 2)
        scores = pairs(qc, kc, gap)
        read = torch.einsum("bthk,bhkv->bthv", qc * since.exp(), state)
        outputs.append(read + torch.einsum("btsh,bshv->bthv", scores, vc))
        last = since[:, -1:]
        written = torch.einsum("bshk,bshv->bhkv", kc * (last - since).exp(), vc)
        state = state * last[:, 0, :, :, None].exp() + written
    return torch.cat(outputs, 1).to(dtype), state


def pairs(q: Tensor, k: Tensor, gap: Tensor) -> Tensor:
    """sum_k q_tk k_sk gap_tsk, (B, T, S, H), of q (B, T, H, K), k (B, S, H, K) and gap (B, T, S, H,
    K or 1)."""
    if gap.shape[-1] == 1:
        return torch.einsum("bthk,bshk->btsh", q, k) * gap[..., 0]
    return torch.einsum("bthk,bshk,btshk->btsh", q, k, gap)


def normalize(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last dimension."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt()).to(x.dtype)


def head_slopes(settings: dict[str, Any], layer: int) -> list[float]:
    """Decay of each head of a layer of TNL or SUPRA, in nats a step."""
    heads, layers = settings["heads"], settings["layers"]
    if settings["decay_slopes"] == "none":
        return [0.0] * heads
    if settings["decay_slopes"] == "linear":
        return [8 * head / heads * (1 - layer / layers) for head in range(heads)]
    if settings["decay_slopes"] == "retnet":
        return [-math.log1p(-(2.0 ** (-5 - head))) for head in range(heads)]

    def powers(count: int) -> list[float]:
        below = 2 ** int(math.log2(count))
        slopes = [2 ** (-8 * (head + 1) / below) for head in range(below)]
        return slopes if below == count else slopes + powers(2 * below)[::2][: count - below]

    if settings["decay_slopes"] == "alibi-flat":
        return powers(heads)
    return [slope * (1 - layer / max(layers - 1, 1) + 1e-5) for slope in powers(heads)]
